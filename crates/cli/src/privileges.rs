//! Root: who has it, and giving it up for good.

use crate::data_folder::ServiceUser;
use anyhow::{Context, Result, ensure};
use evoke_core::{Error, ErrorCode};
use rustix::process::{Gid, Resource, Rlimit, Uid};
use rustix::thread::{self, CapabilitySet};

/// Open files of the holder and the server: a container needs up to ten descriptors.
const OPEN_FILES: u64 = 262_144;

/// Fails with the mend where this process is not root.
pub(crate) fn require_root(verb: &str) -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let what = format!("`evoke {verb}` needs root");
    let hint = format!(
        "run: sudo evoke {verb}\nOnly a small helper keeps root, to make the containers' namespaces; the server and \
         the containers run without it."
    );
    Err(Error::new(ErrorCode::PermissionDenied, what).with_hint(hint).into())
}

/// Turns this process into the service user for good: no way back, no capability, no gain by any program that
/// it runs. It must have one thread only, because the kernel keeps these ids per thread.
pub(crate) fn drop_root(user: ServiceUser) -> Result<()> {
    let threads = std::fs::read_dir("/proc/self/task").context("counting threads")?.count();
    ensure!(threads == 1, "giving up root with {threads} threads would leave some of them root");
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    ensure!(!uid.is_root(), "the service user is root");
    for capability in CapabilitySet::all().iter() {
        // A kernel that is older than a capability does not know it, and a bounding set without it is fine.
        let _ = thread::remove_capability_from_bounding_set(capability);
    }
    thread::clear_ambient_capability_set().context("clearing ambient capabilities")?;
    thread::set_thread_groups(&[]).context("setgroups")?;
    thread::set_thread_res_gid(gid, gid, gid).context("setresgid")?;
    thread::set_thread_res_uid(uid, uid, uid).context("setresuid")?;
    thread::set_no_new_privs(true).context("no_new_privs")?;
    ensure!(thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).is_err(), "root could be taken back");
    Ok(())
}

/// Raises the bound on open files as far as this process may.
pub(crate) fn raise_open_files() {
    let now = rustix::process::getrlimit(Resource::Nofile);
    let more = |bound: Option<u64>| bound.map(|b| b.max(OPEN_FILES));
    let wanted = Rlimit { current: more(now.current), maximum: more(now.maximum) };
    if rustix::process::setrlimit(Resource::Nofile, wanted).is_err() {
        // Not root: as far as the hard bound. If even that fails the old bound stays, which only limits the
        // number of containers.
        let _ = rustix::process::setrlimit(
            Resource::Nofile,
            Rlimit { current: now.maximum, maximum: now.maximum },
        );
    }
}
