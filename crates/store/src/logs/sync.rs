//! Syncs appended segments to the disk, off the path.

use crate::writer::lock;
use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Milliseconds after which the sync of an appended entry begins at the latest, unless the disk is still
/// busy with the one before.
pub const LOG_SYNC_DELAY_MS: u64 = 1_000;

/// Segments that wait for a sync; the next one is synced on the appender's time.
const WAITING_MAX: usize = 256;

#[derive(Debug, Default)]
struct Waiting {
    files: HashMap<PathBuf, Arc<File>>,
    closed: bool,
}

#[derive(Debug, Default)]
pub(super) struct LogSyncer {
    waiting: Mutex<Waiting>,
    wake: Condvar,
}

impl LogSyncer {
    /// `file` has new bytes.
    pub(super) fn dirty(&self, path: PathBuf, file: &Arc<File>) {
        let mut waiting = lock(&self.waiting);
        if waiting.files.len() >= WAITING_MAX && !waiting.files.contains_key(&path) {
            drop(waiting);
            return sync(&path, file);
        }
        let wake = waiting.files.is_empty();
        waiting.files.entry(path).or_insert_with(|| file.clone());
        drop(waiting);
        if wake {
            self.wake.notify_one();
        }
    }

    pub(super) fn close(&self) {
        lock(&self.waiting).closed = true;
        self.wake.notify_one();
    }

    /// The thread: ends once closed and all is synced.
    pub(super) fn run(&self) {
        loop {
            let mut waiting = lock(&self.waiting);
            while waiting.files.is_empty() {
                if waiting.closed {
                    return;
                }
                waiting = self.wake.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            }
            let delay = Duration::from_millis(LOG_SYNC_DELAY_MS);
            let (mut waiting, _) = self
                .wake
                .wait_timeout_while(waiting, delay, |waiting| !waiting.closed)
                .unwrap_or_else(PoisonError::into_inner);
            let files = std::mem::take(&mut waiting.files);
            drop(waiting);
            for (path, file) in files {
                sync(&path, &file);
            }
        }
    }
}

/// A failed sync is reported and not fatal: the entries are still read from memory, and what a loss of
/// power would then take are log lines.
fn sync(path: &std::path::Path, file: &File) {
    if let Err(error) = file.sync_data() {
        tracing::error!(%error, path = %path.display(), "syncing a log segment failed");
    }
}
