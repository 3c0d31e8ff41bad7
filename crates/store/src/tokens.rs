//! Tokens of clients. Of the secret part only a hash is stored: it is random and long, so that a plain
//! digest cannot be guessed back.

use crate::sql::{exec, int, many, ms, one, opt_ms};
use crate::{Store, StoreError};
use evoke_core::UnixMs;
use rusqlite::{Connection, Row, params};
use sha2::{Digest, Sha256};
use std::fmt;

pub(crate) const SCHEMA: &str = "
CREATE TABLE tokens (
  id TEXT PRIMARY KEY, secret_hash BLOB NOT NULL, label TEXT NOT NULL, created_at INTEGER NOT NULL,
  revoked_at INTEGER
) WITHOUT ROWID;
";

const COLUMNS: &str = "id, secret_hash, label, created_at, revoked_at";

/// A stored token.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenRow {
    /// Its public part.
    pub id: String,
    /// SHA-256 of its secret part.
    pub secret_hash: Vec<u8>,
    /// Whom or what it is for.
    pub label: String,
    /// When it was made.
    pub created_at: UnixMs,
    /// When it was withdrawn.
    pub revoked_at: Option<UnixMs>,
}

impl fmt::Debug for TokenRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenRow")
            .field("id", &self.id)
            .field("label", &self.label)
            .field("revoked_at", &self.revoked_at)
            .finish_non_exhaustive()
    }
}

impl TokenRow {
    /// The row for a new token with this secret part.
    pub fn new(id: String, secret: &str, label: String, now: UnixMs) -> Self {
        let secret_hash = Sha256::digest(secret.as_bytes()).to_vec();
        Self { id, secret_hash, label, created_at: now, revoked_at: None }
    }

    /// Whether `secret` is this token's and the token is not withdrawn. What is compared are digests, so
    /// that the time it takes says nothing about the secret.
    pub fn accepts(&self, secret: &str) -> bool {
        self.revoked_at.is_none() && self.secret_hash == Sha256::digest(secret.as_bytes()).as_slice()
    }
}

/// A change of a token.
#[derive(Debug, Clone)]
pub enum TokenWrite {
    /// Makes it.
    Put(TokenRow),
    /// Withdraws it.
    Revoke {
        /// Its public part.
        id: String,
        /// When.
        at: UnixMs,
    },
}

impl TokenWrite {
    pub(crate) fn apply(&self, conn: &Connection) -> rusqlite::Result<()> {
        match self {
            Self::Put(row) => exec(
                conn,
                "INSERT INTO tokens (id, secret_hash, label, created_at, revoked_at)
                 VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT (id) DO UPDATE SET secret_hash = excluded.secret_hash, label = excluded.label,
                   revoked_at = excluded.revoked_at",
                params![row.id, row.secret_hash, row.label, int(row.created_at), row.revoked_at.map(int)],
            )?,
            Self::Revoke { id, at } => exec(
                conn,
                "UPDATE tokens SET revoked_at = ?2 WHERE id = ?1 AND revoked_at IS NULL",
                params![id, int(*at)],
            )?,
        };
        Ok(())
    }
}

/// Reads tokens.
#[derive(Debug, Clone, Copy)]
pub struct Tokens<'a>(pub(crate) &'a Store);

impl Tokens<'_> {
    /// The one with this public part, withdrawn or not.
    pub async fn by_id(&self, id: String) -> Result<Option<TokenRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM tokens WHERE id = ?1");
        self.0.read(move |conn| one(conn, &sql, [id], from_row)).await
    }

    /// All that are not withdrawn; small enough to be kept in memory, so that no request waits for this.
    pub async fn live(&self) -> Result<Vec<TokenRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM tokens WHERE revoked_at IS NULL ORDER BY id");
        self.0.read(move |conn| many(conn, &sql, [], from_row)).await
    }
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<TokenRow> {
    Ok(TokenRow {
        id: row.get(0)?,
        secret_hash: row.get(1)?,
        label: row.get(2)?,
        created_at: ms(row, 3)?,
        revoked_at: opt_ms(row, 4)?,
    })
}
