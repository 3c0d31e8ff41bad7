//! One stream while it is in use: where its next record goes, how far spools were taken over, who waits.

use super::block_index::BlockIndex;
use super::files::OpenFiles;
use super::record::{self, ENTRY_DATA_MAX, Taken};
use super::segment::{self, HEADER, Scanned};
use super::sync::LogSyncer;
use super::{Cursor, NewEntry};
use crate::StoreError;
use evoke_core::TaskId;
use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::watch;

/// Bytes that go to a segment in one write.
const WRITE_MAX: usize = 4 * 1024 * 1024;

/// What a stream shares with the others.
#[derive(Debug)]
pub(super) struct Shared {
    pub files: OpenFiles,
    pub syncer: Arc<LogSyncer>,
    pub segment_bytes: u64,
}

/// A stream's state. Read from its last segment when it is first used.
#[derive(Debug)]
pub(super) struct StreamState {
    folder: PathBuf,
    loaded: Option<Loaded>,
    end: watch::Sender<Cursor>,
}

#[derive(Debug)]
struct Loaded {
    /// The first segment that is kept, and the one that is written.
    first: u32,
    last: u32,
    /// Where the next record goes in the last segment.
    end: u64,
    index: BlockIndex,
    taken: HashMap<(TaskId, u8), u64>,
}

/// What a reader needs to know of a stream at one moment.
#[derive(Debug, Clone)]
pub(super) struct View {
    pub folder: PathBuf,
    pub first: u32,
    pub end: Cursor,
    /// The index of the last segment.
    pub index: BlockIndex,
}

impl StreamState {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder, loaded: None, end: watch::Sender::new(Cursor::START) }
    }

    /// Whether somebody waits for its entries.
    pub(super) fn is_watched(&self) -> bool {
        self.end.receiver_count() > 0
    }

    pub(super) fn subscribe(&mut self) -> Result<watch::Receiver<Cursor>, StoreError> {
        self.load()?;
        Ok(self.end.subscribe())
    }

    /// How things stand; `None` for a stream without entries.
    pub(super) fn view(&mut self) -> Result<Option<View>, StoreError> {
        let folder = self.folder.clone();
        Ok(self.load()?.map(|loaded| View {
            folder,
            first: loaded.first,
            end: Cursor { segment: loaded.last, offset: loaded.end },
            index: loaded.index.clone(),
        }))
    }

    pub(super) fn taken_over(&mut self, task: TaskId, fd: u8) -> Result<u64, StoreError> {
        Ok(self.load()?.and_then(|loaded| loaded.taken.get(&(task, fd)).copied()).unwrap_or(0))
    }

    pub(super) fn forget(&mut self, task: TaskId) {
        if let Some(loaded) = &mut self.loaded {
            loaded.taken.retain(|(of, _), _| *of != task);
        }
    }

    /// Appends what of `entries` was not yet appended; the place behind it. Entries are on their way to the
    /// disk in one write (in several, if they are more than [`WRITE_MAX`]), and survive the process.
    pub(super) fn append(&mut self, entries: &[NewEntry], shared: &Shared) -> Result<Cursor, StoreError> {
        self.load()?;
        if self.loaded.is_none() {
            fs::create_dir_all(&self.folder)?;
            self.begin_segment(1, shared)?;
        }
        let mut pending = Pending::default();
        for entry in entries {
            let taken = match (&self.loaded, entry.task, entry.spool_offset) {
                (Some(loaded), Some(task), Some(_)) => pending
                    .taken
                    .get(&(task, entry.fd))
                    .or_else(|| loaded.taken.get(&(task, entry.fd)))
                    .copied(),
                _ => None,
            };
            pending.add(entry, taken.unwrap_or(0));
            if pending.bytes.len() >= WRITE_MAX {
                self.write(std::mem::take(&mut pending), shared)?;
            }
        }
        self.write(pending, shared)?;
        Ok(*self.end.borrow())
    }

    fn write(&mut self, pending: Pending, shared: &Shared) -> Result<(), StoreError> {
        if pending.bytes.is_empty() {
            return Ok(());
        }
        let full = self.loaded.as_ref().is_some_and(|loaded| {
            loaded.index.len() > 0 && loaded.end + pending.bytes.len() as u64 > shared.segment_bytes
        });
        if full {
            self.rotate(shared)?;
        }
        let Some(loaded) = &mut self.loaded else {
            // `append` has made the first segment.
            return Err(StoreError::Closed);
        };
        let file = shared.files.get(&self.folder, loaded.last)?;
        write_or_undo(&file, &pending.bytes, loaded.end)?;
        for (at, at_ns) in pending.starts {
            loaded.index.add(loaded.end + at as u64, at_ns);
        }
        loaded.end += pending.bytes.len() as u64;
        loaded.taken.extend(pending.taken);
        shared.syncer.dirty(segment::path(&self.folder, loaded.last));
        self.end.send_replace(Cursor { segment: loaded.last, offset: loaded.end });
        Ok(())
    }

    /// Ends the segment that is written and begins the next.
    fn rotate(&mut self, shared: &Shared) -> Result<(), StoreError> {
        let Some(loaded) = &self.loaded else { return Ok(()) };
        let last = loaded.last;
        // Best effort: a reader makes a missing index again.
        if let Err(error) = loaded.index.save(&segment::index_path(&self.folder, last)) {
            tracing::warn!(%error, "storing the index of a log segment");
        }
        self.begin_segment(last + 1, shared)?;
        shared.files.forget(&self.folder, last);
        Ok(())
    }

    fn begin_segment(&mut self, number: u32, shared: &Shared) -> Result<(), StoreError> {
        let taken = self.loaded.as_mut().map(|loaded| std::mem::take(&mut loaded.taken)).unwrap_or_default();
        let mut bytes = HEADER.to_vec();
        let all = taken.iter().map(|((task, fd), offset)| Taken { task: *task, fd: *fd, offset: *offset });
        record::put_snapshot(&mut bytes, newest_first(all).into_iter());
        let written = create(&segment::path(&self.folder, number), &bytes);
        match written {
            Ok(file) => {
                shared.syncer.dirty(segment::path(&self.folder, number));
                shared.files.put(&self.folder, number, Arc::new(file));
                let first = self.loaded.as_ref().map_or(number, |loaded| loaded.first);
                let end = bytes.len() as u64;
                self.loaded = Some(Loaded { first, last: number, end, index: BlockIndex::default(), taken });
                Ok(())
            }
            Err(error) => {
                if let Some(loaded) = &mut self.loaded {
                    loaded.taken = taken;
                }
                Err(error.into())
            }
        }
    }

    /// Retention took the segments before `first`.
    pub(super) fn dropped_before(&mut self, first: u32) {
        if let Some(loaded) = &mut self.loaded {
            loaded.first = loaded.first.max(first);
        }
    }

    /// Closes its file, before its folder goes.
    pub(super) fn close(&mut self, shared: &Shared) {
        if let Some(loaded) = self.loaded.take() {
            shared.files.forget(&self.folder, loaded.last);
        }
    }

    fn load(&mut self) -> Result<Option<&mut Loaded>, StoreError> {
        if self.loaded.is_none() {
            if let Some(loaded) = load(&self.folder)? {
                self.end.send_replace(Cursor { segment: loaded.last, offset: loaded.end });
                self.loaded = Some(loaded);
            }
        }
        Ok(self.loaded.as_mut())
    }
}

