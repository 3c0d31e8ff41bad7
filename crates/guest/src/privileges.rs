//! Gives up what a program may not have. Runs in the child between fork and exec; the order matters, since
//! each step needs what a later one takes away.

use crate::seccomp::Filter;
use crate::users::Identity;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, Gid, Uid};
use std::io;

/// Docker's default set without MKNOD. They act on the container's own user namespace only.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::AUDIT_WRITE)
    .union(CapabilitySet::SETFCAP);
/// The highest capability number the kernel's interface has room for.
const CAPABILITIES: u32 = 64;
/// Files a program may have open, where the machine's own limit allows it.
const OPEN_FILES: u64 = 65_536;
/// How much sooner than the guest a program is chosen when memory runs out. Anybody may raise it, and nobody
/// in the container may lower it below the guest's own.
const OOM_SCORE_ADJ: &[u8] = b"100";

/// What a template has: it enters the namespaces of containers that are made in its own, and becomes their root.
const OF_TEMPLATES: CapabilitySet = CapabilitySet::SYS_ADMIN
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETPCAP);

/// The capabilities that root keeps in a program, by their bits.
pub(crate) fn kept() -> u64 {
    KEPT.bits()
}

/// Drops everything but what `identity` is to have, or a template. After it only `exec` remains to be done.
pub(crate) fn drop_to(
    identity: &Identity,
    is_template: bool,
    filter: Option<&Filter>,
) -> Result<(), (&'static str, io::Error)> {
    let kept = if is_template { OF_TEMPLATES } else { KEPT };
    set_limits().map_err(|e| ("setting limits", e))?;
    // Without it, the guest is merely as likely a victim as its programs.
    let _ = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ);
    drop_bounding_set(kept).map_err(|e| ("reducing the bounding set", e))?;
    let root = identity.uid == 0;
    set_identity(identity).map_err(|e| ("changing the user", e))?;
    let sets = if root { kept } else { CapabilitySet::empty() };
    let sets = CapabilitySets { effective: sets, permitted: sets, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets).map_err(|e| ("reducing the capabilities", e.into()))?;
    rustix::thread::set_no_new_privs(true).map_err(|e| ("setting no_new_privs", e.into()))?;
    if let Some(filter) = filter {
        filter.install().map_err(|e| ("installing the system call filter", e))?;
    }
    Ok(())
}

fn set_limits() -> io::Result<()> {
    let hard = getrlimit(Resource::Nofile).maximum;
    let files = Some(hard.map_or(OPEN_FILES, |hard| hard.min(OPEN_FILES)));
    setrlimit(Resource::Nofile, Rlimit { current: files, maximum: files })?;
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    Ok(())
}

fn drop_bounding_set(kept: CapabilitySet) -> io::Result<()> {
    for number in 0..CAPABILITIES {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if kept.contains(capability) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // A number that this kernel does not know.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn set_identity(identity: &Identity) -> io::Result<()> {
    let id = |raw: u32| {
        if raw == u32::MAX { Err(crate::step::invalid("an id that means 'none'")) } else { Ok(raw) }
    };
    let gid = Gid::from_raw(id(identity.gid)?);
    let uid = Uid::from_raw(id(identity.uid)?);
    let groups: Vec<_> =
        identity.groups.iter().filter(|g| **g != u32::MAX).map(|g| Gid::from_raw(*g)).collect();
    rustix::thread::set_thread_groups(&groups)?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    Ok(())
}
