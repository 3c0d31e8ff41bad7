//! The few mount operations that the guest needs, on descriptors instead of paths.

use rustix::fs::{Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::tree;

/// A new file system of type `kind`, not attached anywhere yet.
pub(crate) fn new_mount(kind: &str, options: &[(&str, &str)], flags: MountAttrFlags) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "source", kind)?;
    for (key, value) in options {
        fsconfig_set_string(context.as_fd(), *key, *value)?;
    }
    fsconfig_create(context.as_fd())?;
    Ok(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, flags)?)
}

/// A detached copy of the mount at `path` beneath `root`.
pub(crate) fn clone_at(root: BorrowedFd<'_>, path: &str) -> io::Result<OwnedFd> {
    let found =
        tree::open_in(root, path.trim_start_matches('/').as_bytes(), OFlags::PATH | OFlags::NOFOLLOW)?;
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    Ok(open_tree(found.as_fd(), "", flags)?)
}

/// Attaches a mount on whatever `target` names.
pub(crate) fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(mount, "", target, "", flags)?)
}

/// Attaches a mount on the directory `path` beneath `root`, which is made if it is missing.
pub(crate) fn attach_dir(mount: BorrowedFd<'_>, root: BorrowedFd<'_>, path: &str) -> io::Result<()> {
    attach(mount, tree::make_dirs(root, path.as_bytes())?.as_fd())
}

/// Opens the file `path` beneath `root` as something to mount on, making an empty one if it is missing. A
/// dangling symbolic link is replaced.
pub(crate) fn file_target(root: BorrowedFd<'_>, path: &str) -> io::Result<OwnedFd> {
    let parts = tree::components(path.as_bytes())?;
    let Some((name, parents)) = parts.split_last() else {
        return Err(crate::step::invalid("the root itself is not a file"));
    };
    match tree::open_in(root, &parts.join(&b'/'), OFlags::PATH) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    let parent = tree::make_dirs(root, &parents.join(&b'/'))?;
    match rustix::fs::unlinkat(&parent, *name, rustix::fs::AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(&parent, *name, flags, Mode::from_raw_mode(0o644))?;
    Ok(rustix::fs::openat(&parent, *name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?)
}

/// The kernel's `struct mount_attr`.
#[repr(C)]
#[derive(Default)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Makes a detached mount read-only.
pub(crate) fn set_read_only(mount: BorrowedFd<'_>) -> io::Result<()> {
    let attr = MountAttr { set: u64::from(MountAttrFlags::MOUNT_ATTR_RDONLY.bits()), ..MountAttr::default() };
    // SAFETY: the path is an empty C string, the attributes are a live structure of the stated size.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
