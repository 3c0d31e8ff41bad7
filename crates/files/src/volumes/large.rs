//! Contents larger than a block: `<first two>/<hash>` is the file, `<hash>.blocks` the list that it is named
//! by, `<hash>.<octal>` the same file with other permission bits (which hard links share).

use super::contents::VOLUME_BLOCK_BYTES;
use crate::{
    Collected, ContentHash, IoFailure, ObjectError,
    durable::sync_folder,
    hold::{Holds, Sweep},
    io_failure::IoContext,
    objects,
};
use evoke_core::{Clock, UnixMs};
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File, Permissions},
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// The large contents. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Large {
    root: PathBuf,
    clock: Arc<dyn Clock>,
    holds: Arc<Holds>,
}

impl Large {
    pub(super) fn open(root: &Path, clock: Arc<dyn Clock>) -> Result<Self, IoFailure> {
        fs::create_dir_all(root).during("create", root)?;
        let holds = Arc::new(Holds::new(clock.now()));
        Ok(Self { root: root.to_owned(), clock, holds })
    }

    /// The name of what these blocks make.
    pub(super) fn key(blocks: &[ContentHash], size: u64) -> ContentHash {
        let mut hasher = Sha256::new();
        hasher.update(b"evoke blocks of 8 MiB\n");
        hasher.update(size.to_le_bytes());
        blocks.iter().for_each(|block| hasher.update(block.0));
        ContentHash(hasher.finalize().into())
    }

    /// The hashes of a file's blocks, each without the zeros at its end.
    pub(super) fn blocks_of_file(file: &mut File) -> io::Result<Vec<ContentHash>> {
        let mut blocks = Vec::new();
        let mut buffer = Vec::new();
        loop {
            buffer.clear();
            file.by_ref().take(VOLUME_BLOCK_BYTES).read_to_end(&mut buffer)?;
            if buffer.is_empty() {
                return Ok(blocks);
            }
            blocks.push(ContentHash::of(stripped(&buffer)));
        }
    }

    /// Whether it is there. If so it is also held: no collection within its grace removes it.
    pub(super) fn exists(&self, key: ContentHash) -> bool {
        // Held before the look, so that no collection fits in between.
        self.holds.touch(key, self.clock.now());
        self.path(key, "").exists()
    }

    /// Gives the complete file at `temporary` its name, after it and its list are on stable storage.
    pub(super) fn adopt(
        &self,
        key: ContentHash,
        temporary: &Path,
        file: &File,
        blocks: &[ContentHash],
    ) -> Result<(), ObjectError> {
        self.holds.touch(key, self.clock.now());
        let path = self.path(key, "");
        if let Some(folder) = path.parent().filter(|folder| !folder.exists()) {
            fs::create_dir_all(folder).during("create", folder)?;
            sync_folder(&self.root)?;
        }
        let list: Vec<u8> = blocks.iter().flat_map(|block| block.0).collect();
        let noted = self.path(key, ".blocks");
        fs::write(&noted, list).during("write", &noted)?;
        file.set_permissions(Permissions::from_mode(objects::PLAIN_MODE))
            .during("set the mode of", temporary)?;
        file.sync_all().during("sync", temporary)?;
        fs::rename(temporary, &path).during("rename to", &path)?;
        Ok(sync_folder(path.parent().unwrap_or(&self.root))?)
    }

    /// Removes the contents for which `reachable` says no and that nobody stored or asked for within the grace.
    pub(super) fn collect(
        &self,
        reachable: &dyn Fn(&ContentHash) -> bool,
        now: UnixMs,
        grace_ms: u64,
        dry_run: bool,
    ) -> Result<Collected, IoFailure> {
        let holds = &self.holds;
        let mut sweep = Sweep { holds, reachable, now, grace_ms, dry_run, done: Collected::default() };
        for folder in fs::read_dir(&self.root).during("list", &self.root)? {
            let folder = folder.during("list", &self.root)?;
            let prefix = folder.file_name().to_string_lossy().into_owned();
            for entry in fs::read_dir(folder.path()).during("list", &folder.path())? {
                let entry = entry.during("list", &folder.path())?;
                let name = entry.file_name().to_string_lossy().into_owned();
                let hex = name.split_once('.').map_or(name.as_str(), |(hex, _)| hex);
                let Ok(key) = format!("{prefix}{hex}").parse::<ContentHash>() else { continue };
                sweep.look_at(key, &entry)?;
            }
        }
        Ok(sweep.end())
    }

    /// The list that a content is named by.
    pub(super) fn blocks(&self, key: ContentHash) -> io::Result<Vec<ContentHash>> {
        let list = fs::read(self.path(key, ".blocks"))?;
        let hashes = list.chunks_exact(32).filter_map(|bytes| <[u8; 32]>::try_from(bytes).ok());
        Ok(hashes.map(ContentHash).collect())
    }

    pub(super) fn open_content(&self, key: ContentHash) -> Result<File, ObjectError> {
        let path = self.path(key, "");
        match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(ObjectError::Missing(key)),
            opened => Ok(opened.during("open", &path)?),
        }
    }

    /// The path of a content with these permission bits, made as a copy where it is not there yet.
    pub(super) fn with_mode(
        &self,
        key: ContentHash,
        mode: u32,
        temporary: &Path,
    ) -> Result<PathBuf, ObjectError> {
        if mode == objects::PLAIN_MODE {
            return Ok(self.path(key, ""));
        }
        let path = self.path(key, &format!(".{mode:o}"));
        if !path.exists() {
            let source = self.open_content(key)?;
            let target = File::create_new(temporary).during("create", temporary)?;
            objects::copy_content(&source, &target).during("copy to", temporary)?;
            target.set_permissions(Permissions::from_mode(mode)).during("set the mode of", temporary)?;
            target.sync_all().during("sync", temporary)?;
            fs::rename(temporary, &path).during("rename to", &path)?;
        }
        Ok(path)
    }

    fn path(&self, key: ContentHash, suffix: &str) -> PathBuf {
        let hex = key.to_hex();
        self.root.join(&hex[..2]).join(format!("{}{suffix}", &hex[2..]))
    }
}

fn stripped(block: &[u8]) -> &[u8] {
    let end = block.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    &block[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use evoke_core::SystemClock;

    #[test]
    fn what_nothing_reaches_goes_after_its_grace() {
        let folder = tempfile::tempdir().unwrap();
        let large = Large::open(&folder.path().join("large"), Arc::new(SystemClock)).unwrap();
        let put = |text: &str| {
            let (path, hash) = (folder.path().join("temporary"), ContentHash::of(text.as_bytes()));
            fs::write(&path, text).unwrap();
            large.adopt(hash, &path, &File::open(&path).unwrap(), &[hash]).unwrap();
            hash
        };
        let (kept, gone) = (put("kept"), put("gone"));
        large.with_mode(gone, 0o755, &folder.path().join("temporary")).unwrap();
        let later = UnixMs(SystemClock.now().0 + 1_000);
        let collect = |now, dry_run| large.collect(&|key| *key == kept, now, 500, dry_run).unwrap();
        assert_eq!(collect(SystemClock.now(), false).removed, 0, "both are fresh");
        assert_eq!((collect(later, true).removed, collect(later, false).removed), (3, 3));
        assert!(large.exists(kept) && !large.exists(gone) && large.blocks(gone).is_err());
    }
}
