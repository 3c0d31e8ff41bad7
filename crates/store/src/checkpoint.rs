//! Moves the write-ahead log into the database, off the writer's path, and bounds the log's size.
//!
//! A passive checkpoint on a connection of its own holds up neither the writer nor a reader. While writes
//! keep coming it never quite catches up, and the log could not start again from its beginning; so once
//! the log is long and nearly moved, the writer itself moves the small rest between two groups. Writes that
//! outrun the disk are held up in the same way.

use crate::writer::lock;
use crate::{Db, StoreError};
use rusqlite::Connection;
use std::cell::Cell;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

/// Pages of the log (4 KiB each) after which a checkpoint is made, and again after as many more.
const CHECKPOINT_PAGES: u32 = 1_000;

/// Pages of the log from which on the writer finishes the checkpoint itself: 64 MiB.
const FINISH_PAGES: u32 = 16_384;

/// Pages of the log from which on the writer moves all of it, whatever it takes: 128 MiB. Only writes that
/// come faster than the disk takes them get that far, and they must be held up somewhere.
const WAIT_PAGES: u32 = 2 * FINISH_PAGES;

/// The rest that the writer may be asked to move: 4 MiB.
const FINISH_REST_PAGES: i64 = 1_024;

thread_local! {
    /// Pages in the log after this thread's last commit, until it is looked at. A hook of SQLite can carry no
    /// state of its own, and runs on the thread that commits.
    static WAL_PAGES: Cell<Option<u32>> = const { Cell::new(None) };
}

#[derive(Default)]
struct Wanted {
    checkpoint: bool,
    closed: bool,
}

/// The checkpointer's half that the writer speaks to.
#[derive(Default)]
pub(crate) struct Checkpointer {
    wanted: Mutex<Wanted>,
    wake: Condvar,
    finish: AtomicBool,
    /// Held while a checkpoint runs: SQLite refuses a second one.
    running: Mutex<()>,
    /// Pages at which the next checkpoint is made; only who commits touches it.
    next: Mutex<u32>,
}

impl Checkpointer {
    /// Begins to count the log's pages.
    pub(crate) fn watch(&self, conn: &Connection) {
        *lock(&self.next) = CHECKPOINT_PAGES;
        conn.wal_hook(Some(|_, pages| {
            WAL_PAGES.set(u32::try_from(pages).ok());
            Ok(())
        }));
    }

    /// Whether the writer has to move the log's rest before anything else is committed.
    pub(crate) fn wants_the_writer(&self) -> bool {
        self.finish.load(Ordering::Relaxed)
    }

    /// Called by the writer between two groups: asks for a checkpoint when one is due, or makes it.
    pub(crate) fn after_commit(&self, db: &Db) {
        self.after_led_commit();
        if self.finish.swap(false, Ordering::Relaxed) {
            match self.checkpoint(db.connection()) {
                Ok(done) if done.rest > 0 => {
                    tracing::debug!(rest = done.rest, "a reader keeps the log from starting again");
                }
                Ok(_) => {}
                Err(error) => log_failure(&error),
            }
        }
    }

    /// The same where another thread than the writer's has committed, which is not held up: what the writer has
    /// to do is left to it.
    pub(crate) fn after_led_commit(&self) {
        let Some(pages) = WAL_PAGES.take() else { return };
        let mut next = lock(&self.next);
        if pages + CHECKPOINT_PAGES < *next {
            // The log has started again.
            *next = CHECKPOINT_PAGES;
        }
        if pages >= *next {
            *next = pages + CHECKPOINT_PAGES;
            if pages >= WAIT_PAGES {
                self.finish.store(true, Ordering::Relaxed);
            } else {
                lock(&self.wanted).checkpoint = true;
                self.wake.notify_one();
            }
        }
    }

    fn checkpoint(&self, conn: &Connection) -> Result<Done, StoreError> {
        let _running = lock(&self.running);
        let done = conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| {
            let (pages, moved): (i64, i64) = (row.get(1)?, row.get(2)?);
            Ok(Done { pages, rest: pages - moved })
        })?;
        Ok(done)
    }

    /// Ends the thread.
    pub(crate) fn close(&self) {
        lock(&self.wanted).closed = true;
        self.wake.notify_one();
    }

    /// The checkpointer thread.
    pub(crate) fn run(&self, path: &Path) {
        let conn = match Db::open_checkpointer(path) {
            Ok(conn) => conn,
            Err(error) => return log_failure(&error),
        };
        while self.wait() {
            if let Err(error) = self.catch_up(&conn) {
                log_failure(&error);
            }
        }
    }

    /// Moves what is in the log. A long log is moved again and again while that brings it closer to its
    /// end, until the rest is small enough to be left to the writer.
    fn catch_up(&self, conn: &Connection) -> Result<(), StoreError> {
        let mut moved = -1;
        loop {
            let done = self.checkpoint(conn)?;
            let long = done.pages >= i64::from(FINISH_PAGES);
            if long && (1..=FINISH_REST_PAGES).contains(&done.rest) {
                self.finish.store(true, Ordering::Relaxed);
            }
            if !long || done.rest <= FINISH_REST_PAGES || done.pages - done.rest <= moved {
                return Ok(());
            }
            moved = done.pages - done.rest;
        }
    }

    fn wait(&self) -> bool {
        let mut wanted = lock(&self.wanted);
        loop {
            if wanted.closed {
                return false;
            }
            if std::mem::take(&mut wanted.checkpoint) {
                return true;
            }
            wanted = self.wake.wait(wanted).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

struct Done {
    pages: i64,
    rest: i64,
}

/// A failed checkpoint loses nothing: the log holds everything, and the next one tries again.
fn log_failure(error: &StoreError) {
    tracing::warn!(error = error as &dyn std::error::Error, "moving the write-ahead log into the database");
}
