//! The content store: one file per content, named by its SHA-256.
//!
//! Layout: `<root>/<first two hex digits>/<other 62>` with mode 0644; the same content with other
//! permission bits (which a tree needs, because hard links share them) beside it as `<other 62>.<octal>`.
//! Contents are written to `<root>/tmp` and get their name once complete, verified and on stable storage;
//! how they are synced together is told in [`crate::durable`].

use crate::{
    ContentHash, IoFailure,
    content_hash::COPY_BUFFER_BYTES,
    durable::{Committer, Pending},
    hold::{Holds, Pin, Sweep},
    io_failure::IoContext,
};
use evoke_core::{Clock, Error, ErrorCode, UnixMs};
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// The permission bits of a content as it is stored.
pub(crate) const PLAIN_MODE: u32 = 0o644;

/// What the content store could not do.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// The bytes are not those that the name promises.
    #[error("the content has the SHA-256 {got} where {wanted} was announced")]
    WrongHash {
        /// What was announced.
        wanted: ContentHash,
        /// What the bytes give.
        got: ContentHash,
    },
    /// No such content.
    #[error("content {0} is not in the store")]
    Missing(ContentHash),
    /// A stored content was changed behind our back.
    #[error("content {0} is damaged on disk")]
    Damaged(ContentHash),
    /// Reading what is to be stored failed.
    #[error("could not read the content to store: {0}")]
    Source(#[source] io::Error),
    /// The disk failed.
    #[error(transparent)]
    Io(#[from] IoFailure),
}

impl From<ObjectError> for Error {
    fn from(error: ObjectError) -> Error {
        let code = match error {
            ObjectError::Io(failure) => return failure.into(),
            ObjectError::WrongHash { .. } => ErrorCode::InvalidArgument,
            ObjectError::Missing(_) => ErrorCode::NotFound,
            ObjectError::Damaged(_) => ErrorCode::DataLoss,
            ObjectError::Source(_) => ErrorCode::Unavailable,
        };
        Error::new(code, error.to_string())
    }
}

/// What one collection did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Contents kept.
    pub kept: u64,
    /// Contents removed.
    pub removed: u64,
    /// Bytes that the removed ones took.
    pub removed_bytes: u64,
}

/// The content store. Cheap to clone.
#[derive(Clone)]
pub struct ObjectStore {
    inner: Arc<Inner>,
}

struct Inner {
    root: PathBuf,
    clock: Arc<dyn Clock>,
    committer: Committer,
    holds: Arc<Holds>,
    next_temporary: AtomicU64,
}

/// A temporary file that is removed unless it got its name.
struct Temporary {
    path: PathBuf,
    file: File,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After the rename there is nothing left to remove; a failure leaves a file that the next start sweeps.
        let _ = fs::remove_file(&self.path);
    }
}

impl ObjectStore {
    /// The store below `root`, which is made if it is not there. Left-overs of earlier writes are removed.
    pub fn open(root: &Path, clock: Arc<dyn Clock>) -> Result<Self, IoFailure> {
        fs::create_dir_all(root).during("create", root)?;
        let tmp = root.join("tmp");
        if tmp.exists() {
            fs::remove_dir_all(&tmp).during("remove", &tmp)?;
        }
        fs::create_dir(&tmp).during("create", &tmp)?;
        for first in 0..=255u8 {
            let folder = root.join(evoke_core::hex(&[first]));
            if !folder.exists() {
                fs::create_dir(&folder).during("create", &folder)?;
            }
        }
        crate::durable::sync_folder(root)?;
        let holds = Arc::new(Holds::new(clock.now()));
        let inner = Inner {
            root: root.to_owned(),
            clock,
            committer: Committer::default(),
            holds,
            next_temporary: AtomicU64::new(0),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Stores `bytes`, which must have the hash `expected`. Durable when it returns.
    pub fn put(&self, expected: ContentHash, bytes: &[u8]) -> Result<(), ObjectError> {
        let got = ContentHash::of(bytes);
        if got != expected {
            return Err(ObjectError::WrongHash { wanted: expected, got });
        }
        if self.contains(expected) {
            return Ok(());
        }
        let mut temporary = self.temporary(PLAIN_MODE)?;
        temporary.file.write_all(bytes).during("write", &temporary.path)?;
        self.finish(vec![(temporary, self.path_of(expected))])
    }

    /// Stores several contents as one batch: two syncs in all.
    pub fn put_many(&self, contents: &[(ContentHash, &[u8])]) -> Result<(), ObjectError> {
        let mut pending = Vec::with_capacity(contents.len());
        for (expected, bytes) in contents {
            let got = ContentHash::of(bytes);
            if got != *expected {
                return Err(ObjectError::WrongHash { wanted: *expected, got });
            }
            if self.contains(*expected) {
                continue;
            }
            let mut temporary = self.temporary(PLAIN_MODE)?;
            temporary.file.write_all(bytes).during("write", &temporary.path)?;
            pending.push((temporary, self.path_of(*expected)));
        }
        self.finish(pending)
    }

    /// Stores all that `reader` gives, hashing as it flows, and returns its hash and length. Where
    /// `expected` is given, other bytes are refused.
    pub fn put_reader(
        &self,
        expected: Option<ContentHash>,
        mut reader: impl Read,
    ) -> Result<(ContentHash, u64), ObjectError> {
        let mut temporary = self.temporary(PLAIN_MODE)?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; COPY_BUFFER_BYTES];
        let mut length = 0;
        loop {
            let n = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(ObjectError::Source(e)),
            };
            hasher.update(&buffer[..n]);
            temporary.file.write_all(&buffer[..n]).during("write", &temporary.path)?;
            length += n as u64;
        }
        let got = ContentHash(hasher.finalize().into());
        if let Some(wanted) = expected.filter(|wanted| *wanted != got) {
            return Err(ObjectError::WrongHash { wanted, got });
        }
        if !self.contains(got) {
            self.finish(vec![(temporary, self.path_of(got))])?;
        }
        Ok((got, length))
    }

