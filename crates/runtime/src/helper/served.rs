//! Mounts whose files a process of the server's serves.

use super::sys::{self, Step};
use crate::{RuntimeError, Served};
use rustix::fs::OFlags;
use rustix::mount::MountAttrFlags;
use std::os::fd::{AsRawFd, OwnedFd};

/// A new mount for a container whose root is host user `base`, and the descriptor by which it is served. All of
/// the container's users may see it.
pub(super) fn mount(served: &Served, base: u32) -> Result<(OwnedFd, OwnedFd), RuntimeError> {
    const MEND: &str = "opening /dev/fuse (without it: modprobe fuse)";
    let device = sys::open("/dev/fuse", OFlags::RDWR).step(MEND)?;
    let (number, base) = (device.as_raw_fd().to_string(), base.to_string());
    let options = [
        ("source", "bucket"),
        ("fd", &*number),
        ("rootmode", "40000"),
        ("user_id", &*base),
        ("group_id", &*base),
        ("allow_other", ""),
    ];
    let mut flags = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
    if served.read_only {
        flags |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    let mount = sys::new_mount("fuse", &options, flags).step(format!("mounting {}", served.target))?;
    Ok((mount, device))
}
