//! Payloads by id: arguments, results and files too large to travel inside a call.
//!
//! Layout: `<root>/<last two of the id>/<id>` is a finished payload, `<id>.meta` beside it what is known of
//! it; `<root>/uploads/<id>.{spec,data,part-N}` an upload under way, which survives a restart of the server.
//! Parts are written at their place inside the one data file, so finishing moves nothing. The payload is
//! synced before it gets its name; its `.meta` is not (it only spares computing the ETag again).

use crate::{
    BodyMd5, ContentHash, IoFailure,
    blob_upload::{PartWriter, Session},
    durable::{Committer, Pending},
    etag::multipart_etag,
    io_failure::IoContext,
};
use evoke_core::{BlobId, Clock, Error, ErrorCode, UnixMs};
use md5::{Digest, Md5};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Parts of one upload.
pub const PARTS_MAX: u32 = 10_000;

/// What a payload is announced as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobSpec {
    /// Its length in bytes; other lengths are refused.
    pub length: u64,
    /// Its MD5, where the client computed one. A placeholder is ignored.
    pub md5: Option<BodyMd5>,
    /// Its SHA-256, where known; checked before the payload gets its name.
    pub sha256: Option<ContentHash>,
    /// How it is sent: `None` at once, else in parts of this length (the last may be shorter).
    pub part_length: Option<u64>,
}

impl BlobSpec {
    /// How many parts (or bodies) there are; at least one.
    pub fn parts(&self) -> u64 {
        self.part_length.map_or(1, |part| self.length.div_ceil(part.max(1)).max(1))
    }

    /// Where part `number` (from 1 on) begins, and its length in bytes.
    pub fn part(&self, number: u32) -> Option<(u64, u64)> {
        if number == 0 || u64::from(number) > self.parts() {
            return None;
        }
        let Some(part) = self.part_length else { return Some((0, self.length)) };
        let start = u64::from(number - 1) * part;
        Some((start, part.min(self.length - start)))
    }
}

/// What is known of a finished payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinishedBlob {
    /// Its length in bytes.
    pub length: u64,
    /// Its ETag, without quotes.
    pub etag: String,
    /// The hash of its content.
    pub sha256: String,
}

/// What the payload store could not do.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// No such payload, or it has not been sent completely.
    #[error("blob {0} does not exist or is not uploaded yet")]
    Missing(BlobId),
    /// The payload was announced in a way that can't be.
    #[error("blob {id} can't be uploaded in {parts} parts; {PARTS_MAX} is the most")]
    Parts {
        /// The payload.
        id: BlobId,
        /// The parts it would take.
        parts: u64,
    },
    /// There is no part of this number.
    #[error("blob {id} has no part {number}")]
    NoSuchPart {
        /// The payload.
        id: BlobId,
        /// The number asked for, counted from 1.
        number: u32,
    },
    /// A body is shorter or longer than announced.
    #[error("part {number} of blob {id} has {got} bytes where {wanted} were announced")]
    Length {
        /// The payload.
        id: BlobId,
        /// The part, counted from 1.
        number: u32,
        /// The announced length.
        wanted: u64,
        /// What arrived, as far as it was read.
        got: u64,
    },
    /// The bytes are not the announced ones.
    #[error("blob {id} has the {what} {got} where {wanted} was announced")]
    WrongHash {
        /// The payload.
        id: BlobId,
        /// "MD5", "SHA-256" or "ETag".
        what: &'static str,
        /// What was announced.
        wanted: String,
        /// What the bytes give.
        got: String,
    },
    /// A part has not been sent.
    #[error("part {number} of blob {id} has not been uploaded")]
    PartMissing {
        /// The payload.
        id: BlobId,
        /// The part, counted from 1.
        number: u32,
    },
    /// A later request for the same part took over.
    #[error("the upload of part {number} of blob {id} was replaced by a later one")]
    Replaced {
        /// The payload.
        id: BlobId,
        /// The part, counted from 1.
        number: u32,
    },
    /// The disk failed.
    #[error(transparent)]
    Io(#[from] IoFailure),
}

