//! Contents of volumes' files. One that fits into a block is a content of the object store; a larger one is a
//! file of its own, named by the list of its blocks. Either way it is one plain file, so that folders hold it by
//! a hard link and reading it is reading a file.
//!
//! Clients send blocks (8 MiB, hashed and sent without the zeros at their end). They lie in `blocks/` until a
//! file is made of them, and are not synced: what they become is. After the machine was started anew they are
//! thrown away, because nobody knows whether they are whole; a client sends them again.

use super::large::Large;
use crate::{Collected, ContentHash, IoFailure, ObjectError, ObjectStore, io_failure::IoContext};
use evoke_core::UnixMs;
use std::{
    collections::HashMap,
    fmt,
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Bytes of a block, as the protocol has it.
pub const VOLUME_BLOCK_BYTES: u64 = 8 << 20;

/// Where a file's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VolumeContent {
    /// In the object store, by the hash of all of it.
    Object(ContentHash),
    /// A file of its own, by the hash of its list of blocks.
    Large(ContentHash),
}

/// Why a text does not name a content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' does not name a content")]
pub struct ParseContentError(String);

impl fmt::Display for VolumeContent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Object(hash) => write!(f, "o{hash}"),
            Self::Large(hash) => write!(f, "l{hash}"),
        }
    }
}

impl FromStr for VolumeContent {
    type Err = ParseContentError;
    fn from_str(text: &str) -> Result<Self, ParseContentError> {
        let bad = || ParseContentError(text.chars().take(80).collect());
        let hash = text.get(1..).and_then(|hex| hex.parse().ok()).ok_or_else(bad)?;
        match text.as_bytes().first() {
            Some(b'o') => Ok(Self::Object(hash)),
            Some(b'l') => Ok(Self::Large(hash)),
            _ => Err(bad()),
        }
    }
}

/// A file as a client announces it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockFile {
    /// The hash of each block without the zeros at its end.
    pub blocks: Vec<ContentHash>,
    /// The file's length in bytes.
    pub size: u64,
    /// What the file was before, whose blocks need not be sent again.
    pub before: Option<VolumeContent>,
}

/// The contents of volumes. Cheap to clone.
#[derive(Clone)]
pub struct VolumeContents {
    objects: ObjectStore,
    pub(super) large: Large,
    blocks: PathBuf,
    tmp: PathBuf,
    next_temporary: Arc<AtomicU64>,
}

/// Contents that are made objects together.
const ADOPT_MAX: usize = 512;
/// Names one run of the machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

impl VolumeContents {
    /// The contents below `root`, which is made if it is not there, and in `objects`; both on one file system.
    pub fn open(root: &Path, objects: ObjectStore) -> Result<Self, IoFailure> {
        let (blocks, tmp) = (root.join("blocks"), root.join("tmp"));
        fs::create_dir_all(root).during("create", root)?;
        clear(&tmp)?;
        let boot = fs::read(BOOT_ID).unwrap_or_default();
        let noted = blocks.join("boot");
        if fs::read(&noted).ok().as_ref() != Some(&boot) {
            clear(&blocks)?;
            fs::write(&noted, boot).during("write", &noted)?;
        }
        let large = Large::open(&root.join("large"), objects.clock())?;
        Ok(Self { objects, large, blocks, tmp, next_temporary: Arc::default() })
    }

    /// [`ObjectStore::collect`] for the contents that are files of their own.
    pub fn collect(
        &self,
        reachable: &dyn Fn(&ContentHash) -> bool,
        now: UnixMs,
        grace_ms: u64,
        dry_run: bool,
    ) -> Result<Collected, IoFailure> {
        self.large.collect(reachable, now, grace_ms, dry_run)
    }

    /// A new name for a file on its way; what is there at the next start is removed.
    pub fn temporary(&self) -> PathBuf {
        self.tmp.join(self.next_temporary.fetch_add(1, Ordering::Relaxed).to_string())
    }

    /// Takes a block that a client sent.
    pub fn put_block(&self, hash: ContentHash, bytes: &[u8]) -> Result<(), ObjectError> {
        let got = ContentHash::of(bytes);
        if got != hash {
            return Err(ObjectError::WrongHash { wanted: hash, got });
        }
        let (temporary, path) = (self.temporary(), self.block_path(hash));
        fs::write(&temporary, bytes).during("write", &temporary)?;
        fs::rename(&temporary, &path).during("rename to", &path)?;
        Ok(())
    }

