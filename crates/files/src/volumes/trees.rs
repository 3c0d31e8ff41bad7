//! Folders with what some versions of a volume changed, as layers of an overlay: files are hard links to their
//! contents, what was removed is a whiteout (a device 0/0, which Linux lets anybody make). The newest version of
//! a volume is a few of them one over the other, so making a version costs what it changes.
//!
//! Layout: `<root>/<volume>/<from>-<to>/…`. One that has its name is whole.

use super::contents::{VolumeContent, VolumeContents};
use crate::{IoFailure, ObjectError, io_failure::IoContext, trees::copy_file};
use evoke_core::VolumeId;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
};

/// One entry of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeEntry {
    /// Where it is, without a slash at the start. Checked by whoever made it.
    pub path: String,
    /// What it is.
    pub kind: VolumeEntryKind,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeEntryKind {
    /// A file.
    File {
        /// Its content.
        content: VolumeContent,
        /// Its permission bits.
        mode: u32,
    },
    /// A folder.
    Folder {
        /// Its permission bits.
        mode: u32,
    },
    /// A symbolic link to there.
    Link(String),
}

/// The place of the folders. Cheap to clone.
#[derive(Clone)]
pub struct VolumeTrees {
    root: PathBuf,
    contents: VolumeContents,
}

impl VolumeTrees {
    /// Folders below `root` over `contents`, both on one file system.
    pub fn open(root: &Path, contents: VolumeContents) -> Result<Self, IoFailure> {
        let empty = root.join("empty");
        fs::create_dir_all(&empty).during("create", &empty)?;
        Ok(Self { root: root.to_owned(), contents })
    }

    /// A folder with nothing in it.
    pub fn empty(&self) -> PathBuf {
        self.root.join("empty")
    }

    /// Where the folder of these versions is, if it was made.
    pub fn path(&self, volume: VolumeId, from: u64, to: u64) -> PathBuf {
        self.root.join(volume.to_string()).join(format!("{from}-{to}"))
    }

    /// Makes the folder of these versions, unless it is there: `entries` appear in it (each folder that one
    /// lies in must be among them), and the paths `removed` disappear from what is below it.
    pub fn build(
        &self,
        volume: VolumeId,
        (from, to): (u64, u64),
        entries: &[VolumeEntry],
        removed: &[String],
    ) -> Result<PathBuf, ObjectError> {
        let path = self.path(volume, from, to);
        if path.is_dir() {
            return Ok(path);
        }
        let folder = self.root.join(volume.to_string());
        fs::create_dir_all(&folder).during("create", &folder)?;
        let temporary = self.contents.temporary();
        let built = self.fill(&temporary, entries, removed);
        let renamed = built.and_then(|()| match fs::rename(&temporary, &path) {
            // Somebody else was faster with the same.
            Err(_) if path.is_dir() => Ok(()),
            renamed => Ok(renamed.during("rename to", &path)?),
        });
        if temporary.exists() {
            remove(&temporary);
        }
        renamed.map(|()| path)
    }

    fn fill(&self, at: &Path, entries: &[VolumeEntry], removed: &[String]) -> Result<(), ObjectError> {
        make_folder(at)?;
        let by_path: BTreeMap<&str, &VolumeEntryKind> =
            entries.iter().map(|entry| (entry.path.as_str(), &entry.kind)).collect();
        // Sorted by path, a folder comes before what is in it.
        let mut sources = HashMap::new();
        for (path, kind) in &by_path {
            let target = at.join(path);
            match kind {
                VolumeEntryKind::Folder { .. } => make_folder(&target)?,
                VolumeEntryKind::Link(to) => symlink(to, &target).during("create", &target)?,
                VolumeEntryKind::File { content, mode } => {
                    self.link(*content, *mode, &target, &mut sources)?
                }
            }
        }
        for path in removed {
            if by_path.contains_key(path.as_str()) || !is_folder(&by_path, parent(path)) {
                continue;
            }
            let target = at.join(path);
            mknodat(CWD, &target, FileType::CharacterDevice, Mode::empty(), 0).during("create", &target)?;
        }
        // Last, because one that may not be written to could not be filled.
        for (path, kind) in by_path.iter().rev() {
            if let VolumeEntryKind::Folder { mode } = kind {
                let target = at.join(path);
                fs::set_permissions(&target, Permissions::from_mode(*mode))
                    .during("set the mode of", &target)?;
            }
        }
        fs::set_permissions(at, Permissions::from_mode(0o755)).during("set the mode of", at)?;
        Ok(())
    }

