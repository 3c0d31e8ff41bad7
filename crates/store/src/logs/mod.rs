//! Logs: for each app one stream of entries, kept in append-only segments.
//!
//! Invariants:
//! - When [`Logs::append`] returns, its entries survive SIGKILL of every process of ours; they are synced
//!   to the disk within [`LOG_SYNC_DELAY_MS`] and the time that the sync takes.
//! - An entry with a spool offset is appended once, however often it is sent: what lies before the offset
//!   up to which its task's spool was taken over is skipped.
//! - A record torn by a crash is cut off when the stream is next used; every record has a checksum.
//! - Memory is bounded, whatever is stored: a page of entries, an index of one segment, a fixed number of
//!   streams and of open files.
//!
//! Entry points: [`Logs`], [`NewEntry`], [`Filter`], [`Cursor`].

mod block_index;
mod cursor;
mod expire;
mod files;
mod lines;
mod read;
mod record;
mod segment;
mod stream;
mod sync;

pub use cursor::{Cursor, ParseCursorError};
pub use expire::{Expired, Retention};
pub use read::{
    BUCKETS_MAX, Bucket, PAGE_BYTES_MAX, Page, RANGE_BYTES_MAX, RANGE_ENTRIES_MAX, Range, TimeRange, Wanted,
};
pub use record::ENTRY_DATA_MAX;
pub use sync::LOG_SYNC_DELAY_MS;

use crate::StoreError;
use crate::writer::lock;
use bytes::Bytes;
use evoke_core::{AppId, CallId, FunctionId, ImageId, InputId, TaskId, UnixMs};
use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{self, JoinHandle};
use stream::{Shared, StreamState, View};
use sync::LogSyncer;
use tokio::sync::watch;

/// How the log store is set up.
#[derive(Debug, Clone)]
pub struct LogsConfig {
    /// Bytes after which a new segment begins.
    pub segment_bytes: u64,
    /// Streams whose state is kept in memory; that of others is read again from their last segment.
    pub streams_max: usize,
}

impl Default for LogsConfig {
    fn default() -> Self {
        Self { segment_bytes: 8 * 1024 * 1024, streams_max: 4_096 }
    }
}

/// Names a stream: the app whose output it holds, or the image whose build.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StreamName(String);

impl From<AppId> for StreamName {
    fn from(id: AppId) -> Self {
        Self(id.to_string())
    }
}

impl From<ImageId> for StreamName {
    fn from(id: ImageId) -> Self {
        Self(id.to_string())
    }
}

impl fmt::Display for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Output to be appended.
#[derive(Debug, Clone, Default)]
pub struct NewEntry {
    /// When it was written, in nanoseconds since the Unix epoch.
    pub at_ns: u64,
    /// The container that wrote it.
    pub task: Option<TaskId>,
    /// The function that the container belongs to.
    pub function: Option<FunctionId>,
    /// The call that it certainly belongs to.
    pub call: Option<CallId>,
    /// The input that it certainly belongs to.
    pub input: Option<InputId>,
    /// 1 for stdout, 2 for stderr, 3 for words of the system.
    pub fd: u8,
    /// Where it begins in the spool of the task and file descriptor.
    pub spool_offset: Option<u64>,
    /// The bytes written.
    pub data: Bytes,
}

/// Stored output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// When it was written, in nanoseconds since the Unix epoch.
    pub at_ns: u64,
    /// The container that wrote it.
    pub task: Option<TaskId>,
    /// The function that the container belongs to.
    pub function: Option<FunctionId>,
    /// The call that it certainly belongs to.
    pub call: Option<CallId>,
    /// The input that it certainly belongs to.
    pub input: Option<InputId>,
    /// 1 for stdout, 2 for stderr, 3 for words of the system.
    pub fd: u8,
    /// Where it begins in the spool of the task and file descriptor.
    pub spool_offset: Option<u64>,
    /// The bytes written.
    pub data: Bytes,
    /// The place behind it: where to go on.
    pub next: Cursor,
}

/// Which entries are wanted; everything by default.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Of this container.
    pub task: Option<TaskId>,
    /// Of one of these functions; of any where there are none.
    pub functions: Vec<FunctionId>,
    /// Of this call.
    pub call: Option<CallId>,
    /// Of this input.
    pub input: Option<InputId>,
    /// Of this file descriptor.
    pub fd: Option<u8>,
    /// With this text in them.
    pub text: Option<String>,
}

/// A handle to the log store; cheap to clone. The last one to be dropped syncs and ends its thread.
#[derive(Clone)]
pub struct Logs {
    inner: Arc<Inner>,
}

type Hook = Box<dyn Fn(&StreamName) + Send + Sync>;

struct Inner {
    root: PathBuf,
    streams_max: usize,
    streams: Mutex<Streams>,
    shared: Shared,
    hook: OnceLock<Hook>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Streams {
    states: HashMap<StreamName, (Arc<Mutex<StreamState>>, u64)>,
    uses: u64,
}

impl fmt::Debug for Logs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Logs").field("root", &self.inner.root).finish_non_exhaustive()
    }
}