/// Records on their way to a segment.
#[derive(Default)]
struct Pending {
    bytes: Vec<u8>,
    /// Where each record begins in `bytes`, and its time.
    starts: Vec<(usize, u64)>,
    taken: HashMap<(TaskId, u8), u64>,
}

impl Pending {
    /// Adds the part of an entry that lies behind `taken`, in records of bounded size.
    fn add(&mut self, entry: &NewEntry, taken: u64) {
        let mut data = &entry.data[..];
        let mut offset = entry.spool_offset;
        if let Some(start) = offset {
            let known = usize::try_from(taken.saturating_sub(start)).unwrap_or(usize::MAX).min(data.len());
            data = &data[known..];
            offset = Some(start + known as u64);
        }
        while !data.is_empty() {
            let (now, rest) = data.split_at(cut(data));
            self.starts.push((self.bytes.len(), entry.at_ns));
            record::put_entry(&mut self.bytes, entry, offset, now);
            offset = offset.map(|offset| offset + now.len() as u64);
            data = rest;
        }
        if let (Some(task), Some(end)) = (entry.task, offset) {
            self.taken.insert((task, entry.fd), end.max(taken));
        }
    }
}

/// How much of `data` fits a record, without parting a character.
fn cut(data: &[u8]) -> usize {
    if data.len() <= ENTRY_DATA_MAX {
        return data.len();
    }
    let is_start = |at: &usize| data[*at] & 0xC0 != 0x80;
    (ENTRY_DATA_MAX - 3..=ENTRY_DATA_MAX).rev().find(is_start).unwrap_or(ENTRY_DATA_MAX)
}

/// Tasks made later first: a snapshot has a bound, and what it leaves out are the oldest.
fn newest_first(taken: impl Iterator<Item = Taken>) -> Vec<Taken> {
    let mut taken: Vec<Taken> = taken.collect();
    taken.sort_unstable_by_key(|taken| (std::cmp::Reverse(taken.task), taken.fd));
    taken
}

/// Writes `bytes` at `end`; where that fails half-way (a full disk), cuts off what was written.
fn write_or_undo(file: &File, bytes: &[u8], end: u64) -> Result<(), StoreError> {
    let Err(error) = file.write_all_at(bytes, end) else { return Ok(()) };
    if let Err(undo) = file.set_len(end) {
        // The next append writes over it, and a restart stops at it.
        tracing::warn!(error = %undo, "cutting off a half-written log record");
    }
    Err(error.into())
}

fn create(path: &Path, bytes: &[u8]) -> std::io::Result<File> {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
    if let Err(error) = file.write_all_at(bytes, 0) {
        // Left behind it would be recognised as unfinished; it is only tidier without.
        let _ = fs::remove_file(path);
        return Err(error);
    }
    Ok(file)
}

/// Reads the last segment of a folder through, and cuts off what was torn at its end.
fn load(folder: &Path) -> Result<Option<Loaded>, StoreError> {
    let numbers = segment::list(folder)?;
    for (at, number) in numbers.iter().enumerate().rev() {
        let file = File::options().read(true).write(true).open(segment::path(folder, *number))?;
        let Some(Scanned { end, index, taken }) = segment::scan(&file)? else {
            tracing::info!(segment = number, folder = %folder.display(), "removing an unfinished log segment");
            segment::remove(folder, *number)?;
            continue;
        };
        if file.metadata()?.len() > end {
            file.set_len(end)?;
        }
        let taken = taken.into_iter().fold(HashMap::new(), |mut map, taken| {
            let offset = map.entry((taken.task, taken.fd)).or_insert(0);
            *offset = taken.offset.max(*offset);
            map
        });
        // `at` counts from the first number, so that one exists.
        let first = numbers[..=at].first().copied().unwrap_or(*number);
        return Ok(Some(Loaded { first, last: *number, end, index, taken }));
    }
    Ok(None)
}
