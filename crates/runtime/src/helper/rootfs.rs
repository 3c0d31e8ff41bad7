//! Makes the mounts of a container: an overlay over id-mapped layers, `/dev`, binds. All are made here, where
//! there is root, and sent to the container's init as descriptors; nothing is ever mounted on the host.

use super::folders::own_folder;
use super::sys::{self, Step};
use crate::RuntimeError;
use crate::gpus::Edits;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid, makedev};
use rustix::mount::{MountAttrFlags, UnmountFlags};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Where layers hang for the moment in which the kernel takes them into an overlay: a folder in `containers/` with
/// a small file system mounted over it, in the helper's own mount namespace.
const STAGE: &str = ".stage";

/// Layers that one overlay takes, with names as [`stage_name`] makes them: every kernel takes a stack of them as
/// one option of fewer than 256 characters.
const STACK_MAX: usize = 100;
/// The upper folder on the stage; no layer is called so.
const UPPER: &str = "-";

/// The helper's own corner of its mount namespace.
#[derive(Debug)]
pub(super) struct Stage {
    folder: OwnedFd,
}

impl Stage {
    /// Prepares the stage. Must run after the helper has a mount namespace of its own.
    pub(super) fn open(containers: BorrowedFd<'_>) -> Result<Self, RuntimeError> {
        let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        let options = [("size", "1m"), ("mode", "0700")];
        let stage = sys::new_mount("tmpfs", &options, flags).step("mounting the stage")?;
        let target = own_folder(containers, STAGE, 0o700).step("making the stage")?;
        sys::attach(stage.as_fd(), target.as_fd()).step("attaching the stage")?;
        Ok(Self { folder: own_folder(containers, STAGE, 0o700).step("opening the stage")? })
    }

    /// An overlay of `layers` (bottom first, detached mounts) with `upper` on top, which is a detached mount
    /// with the folders `upper` and `work` in it. What the overlay does on its own account it does as host user
    /// `base`, the container's root: no other user could own files in an id-mapped upper folder.
    pub(super) fn overlay(
        &self,
        layers: &[OwnedFd],
        upper: &OwnedFd,
        base: u32,
    ) -> Result<OwnedFd, RuntimeError> {
        if layers.len() > STACK_MAX {
            let (below, above) = layers.split_at(STACK_MAX);
            // What lies lowest hides nothing outside of itself, so that it may be a stack of its own.
            let mut layers = vec![self.stack(below)?];
            for layer in above {
                layers.push(layer.try_clone().step("keeping a layer")?);
            }
            return self.overlay(&layers, upper, base);
        }
        let mut hung = Hung { stage: self, names: Vec::new() };
        let lower = hung.layers(layers)?;
        hung.hang(UPPER.to_owned(), upper.as_fd()).step("staging the upper folder")?;
        rustix::process::fchdir(&self.folder).step("entering the stage")?;
        let options = [
            ("lowerdir", &*lower),
            ("upperdir", &*format!("{UPPER}/upper")),
            ("workdir", &*format!("{UPPER}/work")),
            // Renaming directories of a layer works as on any other file system.
            ("redirect_dir", "on"),
            ("index", "off"),
            ("metacopy", "off"),
            ("xino", "off"),
            // What a container wrote is lost with the machine anyway; committed layers are synced explicitly.
            ("volatile", ""),
            ("source", "evoke"),
        ];
        let flags = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
        let made = sys::as_file_user(base, || sys::new_mount("overlay", &options, flags));
        let made = made.and_then(|made| made).step("mounting the overlay");
        rustix::process::chdir("/").step("leaving the stage")?;
        made
    }
}

impl Stage {
    /// A read-only overlay of `layers`, bottom first: at least two, and at most what one overlay takes.
    fn stack(&self, layers: &[OwnedFd]) -> Result<OwnedFd, RuntimeError> {
        let mut hung = Hung { stage: self, names: Vec::new() };
        let lower = hung.layers(layers)?;
        rustix::process::fchdir(&self.folder).step("entering the stage")?;
        let options = [
            ("lowerdir", &*lower),
            ("redirect_dir", "follow"),
            ("index", "off"),
            ("metacopy", "off"),
            ("xino", "off"),
            ("source", "evoke"),
        ];
        let flags = MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_RDONLY;
        let made = sys::new_mount("overlay", &options, flags).step("mounting a stack of layers");
        rustix::process::chdir("/").step("leaving the stage")?;
        made
    }

    /// A detached mount of the directory `path` of a detached mount; made as host user `base` if it is missing.
    pub(super) fn below(&self, mount: &OwnedFd, path: &str, base: u32) -> Result<OwnedFd, RuntimeError> {
        const WHAT: &str = "opening the directory of a volume";
        let mut hung = Hung { stage: self, names: Vec::new() };
        hung.hang("v".to_owned(), mount.as_fd()).step("staging a volume")?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(&self.folder, "v", flags, Mode::empty()).step(WHAT)?;
        let made = sys::as_file_user(base, || evoke_guest::tree::make_dirs(root.as_fd(), path.as_bytes()));
        let folder = made.and_then(|made| made).step(WHAT)?;
        sys::clone_mount(folder.as_fd()).step(WHAT)
    }
}

