//! Devices of a container: that nobody else has them, and what its root gets of them.

use super::folders::own_folder;
use super::sys::{self, Step};
use super::{Helper, validate};
use crate::gpus::{self, Edits, GENERATE, LOAD, Mount};
use crate::{ContainerSpec, GPU_FILES_MAX, RuntimeError};
use evoke_guest::tree;
use rustix::fs::{AtFlags, FileType, FlockOperation, Gid, Mode, OFlags, Uid};
use rustix::mount::MountAttrFlags;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// What mends a specification that names what is not there.
fn mend() -> String {
    format!("the driver may have changed since: {GENERATE}")
}

impl Helper {
    /// What the container needs for its devices. Refused where another container has one of them.
    pub(super) fn devices(&self, spec: &ContainerSpec) -> Result<Edits, RuntimeError> {
        if spec.gpus.is_empty() {
            return Ok(Edits::default());
        }
        let owned = |gpu: &String| self.containers.iter().find(|(_, other)| other.gpus.contains(gpu));
        if let Some((gpu, (owner, _))) = spec.gpus.iter().find_map(|gpu| Some((gpu, owned(gpu)?))) {
            return Err(RuntimeError::Refused(format!("the GPU {gpu} is that of container {owner}")));
        }
        let edits = gpus::resolve(&self.gpus, &spec.gpus);
        let edits = edits.map_err(|error| RuntimeError::Refused(error.to_string()))?;
        if edits.mounts.len() > GPU_FILES_MAX {
            return Err(RuntimeError::Refused(format!("a driver of more than {GPU_FILES_MAX} files")));
        }
        edits.paths().try_for_each(|path| validate::target(path))?;
        Ok(edits)
    }
}

/// Locks the cards among these names against other installations on this machine. Declared ones are stand-ins
/// with numbers for names, which other installations may have as well.
pub(super) fn lock(names: &[String]) -> Result<Vec<OwnedFd>, RuntimeError> {
    let cards: Vec<_> = names.iter().filter(|name| name.starts_with("GPU-")).collect();
    if cards.is_empty() {
        return Ok(Vec::new());
    }
    let run = sys::open("/run", OFlags::RDONLY | OFlags::DIRECTORY).step("opening /run")?;
    let ours = own_folder(run.as_fd(), "evoke", 0o755).step("making /run/evoke")?;
    let folder = own_folder(ours.as_fd(), "gpus", 0o700).step("making /run/evoke/gpus")?;
    let lock = |name: &&String| {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(&folder, name.as_str(), flags, Mode::from_raw_mode(0o600));
        let file = file.step("opening a GPU's lock")?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(RuntimeError::Refused(format!(
                "the GPU {name} is in use by another data folder's Evoke on this machine"
            ))),
            Err(error) => Err(RuntimeError::step("locking a GPU", error)),
        }
    };
    cards.iter().map(lock).collect()
}

/// Makes a container's device nodes, as those of its root at host user `base`.
pub(super) fn make_nodes(dev: BorrowedFd<'_>, edits: &Edits, base: u32) -> Result<(), RuntimeError> {
    let owner = (Some(Uid::from_raw(base)), Some(Gid::from_raw(base)));
    for node in &edits.nodes {
        let shown = node.host.display();
        let stat = rustix::fs::stat(&node.host)
            .step(format!("looking at the device {shown} ({LOAD}; {})", mend()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice {
            return Err(RuntimeError::Refused(format!("{shown} is not a character device")));
        }
        let path = node.path.trim_start_matches("/dev/");
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let make = || -> std::io::Result<()> {
            let folder = tree::make_dirs(dev, folder.as_bytes())?;
            let mode = Mode::from_raw_mode(stat.st_mode & 0o777);
            match rustix::fs::mknodat(&folder, name, FileType::CharacterDevice, mode, stat.st_rdev) {
                // Said twice, or one that every container has.
                Err(rustix::io::Errno::EXIST) => return Ok(()),
                other => other?,
            }
            rustix::fs::chmodat(&folder, name, mode, AtFlags::empty())?;
            Ok(rustix::fs::chownat(&folder, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?)
        };
        make().step(format!("making {}", node.path))?;
    }
    Ok(())
}

/// A file or folder of the driver as a detached mount, and whether it is a folder.
pub(super) fn driver_mount(mount: &Mount) -> Result<(OwnedFd, bool), RuntimeError> {
    let shown = mount.host.display();
    let found = rustix::fs::open(&mount.host, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let found = found.step(format!("opening the driver's {shown} ({})", mend()))?;
    let directory = super::rootfs::is_directory(found.as_fd())?;
    let copy = sys::clone_mount(found.as_fd()).step(format!("cloning {shown}"))?;
    let flags = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOSUID;
    sys::set_attributes(copy.as_fd(), flags, None).step(format!("making {shown} read-only"))?;
    Ok((copy, directory))
}

/// Takes the traces of devices out of what a container wrote, before that becomes a layer: the empty files that
/// the driver's were bound to, and the links to them.
pub(super) fn remove_traces(upper: BorrowedFd<'_>, edits: &Edits) {
    for path in edits.paths() {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let Ok(folder) = tree::open_in(upper, folder.as_bytes(), flags) else { continue };
        let Ok(stat) = rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Symlink || (kind == FileType::RegularFile && stat.st_size == 0) {
            // One that stays is an empty file or a link that leads nowhere.
            let _ = rustix::fs::unlinkat(&folder, name, AtFlags::empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_is_locked_once_on_a_machine_and_a_stand_in_never() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let card = [format!("GPU-test-{}", std::process::id())];
        let held = lock(&card).unwrap();
        assert_eq!(held.len(), 1);
        assert!(matches!(lock(&card), Err(RuntimeError::Refused(_))));
        drop(held);
        assert!(lock(&card).is_ok());
        assert!(lock(&["0".to_owned()]).unwrap().is_empty());
        std::fs::remove_file(format!("/run/evoke/gpus/{}", card[0])).unwrap();
    }
}
