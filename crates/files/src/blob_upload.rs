//! One upload: its announced form on disk, its parts, and the writers that fill them.

use crate::{
    BlobError, BlobSpec, BodyMd5, ContentHash, IoFailure, blobs::remove_if_there, io_failure::IoContext,
};
use evoke_core::{BlobId, UnixMs};
use md5::Md5;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The spec as it is written down.
#[derive(Serialize, Deserialize)]
struct Note {
    created_ms: u64,
    length: u64,
    md5: Option<String>,
    sha256: Option<String>,
    part_length: Option<u64>,
}

/// What is known of one part that has arrived.
#[derive(Debug, Clone, Copy)]
struct Part {
    md5: BodyMd5,
    /// Known where the part was the whole body and arrived at this server.
    sha256: Option<ContentHash>,
}

#[derive(Default)]
struct Parts {
    /// The writer that may write each part; an older one is cut off.
    turns: HashMap<u32, u64>,
    next_turn: u64,
    arrived: HashMap<u32, Part>,
    /// Set when the payload is being finished: no writer may touch it any more.
    sealed: bool,
}

/// An upload under way.
pub(crate) struct Session {
    id: BlobId,
    spec: BlobSpec,
    created: UnixMs,
    folder: PathBuf,
    data: PathBuf,
    file: Arc<File>,
    parts: Arc<Mutex<Parts>>,
    finishing: Mutex<()>,
}

/// A payload whose bytes are complete and checked, and closed to writers.
pub(crate) struct Sealed {
    pub file: File,
    pub parts: Vec<BodyMd5>,
    pub sha256: ContentHash,
}

impl Session {
    pub fn create(folder: &Path, id: BlobId, spec: BlobSpec, now: UnixMs) -> Result<Self, BlobError> {
        for number in 1..=spec.parts() {
            remove_if_there(&part_path(folder, id, number as u32))?;
        }
        let note = Note {
            created_ms: now.0,
            length: spec.length,
            md5: spec.md5.map(BodyMd5::to_hex),
            sha256: spec.sha256.map(ContentHash::to_hex),
            part_length: spec.part_length,
        };
        let path = folder.join(format!("{id}.spec"));
        let bytes = serde_json::to_vec(&note).map_err(io::Error::other).during("encode", &path)?;
        let session = Self::over(folder, id, spec, now, true)?;
        fs::write(&path, bytes).during("write", &path)?;
        Ok(session)
    }

    /// The upload that an earlier server process left, if there is one.
    pub fn resume(folder: &Path, id: BlobId) -> Result<Option<Self>, BlobError> {
        let path = folder.join(format!("{id}.spec"));
        let bytes = match fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.during("read", &path)?,
        };
        let note: Note = serde_json::from_slice(&bytes).map_err(io::Error::other).during("decode", &path)?;
        let spec = BlobSpec {
            length: note.length,
            md5: note.md5.and_then(|text| text.parse().ok()),
            sha256: note.sha256.and_then(|text| text.parse().ok()),
            part_length: note.part_length,
        };
        let session = Self::over(folder, id, spec, UnixMs(note.created_ms), false)?;
        for number in 1..=session.spec.parts() as u32 {
            let note = fs::read_to_string(part_path(folder, id, number)).ok();
            if let Some(md5) = note.and_then(|text| text.parse().ok()) {
                session.lock().arrived.insert(number, Part { md5, sha256: None });
            }
        }
        Ok(Some(session))
    }

    fn over(
        folder: &Path,
        id: BlobId,
        spec: BlobSpec,
        created: UnixMs,
        new: bool,
    ) -> Result<Self, IoFailure> {
        let data = folder.join(format!("{id}.data"));
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(new).open(&data);
        let file = Arc::new(file.during("open", &data)?);
        let folder = folder.to_owned();
        Ok(Self { id, spec, created, folder, data, file, parts: Arc::default(), finishing: Mutex::default() })
    }

    pub fn spec(&self) -> &BlobSpec {
        &self.spec
    }

    pub fn created(&self) -> UnixMs {
        self.created
    }

    pub fn data_path(&self) -> &Path {
        &self.data
    }

    /// Waits for whoever is finishing this upload, and takes the turn.
    pub fn turn(&self) -> MutexGuard<'_, ()> {
        // The lock guards no data.
        self.finishing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn write_part(&self, number: u32) -> Result<PartWriter, BlobError> {
        let id = self.id;
        let (start, length) = self.spec.part(number).ok_or(BlobError::NoSuchPart { id, number })?;
        let mut parts = self.lock();
        if parts.sealed {
            return Err(BlobError::Replaced { id, number });
        }
        parts.next_turn += 1;
        let turn = parts.next_turn;
        parts.turns.insert(number, turn);
        parts.arrived.remove(&number);
        Ok(PartWriter {
            id,
            number,
            turn,
            start,
            wanted: length,
            written: 0,
            md5: Md5::new(),
            sha256: (self.spec.parts() == 1).then(Sha256::new),
            expected_md5: self
                .spec
                .md5
                .filter(|md5| self.spec.part_length.is_none() && !md5.is_placeholder()),
            file: self.file.clone(),
            parts: self.parts.clone(),
            note: part_path(&self.folder, id, number),
        })
    }

    /// Closes the upload to writers and checks the whole. After a failed check it is open again.
    pub fn seal(&self) -> Result<Sealed, BlobError> {
        let mut parts = self.lock();
        let mut md5s = Vec::new();
        for number in 1..=self.spec.parts() as u32 {
            let part = parts.arrived.get(&number);
            let missing = BlobError::PartMissing { id: self.id, number };
            md5s.push(part.ok_or(missing)?.md5);
        }
        let known = parts.arrived.get(&1).and_then(|part| part.sha256);
        parts.sealed = true;
        drop(parts);
        let checked = self.check(known);
        if checked.is_err() {
            self.lock().sealed = false;
        }
        checked.map(|(file, sha256)| Sealed { file, parts: md5s, sha256 })
    }

    fn check(&self, known: Option<ContentHash>) -> Result<(File, ContentHash), BlobError> {
        let file = self.file.try_clone().during("duplicate the descriptor of", &self.data)?;
        let got = match known {
            Some(hash) => hash,
            // Parts came side by side or before a restart: the whole is read once, from the page cache.
            None => {
                let reader = File::open(&self.data).during("open", &self.data)?;
                ContentHash::of_reader(reader).during("read", &self.data)?.0
            }
        };
        if let Some(wanted) = self.spec.sha256.filter(|wanted| *wanted != got) {
            let (wanted, got) = (wanted.to_hex(), got.to_hex());
            return Err(BlobError::WrongHash { id: self.id, what: "SHA-256", wanted, got });
        }
        Ok((file, got))
    }

    /// Removes the notes of an upload that is finished.
    pub fn remove_notes(&self) {
        let spec = self.folder.join(format!("{}.spec", self.id));
        let notes = (1..=self.spec.parts()).map(|n| part_path(&self.folder, self.id, n as u32));
        for path in notes.chain([spec]) {
            if let Err(error) = remove_if_there(&path) {
                tracing::warn!(%error, "could not remove a note of a finished upload");
            }
        }
    }

    /// Removes the upload.
    pub fn abandon(&self) -> Result<(), IoFailure> {
        self.lock().sealed = true;
        self.remove_notes();
        remove_if_there(&self.data)
    }

    fn lock(&self) -> MutexGuard<'_, Parts> {
        // Each change is a single insert or remove; a poisoned state is still consistent.
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes one part as it arrives. Dropped unfinished, the part counts as not sent.
pub struct PartWriter {
    id: BlobId,
    number: u32,
    turn: u64,
    start: u64,
    wanted: u64,
    written: u64,
    md5: Md5,
    sha256: Option<Sha256>,
    expected_md5: Option<BodyMd5>,
    file: Arc<File>,
    parts: Arc<Mutex<Parts>>,
    note: PathBuf,
}

