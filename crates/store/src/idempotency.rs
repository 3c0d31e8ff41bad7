//! Replies kept for repeated requests. A reply is stored in the same batch as the effect of its request,
//! so that a client that asks again, after an answer lost with a connection or a server, gets the same
//! answer and no second effect.
//!
//! Keys are random, and an index over random keys would dirty a page of its own for every request. Rows
//! are therefore ordered by the time slice of the request first: inserts stay together, and a look-up,
//! which only requests that say they are repeated make, probes the slices from now backwards.

use crate::sql::{exec, int, one};
use crate::{Store, StoreError};
use evoke_core::UnixMs;
use rusqlite::{Connection, params};
use sha2::{Digest, Sha256};

pub(crate) const SCHEMA: &str = "
CREATE TABLE idempotency (
  slice INTEGER NOT NULL, hash INTEGER NOT NULL, key TEXT NOT NULL, rpc TEXT NOT NULL,
  reply BLOB NOT NULL, at INTEGER NOT NULL, PRIMARY KEY (slice, hash, key)
) WITHOUT ROWID;
";

/// How long a reply is kept, in milliseconds. A client gives up on a request long before.
pub const IDEMPOTENCY_RETENTION_MS: u64 = 60 * 60 * 1000;

/// Length of a time slice, in milliseconds.
const SLICE_MS: u64 = 4_096;

/// Slices that one [`IdempotencyWrite::Expire`] clears at most, so that it never holds up the writer.
const EXPIRE_SLICES_MAX: i64 = 64;

/// A kept reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyRow {
    /// The client's key of the request.
    pub key: String,
    /// The request's name; a key used for another request is not a repetition.
    pub rpc: String,
    /// The reply's bytes.
    pub reply: Vec<u8>,
    /// When it was answered.
    pub at: UnixMs,
}

/// A change of the kept replies.
#[derive(Debug, Clone)]
pub enum IdempotencyWrite {
    /// Keeps a reply.
    Keep(IdempotencyRow),
    /// Forgets replies given before `before`: the oldest, a bounded number of slices at a time.
    Expire {
        /// The oldest time to keep.
        before: UnixMs,
    },
}

impl From<IdempotencyRow> for crate::Write {
    fn from(row: IdempotencyRow) -> Self {
        IdempotencyWrite::Keep(row).into()
    }
}

impl IdempotencyWrite {
    pub(crate) fn apply(&self, conn: &Connection) -> rusqlite::Result<()> {
        match self {
            Self::Keep(row) => exec(
                conn,
                "INSERT INTO idempotency (slice, hash, key, rpc, reply, at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                 ON CONFLICT DO NOTHING",
                params![slice(row.at), hash(&row.key), row.key, row.rpc, row.reply, int(row.at)],
            )?,
            Self::Expire { before } => exec(
                conn,
                "DELETE FROM idempotency
                 WHERE slice < min(?1, (SELECT min(slice) FROM idempotency) + ?2)",
                params![slice(*before), EXPIRE_SLICES_MAX],
            )?,
        };
        Ok(())
    }
}

impl Store {
    /// The reply that was given to the request with this key, if it was answered in the last
    /// [`IDEMPOTENCY_RETENTION_MS`]. Only asked for requests that say they are repeated.
    pub async fn idempotent_reply(
        &self,
        key: String,
        rpc: String,
        now: UnixMs,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        self.read(move |conn| find(conn, &key, &rpc, now)).await
    }
}

pub(crate) fn find(
    conn: &Connection,
    key: &str,
    rpc: &str,
    now: UnixMs,
) -> Result<Option<Vec<u8>>, StoreError> {
    let hash = hash(key);
    let oldest = slice(UnixMs(now.0.saturating_sub(IDEMPOTENCY_RETENTION_MS)));
    // One slice beyond now: the clock may have been set back since.
    for slice in (oldest..=slice(now) + 1).rev() {
        let found = one(
            conn,
            "SELECT reply FROM idempotency WHERE slice = ?1 AND hash = ?2 AND key = ?3 AND rpc = ?4",
            params![slice, hash, key, rpc],
            |row| row.get(0),
        )?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

fn slice(at: UnixMs) -> i64 {
    int(UnixMs(at.0 / SLICE_MS))
}

fn hash(key: &str) -> i64 {
    let digest = Sha256::digest(key.as_bytes());
    let mut word = [0u8; 8];
    word.copy_from_slice(&digest[..8]);
    i64::from_le_bytes(word)
}
