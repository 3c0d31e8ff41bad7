//! Network file systems: folders that containers write to live, and that clients read and change beside them.
//! Everything in one may have been made by user code, so paths are resolved beneath its root and nothing is
//! followed out of it.

use crate::{IoFailure, io_failure::IoContext};
use evoke_core::{Error, SharedVolumeId};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::{
    fs::{self, File},
    io::{self, Read},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Entries of one list.
const ENTRIES_MAX: usize = 1_000_000;
/// Folders inside each other that are looked into.
const DEPTH_MAX: usize = 200;

/// The place of the folders. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SharedFolders {
    root: PathBuf,
    next_temporary: Arc<AtomicU64>,
}

/// One entry of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedEntry {
    /// Where it is, from the folder that was listed on.
    pub path: String,
    /// What it is.
    pub kind: SharedKind,
    /// Its length in bytes.
    pub size: u64,
    /// When it was last written to, in seconds since 1970.
    pub mtime: u64,
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SharedKind {
    /// A file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link, or what else there may be.
    Other,
}

impl SharedFolders {
    /// The folders below `root`, which is made if it is not there.
    pub fn open(root: &Path) -> Result<Self, IoFailure> {
        fs::create_dir_all(root).during("create", root)?;
        Ok(Self { root: root.to_owned(), next_temporary: Arc::default() })
    }

    /// The folder of one, made if it is not there.
    pub fn folder(&self, id: SharedVolumeId) -> Result<PathBuf, IoFailure> {
        let path = self.root.join(id.to_string());
        fs::create_dir_all(&path).during("create", &path)?;
        Ok(path)
    }

    /// Removes one with all that is in it.
    pub fn remove_folder(&self, id: SharedVolumeId) -> Result<(), IoFailure> {
        let path = self.root.join(id.to_string());
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.during("remove", &path),
        }
    }

    /// Writes a file, whole or not at all; the folders that it needs are made.
    pub fn write(&self, id: SharedVolumeId, path: &str, content: &mut dyn Read) -> Result<(), Error> {
        let root = self.open_root(id)?;
        let (parents, name) = path.rsplit_once('/').unwrap_or(("", path));
        let mut at = root;
        for part in parents.split('/').filter(|part| !part.is_empty()) {
            at = match open_at(at.as_fd(), part, OFlags::PATH | OFlags::DIRECTORY) {
                Err(Errno::NOENT) => {
                    rustix::fs::mkdirat(&at, part, Mode::from_raw_mode(0o755))
                        .map_err(|e| failed(path, e))?;
                    open_at(at.as_fd(), part, OFlags::PATH | OFlags::DIRECTORY)
                }
                opened => opened,
            }
            .map_err(|error| failed(path, error))?;
        }
        let temporary = format!(".evoke-{}", self.next_temporary.fetch_add(1, Ordering::Relaxed));
        let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&at, &*temporary, flags, Mode::from_raw_mode(0o644));
        let mut file = File::from(file.map_err(|error| failed(path, error))?);
        let written = io::copy(content, &mut file).and_then(|_| file.sync_data());
        let named = written.and_then(|()| Ok(rustix::fs::renameat(&at, &*temporary, &at, name)?));
        named.map_err(|error| {
            // What is left is hidden by its name and replaced by a later write.
            let _ = rustix::fs::unlinkat(&at, &*temporary, AtFlags::empty());
            failed(path, error)
        })
    }

    /// Opens a file for reading, with its length.
    pub fn read(&self, id: SharedVolumeId, path: &str) -> Result<(File, u64), Error> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let file = open_in(self.open_root(id)?.as_fd(), path, flags).map_err(|error| failed(path, error))?;
        let file = File::from(file);
        let meta = file.metadata().map_err(|error| failed(path, error))?;
        if !meta.is_file() {
            return Err(Error::invalid(format!("'{path}' is not a file")));
        }
        Ok((file, meta.len()))
    }

    /// The entries of a folder, or of everything below it; a file lists itself.
    pub fn list(&self, id: SharedVolumeId, path: &str, recursive: bool) -> Result<Vec<SharedEntry>, Error> {
        let root = self.open_root(id)?;
        let found = open_in(root.as_fd(), path, OFlags::PATH).map_err(|error| failed(path, error))?;
        let stat = rustix::fs::fstat(&found).map_err(|error| failed(path, error))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Ok(vec![entry(path.to_owned(), &stat)]);
        }
        let folder = open_in(root.as_fd(), path, OFlags::RDONLY | OFlags::DIRECTORY);
        let mut entries = Vec::new();
        let folder = folder.map_err(|error| failed(path, error))?;
        walk(folder.as_fd(), "", if recursive { DEPTH_MAX } else { 0 }, &mut entries)
            .map_err(|error| failed(path, error))?;
        Ok(entries)
    }

    /// Removes a file, or a folder with all that is in it.
    pub fn remove(&self, id: SharedVolumeId, path: &str, recursive: bool) -> Result<(), Error> {
        let root = self.open_root(id)?;
        let (parents, name) = path.rsplit_once('/').unwrap_or(("", path));
        let parent = open_in(root.as_fd(), parents, OFlags::PATH | OFlags::DIRECTORY);
        let parent = parent.map_err(|error| failed(path, error))?;
        match rustix::fs::unlinkat(&parent, name, AtFlags::empty()) {
            Ok(()) => return Ok(()),
            Err(Errno::ISDIR | Errno::PERM) if recursive => {}
            Err(Errno::ISDIR) => {
                return Err(Error::invalid(format!("'{path}' is a directory; pass recursive=True (or -r)")));
            }
            Err(error) => return Err(failed(path, error)),
        }
        remove_folder(parent.as_fd(), name, DEPTH_MAX).map_err(|error| failed(path, error))
    }

    fn open_root(&self, id: SharedVolumeId) -> Result<OwnedFd, Error> {
        let path = self.folder(id)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(&path, flags, Mode::empty()).map_err(|error| failed("/", error))
    }
}