impl Logs {
    /// Opens the log store in the folder `root`, which is made if there is none. Reads nothing yet.
    pub fn open(root: &Path, config: LogsConfig) -> Result<Self, StoreError> {
        std::fs::create_dir_all(root)?;
        let syncer = Arc::new(LogSyncer::new(root));
        let run = {
            let syncer = syncer.clone();
            move || syncer.run()
        };
        let thread = thread::Builder::new().name("log-sync".to_owned()).spawn(run)?;
        let shared = Shared { files: Default::default(), syncer, segment_bytes: config.segment_bytes };
        let inner = Inner {
            root: root.to_owned(),
            streams_max: config.streams_max.max(1),
            streams: Mutex::default(),
            shared,
            hook: OnceLock::new(),
            thread: Mutex::new(Some(thread)),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Calls `hook` after each append, on the appender's thread; it must be quick. Only the first hook
    /// counts; `false` for a later one.
    pub fn on_append(&self, hook: impl Fn(&StreamName) + Send + Sync + 'static) -> bool {
        self.inner.hook.set(Box::new(hook)).is_ok()
    }

    /// Appends entries in their order; the place behind them. One write to the file system, or a few for
    /// more than 4 MiB. What was appended before (by its spool offset) is skipped. If it fails, a part may
    /// have been appended, and sending all of it again is right.
    pub fn append(&self, stream: &StreamName, entries: &[NewEntry]) -> Result<Cursor, StoreError> {
        let end = self.with(stream, |state, shared| state.append(entries, shared))?;
        if let Some(hook) = self.inner.hook.get() {
            hook(stream);
        }
        Ok(end)
    }

    /// Follows the place behind the stream's last entry. Read from a cursor, then wait for a change.
    pub fn subscribe(&self, stream: &StreamName) -> Result<watch::Receiver<Cursor>, StoreError> {
        self.with(stream, |state, _| state.subscribe())
    }

    /// The place behind the stream's last entry.
    pub fn end(&self, stream: &StreamName) -> Result<Cursor, StoreError> {
        Ok(self.view(stream)?.map_or(Cursor::START, |view| view.end))
    }

    /// How many bytes of the task's stdout and stderr spools have been appended.
    pub fn taken_over(&self, stream: &StreamName, task: TaskId) -> Result<(u64, u64), StoreError> {
        self.with(stream, |state, _| Ok((state.taken_over(task, 1)?, state.taken_over(task, 2)?)))
    }

    /// The task is gone and its spools are shipped: their offsets need not be kept.
    pub fn forget_task(&self, stream: &StreamName, task: TaskId) {
        lock(&self.inner.state(stream)).forget(task);
    }

    /// The entries after `from` that match, up to a page. Off the async threads.
    pub async fn read_from(
        &self,
        stream: StreamName,
        from: Cursor,
        filter: Filter,
    ) -> Result<Page, StoreError> {
        self.off_thread(move |logs| match logs.view(&stream)? {
            Some(view) => read::page(&view, from, &filter),
            None => Ok(Page { entries: Vec::new(), next: Cursor::START, at_end: true }),
        })
        .await
    }

    /// What of a time matches, in the order of the times.
    pub async fn read_range(
        &self,
        stream: StreamName,
        time: TimeRange,
        filter: Filter,
        wanted: Wanted,
    ) -> Result<Range, StoreError> {
        self.off_thread(move |logs| match logs.view(&stream)? {
            Some(view) => read::range(&view, time, &filter, wanted),
            None => Ok(Range { entries: Vec::new(), truncated: false }),
        })
        .await
    }

    /// How many lines of each kind a time has, in buckets of `bucket_ns` aligned to that size. Buckets without
    /// any are left out.
    pub async fn count(
        &self,
        stream: StreamName,
        time: TimeRange,
        filter: Filter,
        bucket_ns: u64,
    ) -> Result<Vec<Bucket>, StoreError> {
        self.off_thread(move |logs| match logs.view(&stream)? {
            Some(view) => read::count(&view, time, &filter, bucket_ns),
            None => Ok(Vec::new()),
        })
        .await
    }

    /// Deletes what is too old or too much, whole segments at a time.
    pub async fn expire(&self, now: UnixMs, retention: Retention) -> Result<Expired, StoreError> {
        self.off_thread(move |logs| expire::expire(logs, now, retention)).await
    }

    async fn off_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Logs) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let logs = self.clone();
        match tokio::task::spawn_blocking(move || work(&logs)).await {
            Ok(result) => result,
            Err(ended) if ended.is_panic() => std::panic::resume_unwind(ended.into_panic()),
            Err(_) => Err(StoreError::Closed),
        }
    }

    fn view(&self, stream: &StreamName) -> Result<Option<View>, StoreError> {
        self.with(stream, |state, _| state.view())
    }

    fn with<T>(
        &self,
        stream: &StreamName,
        work: impl FnOnce(&mut StreamState, &Shared) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let state = self.inner.state(stream);
        let mut state = lock(&state);
        work(&mut state, &self.inner.shared)
    }
}

impl Inner {
    fn state(&self, name: &StreamName) -> Arc<Mutex<StreamState>> {
        let mut streams = lock(&self.streams);
        streams.uses += 1;
        let now = streams.uses;
        if let Some((state, used)) = streams.states.get_mut(name) {
            *used = now;
            return state.clone();
        }
        if streams.states.len() >= self.streams_max {
            streams.evict();
        }
        let state = Arc::new(Mutex::new(StreamState::new(self.root.join(&name.0))));
        streams.states.insert(name.clone(), (state.clone(), now));
        state
    }
}

impl Streams {
    /// Forgets the half of the streams that was not used for longest; a stream in use stays.
    fn evict(&mut self) {
        let middle = {
            let mut uses: Vec<u64> = self.states.values().map(|(_, used)| *used).collect();
            let half = uses.len() / 2;
            *uses.select_nth_unstable(half).1
        };
        self.states.retain(|_, (state, used)| {
            // Nobody else can get at it while the map is locked.
            *used >= middle || Arc::strong_count(state) > 1 || lock(state).is_watched()
        });
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.syncer.close();
        if lock(&self.thread).take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the log store's thread ended by a panic");
        }
    }
}
