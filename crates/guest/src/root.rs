//! Makes the container's world out of the descriptors that the helper sent, and leaves the host's for good.
//!
//! Everything is attached beneath the new root before the host's tree is let go, because the kernel mounts a
//! new proc only where another unmasked one is visible. Paths in the root belong to whoever made the image,
//! so all of them are resolved as if the root were `/` already.

use crate::mounts::{attach, attach_dir, clone_at, file_target, new_mount, set_read_only};
use crate::step::{Step, StepError, invalid};
use crate::tree;
use crate::volumes::attach_volume;
use crate::wire::{MemoryFolder, Setup, SuppliedFile};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountAttrFlags, MountPropagationFlags, UnmountFlags, mount_change, unmount};
use rustix::process::{fchdir, pivot_root};
use rustix::thread::{Gid, Uid, UnshareFlags};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Where the new root hangs while it is made; any directory of the host that surely exists.
const STAGE: &str = "/dev";
/// Where the supplied files hang while they are bound; likewise.
const FILES_STAGE: &str = "/sys";

/// Files that tell about the host or reach into it: covered by `/dev/null`.
const MASKED_FILES: [&str; 8] = [
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/sysrq-trigger",
    "/proc/timer_list",
    "/proc/timer_stats",
];
/// Directories of the same kind: covered by an empty read-only one.
const MASKED_FOLDERS: [&str; 6] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/scsi",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/kernel/security",
];
/// What may be read and not written.
const READ_ONLY: [&str; 4] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"];

/// The descriptors that come with a setup.
pub(crate) struct SetupFds {
    root: OwnedFd,
    dev: OwnedFd,
    sysfs: Option<OwnedFd>,
    binds: Vec<OwnedFd>,
    volumes: Vec<OwnedFd>,
    /// The files by which a process is led into the container's control groups.
    pub(crate) groups: Vec<OwnedFd>,
}

impl SetupFds {
    /// Sorts the descriptors of a setup message.
    pub(crate) fn sort(setup: &Setup, fds: Vec<OwnedFd>) -> Result<Self, StepError> {
        let wanted = 2 + usize::from(setup.sysfs) + setup.binds.len() + setup.volumes.len() + setup.groups;
        if fds.len() != wanted {
            let found = format!("{} descriptors instead of {wanted}", fds.len());
            return Err(invalid(found)).step("reading the orders");
        }
        let mut fds = fds.into_iter();
        let mut next = || fds.next().ok_or_else(|| invalid("a descriptor is missing"));
        let root = next().step("reading the orders")?;
        let dev = next().step("reading the orders")?;
        let sysfs = if setup.sysfs { Some(next().step("reading the orders")?) } else { None };
        let binds = fds.by_ref().take(setup.binds.len()).collect();
        let volumes = fds.by_ref().take(setup.volumes.len()).collect();
        Ok(Self { root, dev, sysfs, binds, volumes, groups: fds.collect() })
    }
}

/// Becomes root of the user namespace, whose maps were written before the orders were sent.
pub(crate) fn become_root() -> Result<(), StepError> {
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).step("becoming group 0")?;
    rustix::thread::set_thread_groups(&[]).step("dropping the groups")?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).step("becoming user 0")
}

/// Makes the root and moves into it.
pub(crate) fn assemble(setup: &Setup, fds: SetupFds) -> Result<(), StepError> {
    rustix::system::sethostname(setup.hostname.as_bytes()).step("setting the host name")?;
    // The control groups were joined before the orders came, so that this is the namespace's root.
    rustix_unshare(UnshareFlags::NEWCGROUP).step("making the cgroup namespace")?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .step("detaching from the host's mounts")?;
    let root = fds.root.as_fd();
    attach(root, open_path(STAGE).step("opening the stage")?.as_fd()).step("attaching the root")?;
    attach_kernel_file_systems(setup, &fds)?;
    for folder in &setup.memory {
        attach_memory(root, folder).step(format!("mounting {}", folder.target))?;
    }
    for (bind, mount) in setup.binds.iter().zip(&fds.binds) {
        let target = if bind.directory {
            tree::make_dirs(root, bind.target.as_bytes())
        } else {
            file_target(root, &bind.target)
        };
        let target = target.step(format!("making {}", bind.target))?;
        attach(mount.as_fd(), target.as_fd()).step(format!("binding {}", bind.target))?;
    }
    for (target, path) in &setup.links {
        make_link(root, target, path).step(format!("linking {path}"))?;
    }
    for (volume, mount) in setup.volumes.iter().zip(&fds.volumes) {
        attach_volume(root, volume, mount.as_fd())?;
    }
    supply_files(setup, root)?;
    mask(root)?;
    leave_host(root)
}