impl From<BlobError> for Error {
    fn from(error: BlobError) -> Error {
        let code = match error {
            BlobError::Io(failure) => return failure.into(),
            BlobError::Missing(_) => ErrorCode::NotFound,
            BlobError::PartMissing { .. } => ErrorCode::FailedPrecondition,
            BlobError::Replaced { .. } => ErrorCode::Unavailable,
            _ => ErrorCode::InvalidArgument,
        };
        Error::new(code, error.to_string())
    }
}

/// The payload store. Cheap to clone.
#[derive(Clone)]
pub struct BlobStore {
    inner: Arc<Inner>,
}

struct Inner {
    root: PathBuf,
    clock: Arc<dyn Clock>,
    committer: Committer,
    sessions: Mutex<HashMap<BlobId, Arc<Session>>>,
}

impl BlobStore {
    /// The store below `root`, which is made if it is not there.
    pub fn open(root: &Path, clock: Arc<dyn Clock>) -> Result<Self, IoFailure> {
        let uploads = root.join("uploads");
        fs::create_dir_all(&uploads).during("create", &uploads)?;
        let inner = Inner {
            root: root.to_owned(),
            clock,
            committer: Committer::default(),
            sessions: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Announces the payload `id`. Its bodies may then be sent; announcing it again starts it anew.
    pub fn create(&self, id: BlobId, spec: BlobSpec) -> Result<(), BlobError> {
        let parts = spec.parts();
        if parts > u64::from(PARTS_MAX) {
            return Err(BlobError::Parts { id, parts });
        }
        let session = Session::create(&self.uploads(), id, spec, self.inner.clock.now())?;
        self.sessions().insert(id, Arc::new(session));
        Ok(())
    }

    /// Begins to write part `number` (from 1 on; a payload sent at once is its part 1). A writer that was
    /// writing the same part before is cut off.
    pub fn write_part(&self, id: BlobId, number: u32) -> Result<PartWriter, BlobError> {
        let session = self.session(id)?;
        session.write_part(number)
    }

    /// The announced form of an upload under way.
    pub fn spec(&self, id: BlobId) -> Result<BlobSpec, BlobError> {
        Ok(self.session(id)?.spec().clone())
    }

    /// Finishes the payload once all its parts are there: checks what was announced, makes it durable and
    /// readable. Finishing twice gives the same answer twice.
    pub fn complete(&self, id: BlobId) -> Result<FinishedBlob, BlobError> {
        let session = match self.session(id) {
            Err(BlobError::Missing(_)) => return self.finished(id),
            found => found?,
        };
        // One at a time per payload; the second finds it finished.
        let _turn = session.turn();
        if self.path_of(id).exists() {
            return self.finished(id);
        }
        let sealed = session.seal()?;
        let etag = match session.spec().part_length {
            None => sealed.parts[0].to_hex(),
            Some(_) => multipart_etag(&sealed.parts),
        };
        let length = session.spec().length;
        let finished = FinishedBlob { length, etag, sha256: sealed.sha256.to_hex() };
        self.publish(id, sealed.file, session.data_path(), &finished)?;
        session.remove_notes();
        self.sessions().remove(&id);
        Ok(finished)
    }

    /// Stores a payload that is at hand, durable when it returns.
    pub fn put(&self, id: BlobId, bytes: &[u8]) -> Result<FinishedBlob, BlobError> {
        let temporary = self.uploads().join(format!("{id}.put"));
        let mut file = File::create(&temporary).during("create", &temporary)?;
        file.write_all(bytes).during("write", &temporary)?;
        let etag = BodyMd5(Md5::digest(bytes).into()).to_hex();
        let sha256 = ContentHash::of(bytes).to_hex();
        let finished = FinishedBlob { length: bytes.len() as u64, etag, sha256 };
        self.publish(id, file, &temporary, &finished)?;
        Ok(finished)
    }

    /// Opens the payload for reading, and its length in bytes.
    pub fn open_blob(&self, id: BlobId) -> Result<(File, u64), BlobError> {
        let path = self.path_of(id);
        let file = match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(BlobError::Missing(id)),
            opened => opened.during("open", &path)?,
        };
        let length = file.metadata().during("look at", &path)?.len();
        Ok((file, length))
    }

    /// The payload's length in bytes.
    pub fn size(&self, id: BlobId) -> Result<u64, BlobError> {
        self.open_blob(id).map(|(_, length)| length)
    }

    /// What is known of the payload; computed anew where a power loss took the note.
    pub fn finished(&self, id: BlobId) -> Result<FinishedBlob, BlobError> {
        let path = self.path_of(id);
        let (file, length) = self.open_blob(id)?;
        self.inner.committer.settle();
        let note = fs::read(meta_path(&path)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        if let Some(finished) = note.filter(|note: &FinishedBlob| note.length == length) {
            return Ok(finished);
        }
        let mut md5 = Md5::new();
        io::copy(&mut &file, &mut md5).during("read", &path)?;
        let file = File::open(&path).during("open", &path)?;
        let (sha256, _) = ContentHash::of_reader(file).during("read", &path)?;
        let etag = BodyMd5(md5.finalize().into()).to_hex();
        Ok(FinishedBlob { length, etag, sha256: sha256.to_hex() })
    }

    /// The path of the finished payload, for [`crate::ObjectStore::adopt`].
    pub fn path_of(&self, id: BlobId) -> PathBuf {
        let suffix = id.suffix();
        let folder = suffix.get(suffix.len().saturating_sub(2)..).unwrap_or(suffix);
        self.inner.root.join(folder).join(id.to_string())
    }

    /// Removes the payload, finished or not. Not an error where there is none.
    pub fn delete(&self, id: BlobId) -> Result<(), BlobError> {
        let session = self.sessions().remove(&id);
        if let Some(session) = session {
            session.abandon()?;
        }
        let path = self.path_of(id);
        remove_if_there(&path)?;
        Ok(remove_if_there(&meta_path(&path))?)
    }

    /// Removes the uploads that were announced more than `age_max_ms` before `now` and never finished.
    pub fn sweep_uploads(&self, now: UnixMs, age_max_ms: u64) -> Result<u64, BlobError> {
        let mut removed = 0;
        let folder = self.uploads();
        for entry in fs::read_dir(&folder).during("list", &folder)? {
            let name = entry.during("list", &folder)?.file_name();
            let id = name.to_str().and_then(|name| name.strip_suffix(".spec")?.parse::<BlobId>().ok());
            let Some(id) = id else { continue };
            let session = self.session(id)?;
            if now.since(session.created()) > age_max_ms {
                self.delete(id)?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    fn publish(
        &self,
        id: BlobId,
        file: File,
        temporary: &Path,
        finished: &FinishedBlob,
    ) -> Result<(), BlobError> {
        let name = self.path_of(id);
        if let Some(folder) = name.parent().filter(|folder| !folder.exists()) {
            fs::create_dir_all(folder).during("create", folder)?;
            crate::durable::sync_folder(&self.inner.root)?;
        }
        let meta = meta_path(&name);
        let note = serde_json::to_vec(finished).map_err(io::Error::other).during("encode", &meta)?;
        fs::write(&meta, note).during("write", &meta)?;
        let pending = Pending { file: Arc::new(file), temporary: temporary.to_owned(), name };
        Ok(self.inner.committer.commit(vec![pending])?)
    }

    /// The session of an upload under way: the one in memory, else the one that an earlier server left.
    fn session(&self, id: BlobId) -> Result<Arc<Session>, BlobError> {
        let mut sessions = self.sessions();
        if let Some(session) = sessions.get(&id) {
            return Ok(session.clone());
        }
        let session = Arc::new(Session::resume(&self.uploads(), id)?.ok_or(BlobError::Missing(id))?);
        sessions.insert(id, session.clone());
        Ok(session)
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<BlobId, Arc<Session>>> {
        // Each change is a single insert or remove; a poisoned map is still consistent.
        self.inner.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn uploads(&self) -> PathBuf {
        self.inner.root.join("uploads")
    }
}

fn meta_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".meta");
    PathBuf::from(name)
}

pub(crate) fn remove_if_there(path: &Path) -> Result<(), IoFailure> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.during("remove", path),
    }
}