/// Mounts on the stage, taken off again when done.
struct Hung<'a> {
    stage: &'a Stage,
    names: Vec<String>,
}

/// The name of a layer on the stage: as short as it can be.
fn stage_name(index: usize) -> String {
    const SIGNS: &[u8; 62] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    let sign = |digit: usize| char::from(SIGNS[digit % SIGNS.len()]);
    match index / SIGNS.len() {
        0 => sign(index).to_string(),
        high => format!("{}{}", sign(high), sign(index)),
    }
}

impl Hung<'_> {
    /// Hangs layers up; the stack that they are as an overlay's option, which names the highest first.
    fn layers(&mut self, layers: &[OwnedFd]) -> Result<String, RuntimeError> {
        for (index, layer) in layers.iter().enumerate() {
            self.hang(stage_name(index), layer.as_fd()).step("staging a layer")?;
        }
        Ok((0..layers.len()).rev().map(stage_name).collect::<Vec<_>>().join(":"))
    }

    fn hang(&mut self, name: String, mount: BorrowedFd<'_>) -> std::io::Result<()> {
        match rustix::fs::mkdirat(&self.stage.folder, &*name, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let target = rustix::fs::openat(&self.stage.folder, &*name, flags, Mode::empty())?;
        sys::attach(mount, target.as_fd())?;
        self.names.push(name);
        Ok(())
    }
}

impl Drop for Hung<'_> {
    fn drop(&mut self) {
        if rustix::process::fchdir(&self.stage.folder).is_err() {
            return;
        }
        for name in &self.names {
            // The overlay keeps what it needs; a mount that stayed would only be covered by the next one.
            let _ = rustix::mount::unmount(&**name, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
        // There is a root directory wherever there is a stage.
        let _ = rustix::process::chdir("/");
    }
}

/// A detached copy of a tree, with its owners translated.
pub(super) fn mapped_clone(
    tree: BorrowedFd<'_>,
    idmap: BorrowedFd<'_>,
    read_only: bool,
) -> Result<OwnedFd, RuntimeError> {
    let mount = sys::clone_mount(tree).step("cloning a tree")?;
    let mut flags = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
    if read_only {
        flags |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    sys::set_attributes(mount.as_fd(), flags, Some(idmap)).step("id-mapping a tree")?;
    Ok(mount)
}

/// `/dev` of a container whose root is host user `base`: a small file system with the usual nodes, which the
/// container itself could not make, and those of its devices.
pub(super) fn dev(base: u32, edits: &Edits) -> Result<OwnedFd, RuntimeError> {
    const NODES: [(&str, u32, u32); 6] =
        [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
    const LINKS: [(&str, &str); 5] = [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ];
    let ids = base.to_string();
    let options = [
        ("source", "tmpfs"),
        ("size", "64k"),
        ("nr_inodes", "512"),
        ("mode", "0755"),
        ("uid", &*ids),
        ("gid", &*ids),
    ];
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let dev = sys::new_mount("tmpfs", &options, flags).step("mounting /dev")?;
    let owner = (Some(Uid::from_raw(base)), Some(Gid::from_raw(base)));
    let make = || -> rustix::io::Result<()> {
        for (name, major, minor) in NODES {
            let device = makedev(major, minor);
            rustix::fs::mknodat(&dev, name, FileType::CharacterDevice, Mode::from_raw_mode(0o666), device)?;
            rustix::fs::chmodat(&dev, name, Mode::from_raw_mode(0o666), AtFlags::empty())?;
            rustix::fs::chownat(&dev, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        for (name, target) in LINKS {
            rustix::fs::symlinkat(target, &dev, name)?;
            rustix::fs::chownat(&dev, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        for name in ["pts", "shm", "mqueue"] {
            rustix::fs::mkdirat(&dev, name, Mode::from_raw_mode(0o755))?;
            rustix::fs::chownat(&dev, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(())
    };
    make().step("making device nodes")?;
    super::devices::make_nodes(dev.as_fd(), edits, base)?;
    Ok(dev)
}

/// Whether a descriptor's file is a directory.
pub(super) fn is_directory(fd: BorrowedFd<'_>) -> Result<bool, RuntimeError> {
    let stat = rustix::fs::statat(fd, "", AtFlags::EMPTY_PATH).step("looking at a tree")?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

/// Makes new files as asked but never writable for others, whatever the starter's mask was.
pub(super) fn set_umask() {
    rustix::process::umask(Mode::from_raw_mode(0o022));
}
