//! Large payloads: which exist and how far their upload is. Their bytes are files.

use crate::sql::{exec, id, int, many, ms, one};
use crate::{Store, StoreError};
use evoke_core::{BlobId, UnixMs};
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, Row, params};

pub(crate) const SCHEMA: &str = "
CREATE TABLE blobs (
  id TEXT PRIMARY KEY, size INTEGER NOT NULL, sha256 BLOB NOT NULL, state INTEGER NOT NULL,
  created_at INTEGER NOT NULL
) WITHOUT ROWID;
";

const COLUMNS: &str = "id, size, sha256, state, created_at";

/// How far a payload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlobState {
    /// Announced; its bytes are awaited.
    Uploading,
    /// Its bytes are there and verified.
    Complete,
}

impl ToSql for BlobState {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::from(match self {
            Self::Uploading => 0i64,
            Self::Complete => 1,
        }))
    }
}

impl FromSql for BlobState {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        match value.as_i64()? {
            0 => Ok(Self::Uploading),
            1 => Ok(Self::Complete),
            other => Err(FromSqlError::OutOfRange(other)),
        }
    }
}

/// A stored payload's metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobRow {
    /// Its id.
    pub id: BlobId,
    /// Bytes.
    pub size: u64,
    /// SHA-256 of its bytes as announced; empty where none was.
    pub sha256: Vec<u8>,
    /// How far it is.
    pub state: BlobState,
    /// When it was announced.
    pub created_at: UnixMs,
}

/// A change of a payload's metadata.
#[derive(Debug, Clone)]
pub enum BlobWrite {
    /// Announces it, or replaces what is stored under its id.
    Put(BlobRow),
    /// Its bytes are there.
    Complete {
        /// Which.
        id: BlobId,
    },
    /// Forgets it.
    Delete {
        /// Which.
        id: BlobId,
    },
}

impl BlobWrite {
    pub(crate) fn apply(&self, conn: &Connection) -> rusqlite::Result<()> {
        match self {
            Self::Put(row) => exec(
                conn,
                "INSERT INTO blobs (id, size, sha256, state, created_at) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT (id) DO UPDATE SET size = excluded.size, sha256 = excluded.sha256,
                   state = excluded.state",
                params![row.id.to_string(), row.size as i64, row.sha256, row.state, int(row.created_at)],
            )?,
            Self::Complete { id } => exec(
                conn,
                "UPDATE blobs SET state = ?2 WHERE id = ?1",
                params![id.to_string(), BlobState::Complete],
            )?,
            Self::Delete { id } => exec(conn, "DELETE FROM blobs WHERE id = ?1", [id.to_string()])?,
        };
        Ok(())
    }
}

/// Reads payloads' metadata.
#[derive(Debug, Clone, Copy)]
pub struct Blobs<'a>(pub(crate) &'a Store);

impl Blobs<'_> {
    /// The one with this id.
    pub async fn by_id(&self, id: BlobId) -> Result<Option<BlobRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM blobs WHERE id = ?1");
        self.0.read(move |conn| one(conn, &sql, [id.to_string()], from_row)).await
    }

    /// The oldest `limit` that were announced before `before`; for retention. Ids are ordered by time, so
    /// this reads no more than it returns.
    pub async fn older_than(&self, before: UnixMs, limit: u32) -> Result<Vec<BlobRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM blobs WHERE id < ?1 ORDER BY id LIMIT ?2");
        let first = BlobId::from_bits(u128::from(before.0) << 80).to_string();
        self.0.read(move |conn| many(conn, &sql, params![first, limit], from_row)).await
    }
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<BlobRow> {
    Ok(BlobRow {
        id: id(row, 0)?,
        size: row.get::<_, i64>(1)? as u64,
        sha256: row.get(2)?,
        state: row.get(3)?,
        created_at: ms(row, 4)?,
    })
}