    /// Makes the finished file `path`, whose hash the caller has verified, a content of this store by a
    /// hard link; copies it where links are not possible. The caller must not change the file afterwards.
    pub fn adopt(&self, hash: ContentHash, path: &Path) -> Result<(), ObjectError> {
        if self.contains(hash) {
            return Ok(());
        }
        let Some(temporary) = self.linked(path)? else {
            let file = File::open(path).during("open", path)?;
            return self.put_reader(Some(hash), file).map(|_| ());
        };
        self.finish(vec![(temporary, self.path_of(hash))])
    }

    /// [`ObjectStore::adopt`] for several files as one batch: two syncs in all.
    pub fn adopt_many(&self, files: &[(ContentHash, PathBuf)]) -> Result<(), ObjectError> {
        let mut pending = Vec::with_capacity(files.len());
        for (hash, path) in files {
            if self.contains(*hash) {
                continue;
            }
            match self.linked(path)? {
                Some(temporary) => pending.push((temporary, self.path_of(*hash))),
                None => self.adopt(*hash, path)?,
            }
        }
        self.finish(pending)
    }

    /// The file `path` under a temporary name here, by a hard link; none where links are not possible.
    fn linked(&self, path: &Path) -> Result<Option<Temporary>, ObjectError> {
        let link = self.temporary_path();
        if fs::hard_link(path, &link).is_err() {
            return Ok(None);
        }
        let file = File::open(&link).during("open", &link)?;
        let temporary = Temporary { path: link, file };
        temporary
            .file
            .set_permissions(Permissions::from_mode(PLAIN_MODE))
            .during("set the mode of", &temporary.path)?;
        Ok(Some(temporary))
    }

    /// Whether the content is stored. If so it is also held: no collection within its grace removes it.
    pub fn contains(&self, hash: ContentHash) -> bool {
        // Held before the look, so that no collection fits in between.
        self.inner.holds.touch(hash, self.inner.clock.now());
        let there = self.path_of(hash).exists();
        if there {
            self.inner.committer.settle();
        }
        there
    }

    /// Which of `hashes` are not stored, in their order. Those that are, are held.
    pub fn missing(&self, hashes: &[ContentHash]) -> Vec<ContentHash> {
        hashes.iter().copied().filter(|hash| !self.contains(*hash)).collect()
    }