impl std::fmt::Debug for PartWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PartWriter").field("id", &self.id).field("number", &self.number).finish()
    }
}

impl PartWriter {
    /// How many bytes this part must have.
    pub fn length(&self) -> u64 {
        self.wanted
    }

    /// Adds `bytes` to the part. They go to the page cache; [`crate::BlobStore::complete`] makes them durable.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        let after = self.written + bytes.len() as u64;
        if after > self.wanted {
            return Err(self.bad_length(after));
        }
        self.md5.update(bytes);
        if let Some(sha256) = &mut self.sha256 {
            sha256.update(bytes);
        }
        // The lock is held over the write: once a later writer or the finishing took over, nothing of this
        // one can reach the file any more. Parts of one payload therefore queue for the copy into the page
        // cache, but not for the hashing.
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        self.check_turn(&parts)?;
        self.file.write_all_at(bytes, self.start + self.written).during("write", &self.note)?;
        drop(parts);
        self.written = after;
        Ok(())
    }

    /// Ends the part and gives its MD5, the ETag of the answer.
    pub fn finish(self) -> Result<BodyMd5, BlobError> {
        if self.written != self.wanted {
            return Err(self.bad_length(self.written));
        }
        let md5 = BodyMd5(self.md5.clone().finalize().into());
        if let Some(wanted) = self.expected_md5.filter(|wanted| *wanted != md5) {
            let (wanted, got) = (wanted.to_hex(), md5.to_hex());
            return Err(BlobError::WrongHash { id: self.id, what: "MD5", wanted, got });
        }
        let sha256 = self.sha256.clone().map(|hasher| ContentHash(hasher.finalize().into()));
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        self.check_turn(&parts)?;
        fs::write(&self.note, md5.to_hex()).during("write", &self.note)?;
        parts.arrived.insert(self.number, Part { md5, sha256 });
        Ok(md5)
    }

    fn check_turn(&self, parts: &Parts) -> Result<(), BlobError> {
        if parts.sealed || parts.turns.get(&self.number) != Some(&self.turn) {
            return Err(BlobError::Replaced { id: self.id, number: self.number });
        }
        Ok(())
    }

    fn bad_length(&self, got: u64) -> BlobError {
        BlobError::Length { id: self.id, number: self.number, wanted: self.wanted, got }
    }
}

fn part_path(folder: &Path, id: BlobId, number: u32) -> PathBuf {
    folder.join(format!("{id}.part-{number}"))
}