fn failed(path: &str, error: impl Into<io::Error>) -> Error {
    let error = error.into();
    match error.kind() {
        io::ErrorKind::NotFound => Error::not_found(format!("There is no file or directory '{path}'")),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Error::new(evoke_core::ErrorCode::ResourceExhausted, format!("'{path}': {error}"))
        }
        _ => Error::precondition(format!("'{path}': {error}")),
    }
}

fn open_at(at: BorrowedFd<'_>, name: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(at, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Opens a path as if `root` were `/`.
fn open_in(root: BorrowedFd<'_>, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let path = if path.is_empty() { "." } else { path };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

fn names(folder: BorrowedFd<'_>) -> rustix::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name != "." && name != ".." {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn walk(
    folder: BorrowedFd<'_>,
    prefix: &str,
    depth: usize,
    entries: &mut Vec<SharedEntry>,
) -> rustix::io::Result<()> {
    for name in names(folder)? {
        let Ok(stat) = rustix::fs::statat(folder, &*name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        if entries.len() >= ENTRIES_MAX {
            return Ok(());
        }
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}/{name}") };
        let found = entry(path.clone(), &stat);
        let inside = found.kind == SharedKind::Folder && depth > 0;
        entries.push(found);
        if inside {
            if let Ok(inner) = open_at(folder, &name, OFlags::RDONLY | OFlags::DIRECTORY) {
                walk(inner.as_fd(), &path, depth - 1, entries)?;
            }
        }
    }
    Ok(())
}

fn remove_folder(parent: BorrowedFd<'_>, name: &str, depth: usize) -> rustix::io::Result<()> {
    let folder = open_at(parent, name, OFlags::RDONLY | OFlags::DIRECTORY)?;
    for inner in names(folder.as_fd())? {
        match rustix::fs::unlinkat(&folder, &*inner, AtFlags::empty()) {
            Err(Errno::ISDIR | Errno::PERM) if depth > 0 => remove_folder(folder.as_fd(), &inner, depth - 1)?,
            removed => removed?,
        }
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

fn entry(path: String, stat: &rustix::fs::Stat) -> SharedEntry {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => SharedKind::File,
        FileType::Directory => SharedKind::Folder,
        _ => SharedKind::Other,
    };
    SharedEntry { path, kind, size: stat.st_size.max(0) as u64, mtime: stat.st_mtime.max(0) as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_written_listed_read_and_removed_and_links_lead_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("secret"), "host").unwrap();
        let shared = SharedFolders::open(&folder.path().join("shared")).unwrap();
        let id = SharedVolumeId::from_bits(1);
        shared.write(id, "a/b/x", &mut &b"hello"[..]).unwrap();
        let root = shared.folder(id).unwrap();
        std::os::unix::fs::symlink("../../secret", root.join("out")).unwrap();
        std::os::unix::fs::symlink("/", root.join("host")).unwrap();
        let list = |path: &str, recursive| -> Vec<String> {
            shared.list(id, path, recursive).unwrap().into_iter().map(|entry| entry.path).collect()
        };
        assert_eq!(list("", true), ["a", "a/b", "a/b/x", "host", "out"]);
        assert_eq!(list("a", false), ["b"]);
        assert_eq!(list("a/b/x", false), ["a/b/x"]);
        let (mut file, length) = shared.read(id, "a/b/x").unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), length), ("hello", 5));
        for bad in ["out", "host/etc/passwd", "no", "a"] {
            assert!(shared.read(id, bad).is_err(), "{bad}");
        }
        assert!(shared.write(id, "host/x", &mut &b"1"[..]).is_err());
        assert!(shared.remove(id, "a", false).is_err());
        shared.remove(id, "a", true).unwrap();
        shared.remove(id, "host", true).unwrap();
        assert_eq!(list("", true), ["out"]);
        shared.remove_folder(id).unwrap();
        assert!(!root.exists());
    }
}