    /// Which blocks of `file` must be sent, by their index.
    pub fn missing_blocks(&self, file: &BlockFile) -> Vec<usize> {
        let known = match file.blocks.as_slice() {
            [] => true,
            [_] if file.size <= VOLUME_BLOCK_BYTES => false,
            _ => self.large.exists(Large::key(&file.blocks, file.size)),
        };
        if known {
            return Vec::new();
        }
        let before = self.blocks_of(file.before);
        let absent = |hash: &ContentHash| !before.contains_key(hash) && self.find_block(*hash).is_none();
        file.blocks.iter().enumerate().filter(|(_, hash)| absent(hash)).map(|(index, _)| index).collect()
    }

    /// How many bytes are free where contents are kept; nothing where the system does not say.
    pub fn room(&self) -> Option<u64> {
        let about = rustix::fs::statvfs(&self.blocks).ok()?;
        Some(about.f_bavail.saturating_mul(about.f_frsize))
    }

    /// Makes contents of files whose blocks are all there, in their order. Durable when it returns.
    pub fn assemble(&self, files: &[BlockFile]) -> Result<Vec<VolumeContent>, ObjectError> {
        let mut contents = Vec::with_capacity(files.len());
        let mut small = Vec::new();
        for file in files {
            let content = if file.size > VOLUME_BLOCK_BYTES {
                VolumeContent::Large(self.assemble_large(file)?)
            } else {
                VolumeContent::Object(self.assemble_small(file, &mut small)?)
            };
            contents.push(content);
            if small.len() >= ADOPT_MAX {
                self.objects.adopt_many(&std::mem::take(&mut small))?;
            }
        }
        self.objects.adopt_many(&small)?;
        for hash in files.iter().flat_map(|file| &file.blocks) {
            // They are part of something by now; the next start after a failure here removes the rest.
            let _ = fs::remove_file(self.block_path(*hash));
        }
        Ok(contents)
    }

    fn assemble_small(
        &self,
        file: &BlockFile,
        small: &mut Vec<(ContentHash, PathBuf)>,
    ) -> Result<ContentHash, ObjectError> {
        let Some(block) = file.blocks.first().copied() else {
            let empty = ContentHash::of(b"");
            self.objects.put(empty, b"")?;
            return Ok(empty);
        };
        let mut bytes = Vec::new();
        let path = self.find_block(block).ok_or(ObjectError::Missing(block))?;
        let length = fs::metadata(&path).during("look at", &path)?.len();
        if length == file.size {
            if !self.objects.contains(block) {
                small.push((block, path));
            }
            return Ok(block);
        }
        File::open(&path).and_then(|mut file| file.read_to_end(&mut bytes)).during("read", &path)?;
        bytes.resize(file.size as usize, 0);
        let whole = ContentHash::of(&bytes);
        self.objects.put(whole, &bytes)?;
        Ok(whole)
    }

    fn assemble_large(&self, file: &BlockFile) -> Result<ContentHash, ObjectError> {
        let key = Large::key(&file.blocks, file.size);
        if self.large.exists(key) {
            return Ok(key);
        }
        let before = self.blocks_of(file.before);
        let temporary = self.temporary();
        let target = File::create(&temporary).during("create", &temporary)?;
        for (index, hash) in file.blocks.iter().enumerate() {
            let at = index as u64 * VOLUME_BLOCK_BYTES;
            match (self.find_block(*hash), before.get(hash), file.before) {
                (Some(path), ..) => {
                    let source = File::open(&path).during("open", &path)?;
                    copy_range(&source, 0, &target, at, VOLUME_BLOCK_BYTES).during("copy", &path)?;
                }
                (None, Some(old), Some(content)) => {
                    let (source, _) = self.open_content(content)?;
                    let from = *old as u64 * VOLUME_BLOCK_BYTES;
                    copy_range(&source, from, &target, at, VOLUME_BLOCK_BYTES).during("copy", &temporary)?;
                }
                _ => return Err(ObjectError::Missing(*hash)),
            }
        }
        target.set_len(file.size).during("set the length of", &temporary)?;
        self.large.adopt(key, &temporary, &target, &file.blocks)?;
        Ok(key)
    }