    /// Opens the content for reading, unverified.
    pub fn open_content(&self, hash: ContentHash) -> Result<File, ObjectError> {
        let path = self.path_of(hash);
        match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(ObjectError::Missing(hash)),
            opened => Ok(opened.during("open", &path)?),
        }
    }

    /// Opens the content after reading all of it and comparing its hash.
    pub fn open_verified(&self, hash: ContentHash) -> Result<File, ObjectError> {
        let mut file = self.open_content(hash)?;
        let path = self.path_of(hash);
        let (got, _) = ContentHash::of_reader(&file).during("read", &path)?;
        if got != hash {
            return Err(ObjectError::Damaged(hash));
        }
        file.seek(SeekFrom::Start(0)).during("seek in", &path)?;
        Ok(file)
    }

    /// The content's length in bytes.
    pub fn size(&self, hash: ContentHash) -> Result<u64, ObjectError> {
        let file = self.open_content(hash)?;
        Ok(file.metadata().during("look at", &self.path_of(hash))?.len())
    }

    /// Keeps `hashes` from being collected for as long as the pin lives, stored or not yet.
    pub fn pin(&self, hashes: impl IntoIterator<Item = ContentHash>) -> Pin {
        Pin::new(&self.inner.holds, hashes)
    }

    /// Removes the contents for which `reachable` says no, that are not pinned, and that nobody stored or
    /// asked for within `grace_ms` before `now`. (What was there when the store was opened counts as asked
    /// for at that time.) Safe beside readers and writers. A dry run only counts them.
    pub fn collect(
        &self,
        reachable: &dyn Fn(&ContentHash) -> bool,
        now: UnixMs,
        grace_ms: u64,
        dry_run: bool,
    ) -> Result<Collected, IoFailure> {
        let holds = &self.inner.holds;
        let mut sweep = Sweep { holds, reachable, now, grace_ms, dry_run, done: Collected::default() };
        for first in 0..=255u8 {
            let prefix = evoke_core::hex(&[first]);
            let folder = self.inner.root.join(&prefix);
            for entry in fs::read_dir(&folder).during("list", &folder)? {
                let entry = entry.during("list", &folder)?;
                let name = entry.file_name();
                let Some(hash) = name.to_str().and_then(|name| hash_of_name(&prefix, name)) else {
                    tracing::warn!(path = %entry.path().display(), "not a content, left alone");
                    continue;
                };
                sweep.look_at(hash, &entry)?;
            }
        }
        Ok(sweep.end())
    }

    /// The path of the content with the permission bits `mode`, made from the plain one where it is not
    /// there yet.
    pub(crate) fn with_mode(&self, hash: ContentHash, mode: u32) -> Result<PathBuf, ObjectError> {
        let plain = self.path_of(hash);
        if mode == PLAIN_MODE {
            return Ok(plain);
        }
        let mut name = plain.clone().into_os_string();
        name.push(format!(".{mode:o}"));
        let path = PathBuf::from(name);
        if !path.exists() {
            let source = self.open_content(hash)?;
            let temporary = self.temporary(mode)?;
            copy_content(&source, &temporary.file).during("copy to", &temporary.path)?;
            self.finish(vec![(temporary, path.clone())])?;
        }
        Ok(path)
    }

    /// What the file system of this store has free for this process.
    pub fn free_bytes(&self) -> Result<u64, IoFailure> {
        let root = &self.inner.root;
        let stat = rustix::fs::statvfs(root).map_err(io::Error::from).during("look at the disk of", root)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// The clock by which uses are noted.
    pub(crate) fn clock(&self) -> Arc<dyn Clock> {
        self.inner.clock.clone()
    }

    pub(crate) fn path_of(&self, hash: ContentHash) -> PathBuf {
        let hex = hash.to_hex();
        self.inner.root.join(&hex[..2]).join(&hex[2..])
    }

    fn temporary_path(&self) -> PathBuf {
        let number = self.inner.next_temporary.fetch_add(1, Ordering::Relaxed);
        self.inner.root.join("tmp").join(format!("{number}"))
    }

    fn temporary(&self, mode: u32) -> Result<Temporary, IoFailure> {
        let path = self.temporary_path();
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = file.during("create", &path)?;
        // Set apart from the creation because the umask would take bits away.
        file.set_permissions(Permissions::from_mode(mode)).during("set the mode of", &path)?;
        Ok(Temporary { path, file })
    }

    fn finish(&self, temporaries: Vec<(Temporary, PathBuf)>) -> Result<(), ObjectError> {
        let mut files = Vec::with_capacity(temporaries.len());
        for (temporary, name) in &temporaries {
            let file = temporary.file.try_clone().during("duplicate the descriptor of", &temporary.path)?;
            files.push(Pending {
                file: Arc::new(file),
                temporary: temporary.path.clone(),
                name: name.clone(),
            });
        }
        Ok(self.inner.committer.commit(files)?)
    }
}

/// Fills the empty file `to` with what `from` holds: by sharing blocks where the file system can, else by a
/// copy inside the kernel.
pub(crate) fn copy_content(mut from: &File, mut to: &File) -> io::Result<()> {
    if rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    io::copy(&mut from, &mut to).map(|_| ())
}

