//! The data folder as the helper sees it: which paths a server may name, and the folders that are root's.
//!
//! The folder belongs to the service user, who may rename anything in it at any time, so paths are resolved
//! beneath its descriptor without following links, and what is found is used by descriptor from then on.
//! `containers/` and the inside of each layer are root's and closed to the service user: their files carry
//! the ids and the set-id bits of the containers they belong to.

use super::HelperConfig;
use super::sys::{self, Step};
use crate::{Owner, RuntimeError};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The tree of a layer inside its closed folder.
pub(super) const LAYER_TREE: &str = "fs";
/// What is being removed, inside `containers/`.
pub(super) const TRASH: &str = ".trash";
/// What is being unpacked, inside `containers/`.
pub(super) const UNPACKING: &str = ".unpack";

/// The helper's view of the file system.
#[derive(Debug)]
pub(super) struct Folders {
    data_path: PathBuf,
    data: OwnedFd,
    pub(super) containers: OwnedFd,
    pub(super) layers: OwnedFd,
    pub(super) trash: OwnedFd,
    pub(super) unpacking: OwnedFd,
    read_only_roots: Vec<PathBuf>,
    service: (u32, u32),
}

fn refused(text: impl Into<String>) -> RuntimeError {
    RuntimeError::Refused(text.into())
}

