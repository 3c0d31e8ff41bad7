//! Volumes in a container: each is a mount below [`crate::VOLUMES_FOLDER`], and where the program wants it is a
//! symbolic link, so that showing another state of it is replacing one mount.

use crate::mounts::{attach, attach_dir};
use crate::step::{Step, StepError, invalid};
use crate::wire::VolumeTarget;
use crate::{VOLUMES_FOLDER, tree};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

fn folder_of(volume: &str) -> String {
    format!("{VOLUMES_FOLDER}/{volume}")
}

/// Attaches a volume in a root that is being made.
pub(crate) fn attach_volume(
    root: BorrowedFd<'_>,
    volume: &VolumeTarget,
    mount: BorrowedFd<'_>,
) -> Result<(), StepError> {
    let folder = folder_of(&volume.volume);
    attach_dir(mount, root, &folder).step(format!("mounting the volume {}", volume.volume))?;
    link(root, &volume.target, &folder).step(format!("mounting a volume on {}", volume.target))
}

fn link(root: BorrowedFd<'_>, target: &str, folder: &str) -> io::Result<()> {
    let parts = tree::components(target.as_bytes())?;
    let Some((name, parents)) = parts.split_last() else { return Err(invalid("the root itself")) };
    let parent = tree::make_dirs(root, &parents.join(&b'/'))?;
    let stat = match rustix::fs::statat(&parent, *name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Some(FileType::from_raw_mode(stat.st_mode)),
        Err(Errno::NOENT) => None,
        Err(error) => return Err(error.into()),
    };
    match stat {
        None => {}
        Some(FileType::Directory) => match rustix::fs::unlinkat(&parent, *name, AtFlags::REMOVEDIR) {
            Ok(()) => {}
            Err(Errno::NOTEMPTY | Errno::EXIST) => {
                return Err(invalid(format!("cannot mount volume on non-empty path: \"{target}\"")));
            }
            Err(error) => return Err(error.into()),
        },
        // An image that was built with a volume there may have kept the link.
        Some(FileType::Symlink)
            if rustix::fs::readlinkat(&parent, *name, Vec::new())?
                .to_bytes()
                .starts_with(VOLUMES_FOLDER.as_bytes()) =>
        {
            rustix::fs::unlinkat(&parent, *name, AtFlags::empty())?;
        }
        Some(_) => return Err(invalid("the image has something else than an empty directory there")),
    }
    Ok(rustix::fs::symlinkat(folder, &parent, *name)?)
}

/// Shows `new` where the volume is now. `false` if something of it is open: then nothing was done.
pub(crate) fn replace(volume: &str, new: BorrowedFd<'_>) -> io::Result<bool> {
    let folder = folder_of(volume);
    // The first time this only says whether it could be taken off.
    match unmount(&*folder, UnmountFlags::EXPIRE | UnmountFlags::NOFOLLOW) {
        Err(Errno::AGAIN) => {}
        Err(Errno::BUSY) => return Ok(false),
        // Said so before, and not used since: now it is off.
        Ok(()) => return attach_at(&folder, new).map(|()| true),
        Err(error) => return Err(error.into()),
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let old = open_tree(rustix::fs::CWD, &*folder, flags)?;
    // Below the old one, so that nobody ever sees neither. Kernels before 6.5 cannot.
    let below = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_BENEATH;
    let beneath = move_mount(new, "", rustix::fs::CWD, &*folder, below).is_ok();
    match unmount(&*folder, UnmountFlags::NOFOLLOW) {
        Ok(()) if beneath => Ok(true),
        Ok(()) => match attach_at(&folder, new) {
            Ok(()) => Ok(true),
            Err(error) => attach_at(&folder, old.as_fd()).and(Err(error)),
        },
        Err(Errno::BUSY) if beneath => {
            // Opened in this very moment: both go, and the old one comes back.
            unmount(&*folder, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
            unmount(&*folder, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
            attach_at(&folder, old.as_fd()).map(|()| false)
        }
        Err(Errno::BUSY) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn attach_at(folder: &str, mount: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let target: OwnedFd = rustix::fs::open(folder, flags, Mode::empty())?;
    attach(mount, target.as_fd())
}