    /// Makes contents of finished files, which are moved, in their order with their lengths. Durable when it
    /// returns; the files must be on the same file system and not be written to any more.
    pub fn import(&self, files: &[PathBuf]) -> Result<Vec<(VolumeContent, u64)>, ObjectError> {
        let mut contents = Vec::with_capacity(files.len());
        let mut small = Vec::new();
        for path in files {
            let mut file = File::open(path).during("open", path)?;
            let length = file.metadata().during("look at", path)?.len();
            let content = if length > VOLUME_BLOCK_BYTES {
                let blocks = Large::blocks_of_file(&mut file).during("read", path)?;
                let key = Large::key(&blocks, length);
                if !self.large.exists(key) {
                    self.large.adopt(key, path, &file, &blocks)?;
                }
                VolumeContent::Large(key)
            } else {
                let (hash, _) = ContentHash::of_reader(&file).during("read", path)?;
                if !self.objects.contains(hash) {
                    small.push((hash, path.clone()));
                }
                VolumeContent::Object(hash)
            };
            contents.push((content, length));
            if small.len() >= ADOPT_MAX {
                self.objects.adopt_many(&std::mem::take(&mut small))?;
            }
        }
        self.objects.adopt_many(&small)?;
        for path in files {
            // Moved or linked by now; what stays is removed with its folder.
            let _ = fs::remove_file(path);
        }
        Ok(contents)
    }

    /// Opens a content for reading, with its length.
    pub fn open_content(&self, content: VolumeContent) -> Result<(File, u64), ObjectError> {
        let file = match content {
            VolumeContent::Object(hash) => self.objects.open_content(hash)?,
            VolumeContent::Large(key) => self.large.open_content(key)?,
        };
        let length = file.metadata().during("look at", &self.tmp)?.len();
        Ok((file, length))
    }

    /// The length of a content.
    pub fn size(&self, content: VolumeContent) -> Result<u64, ObjectError> {
        self.open_content(content).map(|(_, length)| length)
    }

    /// The path of a content with the permission bits `mode`, for hard links.
    pub(super) fn with_mode(&self, content: VolumeContent, mode: u32) -> Result<PathBuf, ObjectError> {
        match content {
            VolumeContent::Object(hash) => self.objects.with_mode(hash, mode),
            VolumeContent::Large(key) => self.large.with_mode(key, mode, &self.temporary()),
        }
    }

    fn block_path(&self, hash: ContentHash) -> PathBuf {
        self.blocks.join(hash.to_hex())
    }

    /// A file that holds exactly this block, if there is one.
    fn find_block(&self, hash: ContentHash) -> Option<PathBuf> {
        let path = self.block_path(hash);
        if path.exists() {
            return Some(path);
        }
        self.objects.contains(hash).then(|| self.objects.path_of(hash))
    }

    /// The blocks of a large content by their hash; none of others.
    fn blocks_of(&self, content: Option<VolumeContent>) -> HashMap<ContentHash, usize> {
        let Some(VolumeContent::Large(key)) = content else { return HashMap::new() };
        // Without its list the blocks are sent again, which is all that it is for.
        let blocks = self.large.blocks(key).unwrap_or_default();
        blocks.into_iter().enumerate().map(|(index, hash)| (hash, index)).collect()
    }
}

fn clear(folder: &Path) -> Result<(), IoFailure> {
    if folder.exists() {
        super::trees::remove(folder);
    }
    fs::create_dir_all(folder).during("create", folder)
}