/// A name that is one component and cannot be confused with ours.
pub(super) fn is_plain_name(name: &str, length_max: usize) -> bool {
    let fits = (1..=length_max).contains(&name.len()) && !name.starts_with('.');
    fits && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

impl Folders {
    /// Opens the data folder and makes what the helper needs in it.
    pub(super) fn open(config: &HelperConfig) -> Result<Self, RuntimeError> {
        if !config.data.is_absolute() {
            return Err(refused("the data folder's path is not absolute"));
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let data = rustix::fs::open(&config.data, flags, Mode::empty()).step("opening the data folder")?;
        let containers = own_folder(data.as_fd(), "containers", 0o700).step("making containers/")?;
        // The service user may see which layers exist; each of them is closed.
        let layers = own_folder(data.as_fd(), "layers", 0o755).step("making layers/")?;
        let trash = own_folder(containers.as_fd(), TRASH, 0o700).step("making the trash")?;
        let unpacking =
            own_folder(containers.as_fd(), UNPACKING, 0o700).step("making the unpacking folder")?;
        Ok(Self {
            data_path: config.data.clone(),
            data,
            containers,
            layers,
            trash,
            unpacking,
            read_only_roots: config.read_only_roots.clone(),
            service: (config.service_uid, config.service_gid),
        })
    }

    /// Opens the tree behind a path that a server named, with the checks that its claimed owner demands.
    pub(super) fn open_tree(
        &self,
        path: &Path,
        owner: Owner,
        read_only: bool,
    ) -> Result<OwnedFd, RuntimeError> {
        match owner {
            Owner::Canonical => self.open_layer(path),
            Owner::Single { uid, gid } => self.open_single(path, (uid, gid), read_only),
        }
    }

    /// The tree of a layer, given its folder below `layers/`, or what is at a path in it.
    fn open_layer(&self, path: &Path) -> Result<OwnedFd, RuntimeError> {
        let layers = self.data_path.join("layers");
        let mut parts = path.strip_prefix(&layers).unwrap_or(Path::new("")).components();
        let first = parts.next().map(|part| layers.join(part));
        let name = self.layer_name(first.as_deref().unwrap_or(path))?;
        let path = Path::new(&name).join(LAYER_TREE).join(parts.as_path());
        match beneath(self.layers.as_fd(), &path, OFlags::PATH) {
            Ok(tree) => Ok(tree),
            Err(Errno::NOENT) => Err(RuntimeError::NotFound(format!("layer {name}"))),
            Err(error) => Err(RuntimeError::step(format!("opening layer {name}"), error)),
        }
    }

    fn open_single(&self, path: &Path, ids: (u32, u32), read_only: bool) -> Result<OwnedFd, RuntimeError> {
        let shown = path.display();
        if let Ok(inner) = path.strip_prefix(&self.data_path) {
            if ids != self.service {
                return Err(refused(format!("{shown} would be shared as another user's than the service's")));
            }
            return match beneath(self.data.as_fd(), inner, OFlags::PATH) {
                Ok(tree) => Ok(tree),
                Err(Errno::NOENT) => Err(RuntimeError::NotFound(shown.to_string())),
                Err(error) => Err(RuntimeError::step(format!("opening {shown}"), error)),
            };
        }
        if !read_only {
            return Err(refused(format!("{shown} lies outside of the data folder and would be writable")));
        }
        for root in &self.read_only_roots {
            let Ok(inner) = path.strip_prefix(root) else { continue };
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            let base =
                rustix::fs::open(root, flags, Mode::empty()).step(format!("opening {}", root.display()))?;
            if inner.as_os_str().is_empty() {
                return Ok(base);
            }
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
            let found = rustix::fs::openat2(&base, inner, flags, Mode::empty(), resolve);
            return found.step(format!("opening {shown}"));
        }
        Err(refused(format!("{shown} lies neither in the data folder nor in a configured read-only root")))
    }

    /// The name of a layer, given its folder's path.
    pub(super) fn layer_name(&self, path: &Path) -> Result<String, RuntimeError> {
        let inner = path.strip_prefix(&self.data_path).ok().and_then(|p| p.strip_prefix("layers").ok());
        let name = inner.and_then(Path::to_str).filter(|name| is_plain_name(name, 128));
        name.map(str::to_owned)
            .ok_or_else(|| refused(format!("{} is not a folder of layers/", path.display())))
    }

    /// Where a tree that may be removed hangs: its parent and its name.
    pub(super) fn removable(&self, path: &Path) -> Result<(BorrowedFd<'_>, String), RuntimeError> {
        let inner = path.strip_prefix(&self.data_path).ok();
        for (folder, fd) in [("layers", &self.layers), ("containers", &self.containers)] {
            let name = inner.and_then(|p| p.strip_prefix(folder).ok()).and_then(Path::to_str);
            if let Some(name) = name.filter(|name| is_plain_name(name, 128)) {
                return Ok((fd.as_fd(), name.to_owned()));
            }
        }
        Err(refused(format!("{} is not a folder of layers/ or containers/", path.display())))
    }

    /// Moves a tree out of the way, into the trash; absent is fine. Returns its name there.
    pub(super) fn discard(&self, parent: BorrowedFd<'_>, name: &str) -> io::Result<Option<CString>> {
        for _ in 0..DISCARD_TRIES {
            let mut random = [0u8; 8];
            rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
            let target = format!("{:016x}", u64::from_ne_bytes(random));
            let flags = rustix::fs::RenameFlags::NOREPLACE;
            match rustix::fs::renameat_with(parent, name, &self.trash, &*target, flags) {
                Ok(()) => return Ok(Some(CString::new(target)?)),
                Err(Errno::NOENT) => return Ok(None),
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::Error::other("no free name in the trash"))
    }

    /// The service user and its group.
    pub(super) fn service(&self) -> (u32, u32) {
        self.service
    }

    /// The data folder's path, which names this installation.
    pub(super) fn path(&self) -> &Path {
        &self.data_path
    }
}

/// Attempts at finding a free random name, each of which fails with a chance of one in 2^64.
const DISCARD_TRIES: usize = 4;

fn beneath(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    loop {
        match rustix::fs::openat2(
            root,
            path.as_os_str().as_bytes(),
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            resolve,
        ) {
            // The kernel asks to try again when something was renamed meanwhile.
            Err(Errno::AGAIN | Errno::INTR) => continue,
            other => return other,
        }
    }
}

/// A folder of root's, made or taken over.
pub(super) fn own_folder(parent: BorrowedFd<'_>, name: &str, mode: u32) -> io::Result<OwnedFd> {
    match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let folder = beneath(parent, Path::new(name), flags)?;
    rustix::fs::fchown(&folder, Some(Uid::ROOT), Some(Gid::ROOT))?;
    rustix::fs::fchmod(&folder, Mode::from_raw_mode(mode))?;
    Ok(folder)
}

/// A new folder of root's; it must not exist.
pub(super) fn new_folder(parent: BorrowedFd<'_>, name: &str, mode: u32) -> io::Result<OwnedFd> {
    rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700))?;
    own_folder(parent, name, mode)
}

/// Whether `name` exists in `parent`.
pub(super) fn exists(parent: BorrowedFd<'_>, name: &str) -> bool {
    rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

/// The names in a folder that are not ours to hide.
pub(super) fn plain_names(folder: BorrowedFd<'_>) -> io::Result<Vec<String>> {
    let names = evoke_guest::tree::names(folder)?;
    Ok(names.into_iter().filter_map(|(n, _)| n.into_string().ok()).filter(|n| !n.starts_with('.')).collect())
}

/// `/dev/null`, for the standard descriptors of guests.
pub(super) fn open_null() -> Result<OwnedFd, RuntimeError> {
    sys::open("/dev/null", OFlags::RDWR).step("opening /dev/null")
}
