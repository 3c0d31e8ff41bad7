//! Retention as writes: each deletes one bounded slice, so that the writer is never held for long. Whoever
//! keeps time submits them again and again.

use crate::calls;
use evoke_core::UnixMs;
use rusqlite::Connection;

/// Calls, and containers, that one write deletes at most.
const SLICE: u32 = 200;

/// What is to be forgotten.
#[derive(Debug, Clone)]
pub enum RetentionWrite {
    /// Calls whose last result is older than `before`, with their inputs and results.
    CallsBefore {
        /// The oldest time to keep.
        before: UnixMs,
    },
    /// The oldest ended calls, while the database has more than `max_bytes`.
    CallsOverBytes {
        /// Bytes that the database may have.
        max_bytes: u64,
        /// Now.
        now: UnixMs,
    },
}

impl RetentionWrite {
    pub(crate) fn apply(&self, conn: &Connection) -> rusqlite::Result<()> {
        match self {
            Self::CallsBefore { before } => calls::delete_before(conn, *before, SLICE)?,
            Self::CallsOverBytes { max_bytes, now } => {
                calls::delete_over_bytes(conn, *max_bytes, *now, SLICE)?
            }
        };
        Ok(())
    }
}
