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

/// Tokens may end by themselves.
pub(crate) const EXPIRY: &str = "ALTER TABLE tokens ADD COLUMN expires_at INTEGER;";

const COLUMNS: &str = "id, secret_hash, label, created_at, revoked_at, expires_at";

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
    /// When it ends by itself.
    pub expires_at: Option<UnixMs>,
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
        Self { id, secret_hash, label, created_at: now, revoked_at: None, expires_at: None }
    }

    /// Whether `secret` is this token's and the token is neither withdrawn nor over. What is compared are digests,
    /// so that the time it takes says nothing about the secret.
    pub fn accepts(&self, secret: &str, now: UnixMs) -> bool {
        self.revoked_at.is_none()
            && self.expires_at.is_none_or(|end| now < end)
            && self.secret_hash == Sha256::digest(secret.as_bytes()).as_slice()
    }
}

/// A change of a token.
#[derive(Debug, Clone)]
pub enum TokenWrite {
    /// Makes it.
    Put(TokenRow),
    /// Removes it.
    Delete {
        /// Its public part.
        id: String,
    },
}

impl TokenWrite {
    pub(crate) fn apply(&self, conn: &Connection) -> rusqlite::Result<()> {
        match self {
            Self::Put(row) => exec(
                conn,
                "INSERT INTO tokens (id, secret_hash, label, created_at, revoked_at, expires_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                 ON CONFLICT (id) DO UPDATE SET secret_hash = excluded.secret_hash, label = excluded.label,
                   revoked_at = excluded.revoked_at, expires_at = excluded.expires_at",
                params![
                    row.id,
                    row.secret_hash,
                    row.label,
                    int(row.created_at),
                    row.revoked_at.map(int),
                    row.expires_at.map(int)
                ],
            )?,
            Self::Delete { id } => exec(conn, "DELETE FROM tokens WHERE id = ?1", [id])?,
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

    /// All, withdrawn or not; small enough to be kept in memory, so that no request waits for this.
    pub async fn all(&self) -> Result<Vec<TokenRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM tokens ORDER BY id");
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
        expires_at: opt_ms(row, 5)?,
    })
}
