//! Syncs the write-ahead log to the disk, off the writer's path.
//!
//! One sync covers everything committed before it began. Batches of [`crate::Grade::Synced`] start one at
//! once and are acknowledged after it; others are synced within [`SYNC_DELAY_MS`].

use crate::StoreError;
use crate::writer::{Queue, Reply, answer, lock};
use std::fs::File;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Milliseconds after its commit at which the sync of a [`crate::Grade::Written`] batch begins at the
/// latest, unless the disk is still busy with the sync before.
pub const SYNC_DELAY_MS: u64 = 8;

#[derive(Default)]
struct Pending {
    /// The number of the last committed batch.
    written: u64,
    /// Committed batches that wait for a sync to begin, in order.
    waiting: Vec<(u64, Reply)>,
    /// The first of those that wait for the sync that runs.
    in_flight: Option<u64>,
    dirty: bool,
    closed: bool,
}

impl Pending {
    /// The number up to which every batch has reached its grade.
    fn through(&self) -> u64 {
        match self.in_flight.or(self.waiting.first().map(|(seq, _)| *seq)) {
            Some(first) => first - 1,
            None => self.written,
        }
    }
}

/// The syncer's half that the writer and the store speak to.
pub(crate) struct Syncer {
    pending: Mutex<Pending>,
    wake: Condvar,
    progress: watch::Sender<u64>,
}

impl Syncer {
    pub(crate) fn new() -> Self {
        Self { pending: Mutex::default(), wake: Condvar::new(), progress: watch::Sender::new(0) }
    }

    /// Follows the number up to which every batch has reached its grade.
    pub(crate) fn progress(&self) -> watch::Receiver<u64> {
        self.progress.subscribe()
    }

    /// Batches up to `seq` are committed; those of `to_sync` want a sync.
    pub(crate) fn written(&self, seq: u64, mut to_sync: Vec<(u64, Reply)>) {
        let mut pending = lock(&self.pending);
        pending.written = seq;
        let wake = !pending.dirty || !to_sync.is_empty();
        pending.dirty = true;
        pending.waiting.append(&mut to_sync);
        let through = pending.through();
        drop(pending);
        self.advance(through);
        if wake {
            self.wake.notify_one();
        }
    }

    /// Syncs what is left and ends the thread.
    pub(crate) fn close(&self) {
        lock(&self.pending).closed = true;
        self.wake.notify_one();
    }

    /// The syncer thread. `wal` is the log's file; `None` for a database in memory.
    pub(crate) fn run(&self, wal: Option<File>, queue: &Queue) {
        while let Some(replies) = self.next() {
            let synced = wal.as_ref().map_or(Ok(()), File::sync_data);
            let result = match synced {
                Ok(()) => Ok(()),
                Err(error) => {
                    // The kernel may have dropped the pages it could not write: what was acknowledged as
                    // written is no longer certain, and a later sync that succeeds would not prove it.
                    tracing::error!(%error, "syncing the write-ahead log failed; no more is accepted");
                    let poisoned = StoreError::Poisoned(error.to_string());
                    queue.refuse(poisoned.clone());
                    Err(poisoned)
                }
            };
            let through = {
                let mut pending = lock(&self.pending);
                pending.in_flight = None;
                pending.through()
            };
            for (_, reply) in replies {
                answer(reply, result.clone());
            }
            self.advance(through);
        }
    }

    /// Waits until a sync is due; what is to be acknowledged after it. `None` to end.
    fn next(&self) -> Option<Vec<(u64, Reply)>> {
        let mut pending = lock(&self.pending);
        while !pending.dirty {
            if pending.closed {
                return None;
            }
            pending = self.wake.wait(pending).unwrap_or_else(PoisonError::into_inner);
        }
        let delay = Duration::from_millis(SYNC_DELAY_MS);
        let (mut pending, _) = self
            .wake
            .wait_timeout_while(pending, delay, |pending| pending.waiting.is_empty() && !pending.closed)
            .unwrap_or_else(PoisonError::into_inner);
        pending.dirty = false;
        let replies = std::mem::take(&mut pending.waiting);
        pending.in_flight = replies.first().map(|(seq, _)| *seq);
        Some(replies)
    }

    fn advance(&self, through: u64) {
        self.progress.send_if_modified(|seen| {
            let moved = through > *seen;
            *seen = through.max(*seen);
            moved
        });
    }
}
