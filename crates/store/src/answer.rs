//! Writes whose answer depends on what is stored when their turn comes: a value that is popped, a key that
//! was there already. The writer decides them inside its transaction, in the order of submission, so that
//! no lock is needed between a look and the write that follows from it.

use crate::IdempotencyRow;
use crate::idempotency::IdempotencyWrite;
use crate::writer::lock;
use evoke_core::UnixMs;
use rusqlite::Connection;
use std::sync::{Arc, Mutex};

/// Has the encoded answer kept for a repeated request, in the transaction of its effect.
#[derive(Debug, Clone)]
pub struct Keep<T> {
    /// The client's key of the request.
    pub key: String,
    /// The request's name.
    pub rpc: String,
    /// When it is answered.
    pub at: UnixMs,
    /// Makes the reply out of the answer; none where a repeated request is to be decided anew.
    pub encode: fn(&T) -> Option<Vec<u8>>,
}

/// The place for the answer of one write. The submitter keeps a clone and takes the answer out once its ticket
/// is there; where the ticket fails, whatever lies here did not happen.
#[derive(Debug)]
pub struct Answer<T> {
    place: Arc<Mutex<Option<T>>>,
    keep: Option<Keep<T>>,
}

impl<T: Clone> Clone for Answer<T> {
    fn clone(&self) -> Self {
        Self { place: self.place.clone(), keep: self.keep.clone() }
    }
}

impl<T> Answer<T> {
    /// A place for an answer, which is also kept where `keep` says so.
    pub fn new(keep: Option<Keep<T>>) -> Self {
        Self { place: Arc::default(), keep }
    }

    /// The answer, once.
    pub fn take(&self) -> Option<T> {
        lock(&self.place).take()
    }

    /// Leaves the answer, and keeps its reply inside the caller's transaction.
    pub(crate) fn give(&self, conn: &Connection, answer: T) -> rusqlite::Result<()> {
        if let Some(keep) = &self.keep {
            if let Some(reply) = (keep.encode)(&answer) {
                let row = IdempotencyRow { key: keep.key.clone(), rpc: keep.rpc.clone(), reply, at: keep.at };
                IdempotencyWrite::Keep(row).apply(conn)?;
            }
        }
        *lock(&self.place) = Some(answer);
        Ok(())
    }
}
