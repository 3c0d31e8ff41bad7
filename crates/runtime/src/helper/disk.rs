//! The bound on what a container may write to its root.

use super::sys::Step;
use crate::{RuntimeError, quota};
use rustix::fs::{Mode, OFlags};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Projects of containers have numbers from here on: beyond those that people give out by hand.
const FIRST: u32 = 0x4000_0000;

/// Bounds what is written to a container's folder, if its file system can do that: the number of the project that
/// counts it.
pub(super) fn bound(folder: BorrowedFd<'_>, bytes: Option<u64>) -> Result<Option<u32>, RuntimeError> {
    const WHAT: &str = "bounding the container's disk";
    let Some(bytes) = bytes else { return Ok(None) };
    // Never the number of one that was there before, some files of which may still wait for their removal.
    let mut random = [0; 4];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).step(WHAT)?;
    let project = FIRST | (u32::from_ne_bytes(random) & (FIRST - 1));
    match quota::bound(folder, project, Some(bytes)) {
        Ok(()) => {}
        // Without quotas there is no bound, which whoever asked was told.
        Err(error) if is_unsupported(&error) => return Ok(None),
        Err(error) => return Err(RuntimeError::step(WHAT, error)),
    }
    for name in ["upper", "work"] {
        quota::assign(open(folder, name)?.as_fd(), project).step(WHAT)?;
    }
    Ok(Some(project))
}

/// Takes the bound of a project away. What the kernel refuses here costs a record in a table.
pub(super) fn release(folder: BorrowedFd<'_>, project: u32) {
    let _ = quota::bound(folder, project, None);
}

fn open(folder: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, RuntimeError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(folder, name, flags, Mode::empty()).step(format!("opening {name}"))
}

fn is_unsupported(error: &std::io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOSYS | libc::ESRCH | libc::EOPNOTSUPP | libc::ENOTTY | libc::EINVAL)
    )
}
