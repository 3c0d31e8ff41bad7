//! Syncs appended segments to the disk, off the path.

use crate::writer::lock;
use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Milliseconds after which the sync of an appended entry begins at the latest, unless the disk is still
/// busy with the one before.
pub const LOG_SYNC_DELAY_MS: u64 = 1_000;

/// Segments that are synced one by one; more are synced with everything else on their file system, which
/// is one commit of its journal instead of one for each.
const ONE_BY_ONE_MAX: usize = 64;

#[derive(Debug, Default)]
struct Waiting {
    /// Segments with bytes that may not be on the disk: at most [`ONE_BY_ONE_MAX`] by name.
    segments: HashSet<PathBuf>,
    /// Whether there are others.
    more: bool,
    closed: bool,
}

impl Waiting {
    fn is_clean(&self) -> bool {
        self.segments.is_empty() && !self.more
    }
}

#[derive(Debug)]
pub(super) struct LogSyncer {
    root: PathBuf,
    waiting: Mutex<Waiting>,
    wake: Condvar,
}

impl LogSyncer {
    /// For segments somewhere in the folder `root`.
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), waiting: Mutex::default(), wake: Condvar::new() }
    }

    /// The segment at `path` has new bytes.
    pub(super) fn dirty(&self, path: PathBuf) {
        let mut waiting = lock(&self.waiting);
        let wake = waiting.is_clean();
        if waiting.segments.len() < ONE_BY_ONE_MAX {
            waiting.segments.insert(path);
        } else if !waiting.segments.contains(&path) {
            waiting.more = true;
        }
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
            while waiting.is_clean() {
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
            let segments = std::mem::take(&mut waiting.segments);
            let more = std::mem::take(&mut waiting.more);
            drop(waiting);
            if more {
                report(&self.root, sync_file_system(&self.root));
            } else {
                for segment in segments {
                    report(&segment, sync_segment(&segment));
                }
            }
        }
    }
}

/// Opened anew: the appender may have closed it, and a sync covers the file, not the descriptor.
fn sync_segment(path: &Path) -> io::Result<()> {
    match File::open(path) {
        Ok(file) => file.sync_data(),
        // Retention was quicker.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn sync_file_system(root: &Path) -> io::Result<()> {
    Ok(rustix::fs::syncfs(File::open(root)?)?)
}

/// A failed sync is not fatal: the entries are still read from memory, and what a loss of power would then
/// take are log lines.
fn report(path: &Path, result: io::Result<()>) {
    if let Err(error) = result {
        tracing::error!(%error, path = %path.display(), "syncing logs failed");
    }
}