/// Anybody may write there, as in `/tmp`.
fn attach_memory(root: BorrowedFd<'_>, folder: &MemoryFolder) -> io::Result<()> {
    let size = folder.bytes_max.map(|bytes| bytes.to_string());
    let options: Vec<(&str, &str)> =
        [("mode", "1777")].into_iter().chain(size.as_deref().map(|size| ("size", size))).collect();
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    attach_dir(new_mount("tmpfs", &options, flags)?.as_fd(), root, folder.target.trim_start_matches('/'))
}

/// A read-only folder of the machine has what it has.
fn make_link(root: BorrowedFd<'_>, target: &str, path: &str) -> io::Result<()> {
    let parts = tree::components(path.as_bytes())?;
    let Some((name, parents)) = parts.split_last() else { return Err(invalid("the root itself is no link")) };
    let read_only = |error: &io::Error| error.kind() == io::ErrorKind::ReadOnlyFilesystem;
    let parent = match tree::make_dirs(root, &parents.join(&b'/')) {
        Err(error) if read_only(&error) => return Ok(()),
        other => other?,
    };
    if rustix::fs::readlinkat(&parent, *name, Vec::new()).is_ok() {
        match rustix::fs::unlinkat(&parent, *name, rustix::fs::AtFlags::empty()) {
            Err(rustix::io::Errno::ROFS) => return Ok(()),
            other => other?,
        }
    }
    match rustix::fs::symlinkat(target, &parent, *name) {
        Ok(()) | Err(rustix::io::Errno::EXIST | rustix::io::Errno::ROFS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn rustix_unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: only the cgroup namespace is unshared, which no code of this process depends on.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

fn open_path(path: &str) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

fn attach_kernel_file_systems(setup: &Setup, fds: &SetupFds) -> Result<(), StepError> {
    let root = fds.root.as_fd();
    let quiet = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    let inert = quiet | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    for name in ["proc", "sys", "dev"] {
        refuse_link(root, name).step(format!("looking at /{name}"))?;
    }
    let proc = new_mount("proc", &[], inert).step("mounting proc")?;
    attach_dir(proc.as_fd(), root, "proc").step("attaching proc")?;
    if let Some(sysfs) = &fds.sysfs {
        attach_dir(sysfs.as_fd(), root, "sys").step("attaching sysfs")?;
        if setup.cgroup2 {
            let flags = inert | MountAttrFlags::MOUNT_ATTR_RDONLY;
            let cgroup = new_mount("cgroup2", &[], flags).step("mounting cgroup2")?;
            let target = tree::open_in(root, b"sys/fs/cgroup", OFlags::PATH | OFlags::DIRECTORY);
            attach(cgroup.as_fd(), target.step("opening /sys/fs/cgroup")?.as_fd())
                .step("attaching cgroup2")?;
        }
    }
    attach_dir(fds.dev.as_fd(), root, "dev").step("attaching /dev")?;
    let pts = [("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5")];
    // Terminals are devices: without them no program could open one.
    let terminals = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let pts = new_mount("devpts", &pts, terminals).step("mounting devpts")?;
    attach_dir(pts.as_fd(), root, "dev/pts").step("attaching devpts")?;
    let size = setup.shm_bytes.to_string();
    let shm = new_mount("tmpfs", &[("size", &*size), ("mode", "1777")], inert).step("mounting /dev/shm")?;
    attach_dir(shm.as_fd(), root, "dev/shm").step("attaching /dev/shm")?;
    let queue = new_mount("mqueue", &[], inert).step("mounting mqueue")?;
    attach_dir(queue.as_fd(), root, "dev/mqueue").step("attaching mqueue")
}

/// An image in which `/proc` or its like is a symbolic link would have the mount land elsewhere.
fn refuse_link(root: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    match rustix::fs::readlinkat(root, name, Vec::new()) {
        Ok(_) => Err(invalid("the image has a symbolic link there")),
        Err(_) => Ok(()),
    }
}

fn supply_files(setup: &Setup, root: BorrowedFd<'_>) -> Result<(), StepError> {
    if setup.files.is_empty() {
        return Ok(());
    }
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    let files = new_mount("tmpfs", &[("size", "1m"), ("mode", "0755")], flags).step("mounting the files")?;
    attach(files.as_fd(), open_path(FILES_STAGE).step("opening the stage")?.as_fd())
        .step("attaching the files")?;
    for (index, file) in setup.files.iter().enumerate() {
        let (name, target) = (format!("f{index}"), &file.path);
        write_file(files.as_fd(), &name, file).step(format!("writing {target}"))?;
        let mount = clone_at(files.as_fd(), &name).step(format!("cloning {target}"))?;
        let target_fd = file_target(root, target).step(format!("making {target}"))?;
        attach(mount.as_fd(), target_fd.as_fd()).step(format!("binding {target}"))?;
    }
    Ok(())
}

fn write_file(at: BorrowedFd<'_>, name: &str, wanted: &SuppliedFile) -> io::Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let mut file = std::fs::File::from(rustix::fs::openat(at, name, flags, Mode::from_raw_mode(0o600))?);
    io::Write::write_all(&mut file, wanted.content.as_bytes())?;
    let (uid, gid) = wanted.owner;
    rustix::fs::fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    Ok(rustix::fs::fchmod(&file, Mode::from_raw_mode(wanted.mode & 0o777))?)
}

fn mask(root: BorrowedFd<'_>) -> Result<(), StepError> {
    for path in READ_ONLY {
        let mount = match clone_at(root, path) {
            Ok(mount) => mount,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).step(format!("cloning {path}")),
        };
        set_read_only(mount.as_fd()).step(format!("making {path} read-only"))?;
        attach_dir(mount.as_fd(), root, path).step(format!("attaching {path}"))?;
    }
    for path in MASKED_FILES {
        let Some(target) = existing(root, path).step(format!("looking at {path}"))? else { continue };
        let null = clone_at(root, "/dev/null").step("cloning /dev/null")?;
        attach(null.as_fd(), target.as_fd()).step(format!("masking {path}"))?;
    }
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
        | MountAttrFlags::MOUNT_ATTR_RDONLY;
    for path in MASKED_FOLDERS {
        let Some(target) = existing(root, path).step(format!("looking at {path}"))? else { continue };
        let empty = new_mount("tmpfs", &[("size", "4k"), ("mode", "0755")], flags).step("mounting a mask")?;
        attach(empty.as_fd(), target.as_fd()).step(format!("masking {path}"))?;
    }
    Ok(())
}

fn existing(root: BorrowedFd<'_>, path: &str) -> io::Result<Option<OwnedFd>> {
    match tree::open_in(root, path.as_bytes(), OFlags::PATH | OFlags::NOFOLLOW) {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn leave_host(root: BorrowedFd<'_>) -> Result<(), StepError> {
    fchdir(root).step("entering the root")?;
    pivot_root(".", ".").step("changing the root")?;
    // The old root lies on top of the new one now; taking it away takes away every mount of the host.
    unmount(".", UnmountFlags::DETACH).step("letting go of the host's tree")?;
    rustix::process::chdir("/").step("entering the root")
}