/// The hash that a file below the folder `prefix` stands for.
fn hash_of_name(prefix: &str, name: &str) -> Option<ContentHash> {
    let (hex, mode) = name.split_once('.').unwrap_or((name, "644"));
    u32::from_str_radix(mode, 8).ok()?;
    format!("{prefix}{hex}").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    #[derive(Default)]
    struct TestClock(AtomicU64);
    impl Clock for TestClock {
        fn now(&self) -> UnixMs {
            UnixMs(self.0.load(Ordering::SeqCst))
        }
    }

    fn store() -> (tempfile::TempDir, Arc<TestClock>, ObjectStore) {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(TestClock(AtomicU64::new(1000)));
        let store = ObjectStore::open(&folder.path().join("objects"), clock.clone()).unwrap();
        (folder, clock, store)
    }

    #[test]
    fn what_is_put_is_there_and_verified() {
        let (_folder, _, store) = store();
        let hash = ContentHash::of(b"hello");
        assert_eq!(store.missing(&[hash]), [hash]);
        store.put(hash, b"hello").unwrap();
        store.put(hash, b"hello").unwrap();
        assert!(store.missing(&[hash]).is_empty());
        assert_eq!(store.size(hash).unwrap(), 5);
        let mut text = String::new();
        store.open_verified(hash).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        fs::write(store.path_of(hash), "hellO").unwrap();
        assert!(matches!(store.open_verified(hash), Err(ObjectError::Damaged(_))));
    }

    #[test]
    fn other_bytes_than_announced_are_refused_and_leave_nothing() {
        let (folder, _, store) = store();
        let hash = ContentHash::of(b"a");
        assert!(matches!(store.put(hash, b"b"), Err(ObjectError::WrongHash { .. })));
        assert!(matches!(store.put_reader(Some(hash), &b"b"[..]), Err(ObjectError::WrongHash { .. })));
        assert!(matches!(store.open_content(hash), Err(ObjectError::Missing(_))));
        assert_eq!(fs::read_dir(folder.path().join("objects/tmp")).unwrap().count(), 0);
        assert_eq!(store.put_reader(None, &b"a"[..]).unwrap(), (hash, 1));
    }

    #[test]
    fn many_small_files_go_in_together() {
        let (_folder, _, store) = store();
        let bytes: Vec<Vec<u8>> = (0..500).map(|n: u32| n.to_string().into_bytes()).collect();
        let contents: Vec<_> = bytes.iter().map(|b| (ContentHash::of(b), b.as_slice())).collect();
        store.put_many(&contents).unwrap();
        let hashes: Vec<_> = contents.iter().map(|c| c.0).collect();
        assert!(store.missing(&hashes).is_empty());
    }

    #[test]
    fn a_finished_file_is_adopted_by_link() {
        use std::os::unix::fs::MetadataExt;
        let (folder, _, store) = store();
        let path = folder.path().join("upload");
        fs::write(&path, "payload").unwrap();
        let hash = ContentHash::of(b"payload");
        store.adopt(hash, &path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().ino(), fs::metadata(store.path_of(hash)).unwrap().ino());
        fs::remove_file(&path).unwrap();
        store.open_verified(hash).unwrap();
    }

    #[test]
    fn collection_spares_what_is_reachable_pinned_or_fresh() {
        let (_folder, clock, store) = store();
        let contents: Vec<_> =
            ["kept", "pinned", "asked", "gone"].map(|t| (ContentHash::of(t.as_bytes()), t)).into();
        for (hash, text) in &contents {
            store.put(*hash, text.as_bytes()).unwrap();
        }
        let gone = contents[3].0;
        store.with_mode(gone, 0o755).unwrap();
        let reachable = |hash: &ContentHash| *hash == contents[0].0;
        let collect = |now| store.collect(&reachable, UnixMs(now), 100, false).unwrap();
        assert_eq!(collect(1100).removed, 0, "all are fresh");
        let pin = store.pin([contents[1].0]);
        clock.0.store(1150, Ordering::SeqCst);
        assert!(store.contains(contents[2].0));
        let done = collect(1200);
        assert_eq!((done.kept, done.removed, done.removed_bytes), (3, 2, 8));
        assert!(matches!(store.open_content(gone), Err(ObjectError::Missing(_))));
        drop(pin);
        assert_eq!(collect(1300).removed, 2);
        assert_eq!(collect(1300).kept, 1);
    }

    #[test]
    fn what_was_there_at_the_start_has_its_grace_too() {
        let (folder, clock, store) = store();
        let hash = ContentHash::of(b"x");
        store.put(hash, b"x").unwrap();
        clock.0.store(10_000, Ordering::SeqCst);
        let store = ObjectStore::open(&folder.path().join("objects"), clock).unwrap();
        assert_eq!(store.collect(&|_| false, UnixMs(10_050), 100, false).unwrap().kept, 1);
        assert_eq!(store.collect(&|_| false, UnixMs(10_101), 100, false).unwrap().removed, 1);
    }
}
