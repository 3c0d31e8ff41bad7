//! Stubs: empty folders and files that are made only to mount something on. Where a container's changes become a
//! layer they would be taken for something that its program made.

use super::start::Tree;
use crate::ContainerSpec;
use rustix::fs::{AtFlags, FileType, OFlags};
use std::os::fd::{AsFd, BorrowedFd};

/// The paths that mounting will have to make, as no layer has them: each below the ones that follow it.
pub(super) fn of(spec: &ContainerSpec, layers: &[Tree]) -> Vec<String> {
    let targets = spec.binds.iter().map(|bind| &bind.target);
    let targets = targets.chain(spec.memory.iter().map(|folder| &folder.target));
    let targets = targets.chain(spec.files.iter().map(|file| &file.path));
    let targets = targets.chain(spec.volumes.iter().map(|volume| &volume.target));
    let mut made = Vec::new();
    for target in targets {
        let mut path = target.trim_matches('/');
        while !path.is_empty() {
            let there = |layer: &Tree| {
                evoke_guest::tree::open_in(layer.fd.as_fd(), path.as_bytes(), OFlags::PATH | OFlags::NOFOLLOW)
                    .is_ok()
            };
            if layers.iter().any(there) {
                break;
            }
            made.push(path.to_owned());
            path = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        }
    }
    // A folder may hold several: it goes after the last of them.
    made.sort_by_key(|path| std::cmp::Reverse(path.matches('/').count()));
    made
}

/// Takes out of what a container wrote the stubs that are as they were made.
pub(super) fn remove(upper: BorrowedFd<'_>, stubs: &[String]) {
    for path in stubs {
        let (parents, name) = path.rsplit_once('/').unwrap_or(("", path));
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let Ok(parent) = evoke_guest::tree::open_in(upper, parents.as_bytes(), flags) else { continue };
        let Ok(stat) = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        let how = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => AtFlags::REMOVEDIR,
            FileType::RegularFile if stat.st_size == 0 => AtFlags::empty(),
            _ => continue,
        };
        // A folder that is not empty is no stub any more.
        let _ = rustix::fs::unlinkat(&parent, name, how);
    }
}