/// Copies at most `length` bytes from `from` on to `at` of `target`, inside the kernel where it can.
fn copy_range(mut source: &File, from: u64, mut target: &File, at: u64, length: u64) -> io::Result<()> {
    let (mut from, mut at, mut left) = (from, at, length);
    while left > 0 {
        let wanted = usize::try_from(left).unwrap_or(usize::MAX);
        match rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut at), wanted) {
            Ok(0) => return Ok(()),
            Ok(copied) => left -= copied as u64,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => {
                io::Seek::seek(&mut source, io::SeekFrom::Start(from))?;
                io::Seek::seek(&mut target, io::SeekFrom::Start(at))?;
                io::copy(&mut source.take(left), &mut target)?;
                return target.flush();
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use evoke_core::SystemClock;

    fn store() -> (tempfile::TempDir, VolumeContents) {
        let folder = tempfile::tempdir().unwrap();
        let objects = ObjectStore::open(&folder.path().join("objects"), Arc::new(SystemClock)).unwrap();
        let contents = VolumeContents::open(&folder.path().join("volumes"), objects).unwrap();
        (folder, contents)
    }

    fn stripped(bytes: &[u8]) -> &[u8] {
        let end = bytes.iter().rposition(|b| *b != 0).map_or(0, |at| at + 1);
        &bytes[..end]
    }

    fn announce(bytes: &[u8]) -> BlockFile {
        let blocks = bytes.chunks(VOLUME_BLOCK_BYTES as usize).map(|b| ContentHash::of(stripped(b)));
        BlockFile { blocks: blocks.collect(), size: bytes.len() as u64, before: None }
    }

    fn send(contents: &VolumeContents, file: &BlockFile, bytes: &[u8]) -> usize {
        let missing = contents.missing_blocks(file);
        for index in &missing {
            let block = bytes.chunks(VOLUME_BLOCK_BYTES as usize).nth(*index).unwrap();
            contents.put_block(file.blocks[*index], stripped(block)).unwrap();
        }
        missing.len()
    }

    fn read(contents: &VolumeContents, content: VolumeContent) -> Vec<u8> {
        let (mut file, length) = contents.open_content(content).unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, length);
        bytes
    }

    #[test]
    fn what_is_sent_in_blocks_reads_as_it_was() {
        let (_folder, contents) = store();
        let mut large = vec![7u8; 2 * VOLUME_BLOCK_BYTES as usize + 5];
        large[VOLUME_BLOCK_BYTES as usize..][..100].fill(9);
        let zeros = vec![0u8; 3000];
        let tail = [b"x".as_slice(), &[0; 10]].concat();
        for bytes in [b"hello".as_slice(), b"", &zeros, &tail, &large] {
            let file = announce(bytes);
            send(&contents, &file, bytes);
            let made = contents.assemble(std::slice::from_ref(&file)).unwrap()[0];
            assert!(read(&contents, made) == bytes, "{} bytes", bytes.len());
            assert_eq!(made.to_string().parse(), Ok(made));
        }
        assert_eq!(fs::read_dir(&contents.blocks).unwrap().count(), 1, "only the note of the run is left");
        assert!(contents.missing_blocks(&announce(&large)).is_empty());
    }

    #[test]
    fn of_a_file_that_grew_only_the_new_blocks_are_sent() {
        let (_folder, contents) = store();
        let old: Vec<u8> = (0..3 * VOLUME_BLOCK_BYTES).map(|n| (n >> 20) as u8 + 1).collect();
        let file = announce(&old);
        send(&contents, &file, &old);
        let before = contents.assemble(&[file]).unwrap()[0];
        let new = [old.as_slice(), b"more"].concat();
        let file = BlockFile { before: Some(before), ..announce(&new) };
        assert_eq!(send(&contents, &file, &new), 1);
        let made = contents.assemble(&[file]).unwrap()[0];
        assert!(read(&contents, made) == new);
    }

    #[test]
    fn a_missing_block_is_named_and_a_wrong_one_refused() {
        let (_folder, contents) = store();
        let file = announce(b"abc");
        assert!(matches!(contents.assemble(std::slice::from_ref(&file)), Err(ObjectError::Missing(_))));
        assert!(matches!(contents.put_block(file.blocks[0], b"abd"), Err(ObjectError::WrongHash { .. })));
        for bad in ["", "o", "x00", "oé"] {
            assert!(bad.parse::<VolumeContent>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_finished_file_becomes_the_content_that_its_blocks_would() {
        let (folder, contents) = store();
        let large = vec![3u8; VOLUME_BLOCK_BYTES as usize + 9];
        for bytes in [b"small".as_slice(), &large] {
            let path = folder.path().join("staged");
            fs::write(&path, bytes).unwrap();
            let imported = contents.import(&[path]).unwrap()[0];
            assert_eq!(imported.1, bytes.len() as u64);
            let file = announce(bytes);
            send(&contents, &file, bytes);
            assert_eq!(contents.assemble(&[file]).unwrap(), [imported.0]);
            assert!(read(&contents, imported.0) == bytes);
        }
    }
}