    fn link(
        &self,
        content: VolumeContent,
        mode: u32,
        target: &Path,
        sources: &mut HashMap<(VolumeContent, u32), PathBuf>,
    ) -> Result<(), ObjectError> {
        let source = match sources.entry((content, mode)) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::hash_map::Entry::Vacant(new) => {
                new.insert(self.contents.with_mode(content, mode)?)
            }
        };
        match fs::hard_link(&*source, target) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(ObjectError::Io(IoFailure { action: "link to", path: source.clone(), source: error }))
            }
            // Too many links to one file, or a file system without them.
            Err(_) => {
                copy_file(source, target, mode)?;
                *source = target.to_owned();
                Ok(())
            }
        }
    }

    /// Removes the folders of a volume for which `keep` says no.
    pub fn remove_others(&self, volume: VolumeId, keep: &dyn Fn(u64, u64) -> bool) -> Result<(), IoFailure> {
        let folder = self.root.join(volume.to_string());
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.during("list", &folder)?,
        };
        for entry in entries {
            let entry = entry.during("list", &folder)?;
            let name = entry.file_name();
            let range = name.to_str().and_then(|name| name.split_once('-'));
            let range = range.and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
            if range.is_some_and(|(from, to)| keep(from, to)) {
                continue;
            }
            // Out of its name first, so that a half-removed one is never found.
            let doomed = self.contents.temporary();
            fs::rename(entry.path(), &doomed).during("rename to", &doomed)?;
            remove(&doomed);
        }
        Ok(())
    }

    /// The volumes that have folders.
    pub fn volumes(&self) -> Result<Vec<VolumeId>, IoFailure> {
        let entries = fs::read_dir(&self.root).during("list", &self.root)?;
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        Ok(names.filter_map(|name| name.parse().ok()).collect())
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

fn is_folder(entries: &BTreeMap<&str, &VolumeEntryKind>, path: &str) -> bool {
    path.is_empty() || matches!(entries.get(path), Some(VolumeEntryKind::Folder { .. }))
}

fn make_folder(path: &Path) -> Result<(), IoFailure> {
    DirBuilder::new().mode(0o700).create(path).during("create", path)
}

/// Removes a tree whose folders may be closed to us. What could not be removed is in the folder that the next
/// start clears.
pub(super) fn remove(tree: &Path) {
    if fs::remove_dir_all(tree).is_ok() {
        return;
    }
    open_up(tree);
    if let Err(error) = fs::remove_dir_all(tree) {
        tracing::warn!(path = %tree.display(), %error, "could not remove a folder of a volume yet");
    }
}

fn open_up(folder: &Path) {
    // What cannot be opened up is told by the removal that follows.
    let _ = fs::set_permissions(folder, Permissions::from_mode(0o700));
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            open_up(&entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ContentHash, ObjectStore};
    use evoke_core::SystemClock;
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    use std::sync::Arc;

    fn entry(path: &str, kind: VolumeEntryKind) -> VolumeEntry {
        VolumeEntry { path: path.into(), kind }
    }

    #[test]
    fn a_folder_shows_what_came_and_hides_what_went() {
        let folder = tempfile::tempdir().unwrap();
        let objects = ObjectStore::open(&folder.path().join("objects"), Arc::new(SystemClock)).unwrap();
        let contents = VolumeContents::open(&folder.path().join("volumes"), objects.clone()).unwrap();
        let trees = VolumeTrees::open(&folder.path().join("volumes/trees"), contents).unwrap();
        let hash = ContentHash::of(b"x");
        objects.put(hash, b"x").unwrap();
        let content = VolumeContent::Object(hash);
        let entries = [
            entry("d/run", VolumeEntryKind::File { content, mode: 0o755 }),
            entry("d", VolumeEntryKind::Folder { mode: 0o500 }),
            entry("link", VolumeEntryKind::Link("d/run".into())),
            entry("was-folder", VolumeEntryKind::File { content, mode: 0o644 }),
        ];
        let removed = ["d/old", "was-folder/x", "gone", "gone/below"].map(String::from);
        let volume = VolumeId::from_bits(1);
        let path = trees.build(volume, (2, 3), &entries, &removed).unwrap();
        assert_eq!(fs::read_to_string(path.join("link")).unwrap(), "x");
        let mode = |name: &str| fs::symlink_metadata(path.join(name)).unwrap().mode() & 0o7777;
        assert_eq!((mode("d"), mode("d/run"), mode("was-folder")), (0o500, 0o755, 0o644));
        for name in ["d/old", "gone"] {
            assert!(fs::symlink_metadata(path.join(name)).unwrap().file_type().is_char_device(), "{name}");
        }
        assert_eq!(trees.build(volume, (2, 3), &[], &[]).unwrap(), path);
        assert_eq!(trees.volumes().unwrap(), [volume]);
        trees.remove_others(volume, &|from, to| (from, to) == (2, 3)).unwrap();
        assert!(path.exists());
        trees.remove_others(volume, &|_, _| false).unwrap();
        assert!(!path.exists());
    }
}
