//! Bounds on disk space by project quotas, where the file system keeps them (ext4 and XFS mounted with `prjquota`):
//! a folder and all that comes to be in it belongs to a project, and a project has a limit.

use rustix::fs::{Mode, OFlags};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

/// The kernel's numbers: kind of quota, commands, what of a limit counts.
const PROJECT: u32 = 2;
const GET_INFO: u32 = 0x80_0005;
const SET_LIMIT: u32 = 0x80_0008;
const BLOCK_LIMITS: u32 = 1;
const GET_ATTRIBUTES: libc::Ioctl = 0x801c_581f_u32 as libc::Ioctl;
const SET_ATTRIBUTES: libc::Ioctl = 0x401c_5820;
/// What is made in the folder belongs to its project.
const INHERIT: u32 = 0x200;
/// Limits are counted in such blocks.
const BLOCK: u64 = 1024;

/// The kernel's `struct if_dqblk`.
#[repr(C)]
#[derive(Default)]
struct Limit {
    blocks_hard: u64,
    blocks_soft: u64,
    bytes: u64,
    inodes_hard: u64,
    inodes_soft: u64,
    inodes: u64,
    blocks_time: u64,
    inodes_time: u64,
    valid: u32,
}

/// The kernel's `struct if_dqinfo`.
#[repr(C)]
#[derive(Default)]
struct Info {
    blocks_grace: u64,
    inodes_grace: u64,
    flags: u32,
    valid: u32,
}

/// The kernel's `struct fsxattr`.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    flags: u32,
    extent: u32,
    extents: u32,
    project: u32,
    cow_extent: u32,
    padding: [u8; 8],
}

fn quotactl<T>(folder: BorrowedFd<'_>, command: u32, project: u32, data: &mut T) -> io::Result<()> {
    // SAFETY: the data is a live structure of the command's kind, which the kernel reads or fills.
    let result = unsafe {
        libc::syscall(
            libc::SYS_quotactl_fd,
            folder.as_raw_fd(),
            (command << 8) | PROJECT,
            project,
            std::ptr::from_mut(data),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn open(folder: &Path) -> io::Result<std::os::fd::OwnedFd> {
    Ok(rustix::fs::open(folder, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Whether the file system of a folder keeps project quotas.
pub fn is_kept(folder: &Path) -> bool {
    open(folder).is_ok_and(|folder| quotactl(folder.as_fd(), GET_INFO, 0, &mut Info::default()).is_ok())
}

/// Makes a folder one of `project`, with all that comes to be in it.
pub(crate) fn assign(folder: BorrowedFd<'_>, project: u32) -> io::Result<()> {
    let mut attributes = Attributes::default();
    // SAFETY: both calls read or fill one live structure of the stated kind.
    let result = unsafe {
        match libc::ioctl(folder.as_raw_fd(), GET_ATTRIBUTES, &raw mut attributes) {
            0 => {
                attributes.flags |= INHERIT;
                attributes.project = project;
                libc::ioctl(folder.as_raw_fd(), SET_ATTRIBUTES, &raw const attributes)
            }
            failed => failed,
        }
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Bounds what a project may take on the file system of a folder; none takes the bound away.
pub(crate) fn bound(folder: BorrowedFd<'_>, project: u32, bytes: Option<u64>) -> io::Result<()> {
    // A limit of zero is none.
    let blocks = bytes.map_or(0, |bytes| bytes.div_ceil(BLOCK).max(1));
    let mut limit = Limit { blocks_hard: blocks, valid: BLOCK_LIMITS, ..Limit::default() };
    quotactl(folder, SET_LIMIT, project, &mut limit)
}
