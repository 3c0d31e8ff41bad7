//! Class handles: thin objects beside the service function that does the work.

use crate::sql::{exec, id, int, many, ms, one};
use crate::{Store, StoreError};
use evoke_core::{AppId, ClassId, UnixMs};
use rusqlite::{Connection, Row, params};

pub(crate) const SCHEMA: &str = "
CREATE TABLE classes (
  id TEXT PRIMARY KEY, app_id TEXT NOT NULL, tag TEXT NOT NULL, created_at INTEGER NOT NULL,
  body BLOB NOT NULL, metadata BLOB NOT NULL
) WITHOUT ROWID;
CREATE UNIQUE INDEX classes_by_tag ON classes (app_id, tag);
";

const COLUMNS: &str = "id, app_id, tag, created_at, body, metadata";

/// A stored class handle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassRow {
    /// Its id; stays the same over the versions of an app.
    pub id: ClassId,
    /// The app that it belongs to.
    pub app_id: AppId,
    /// Its name, unique in the app.
    pub tag: String,
    /// When it was made.
    pub created_at: UnixMs,
    /// The request that made it, as received.
    pub body: Vec<u8>,
    /// What clients are given as its handle.
    pub metadata: Vec<u8>,
}

/// A change of a class handle.
#[derive(Debug, Clone)]
pub enum ClassWrite {
    /// Makes it, or replaces what is stored under its id.
    Put(ClassRow),
    /// It left its app.
    Delete {
        /// Which.
        id: ClassId,
    },
}

impl ClassWrite {
    pub(crate) fn apply(&self, conn: &Connection) -> rusqlite::Result<()> {
        match self {
            Self::Put(row) => exec(
                conn,
                "INSERT INTO classes (id, app_id, tag, created_at, body, metadata)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                 ON CONFLICT (id) DO UPDATE SET tag = excluded.tag, body = excluded.body,
                   metadata = excluded.metadata",
                params![
                    row.id.to_string(),
                    row.app_id.to_string(),
                    row.tag,
                    int(row.created_at),
                    row.body,
                    row.metadata
                ],
            )?,
            Self::Delete { id } => exec(conn, "DELETE FROM classes WHERE id = ?1", [id.to_string()])?,
        };
        Ok(())
    }
}

/// Reads class handles.
#[derive(Debug, Clone, Copy)]
pub struct Classes<'a>(pub(crate) &'a Store);

impl Classes<'_> {
    /// The one with this id.
    pub async fn by_id(&self, id: ClassId) -> Result<Option<ClassRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM classes WHERE id = ?1");
        self.0.read(move |conn| one(conn, &sql, [id.to_string()], from_row)).await
    }

    /// The one with this tag in an app.
    pub async fn by_tag(&self, app: AppId, tag: String) -> Result<Option<ClassRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM classes WHERE app_id = ?1 AND tag = ?2");
        self.0.read(move |conn| one(conn, &sql, params![app.to_string(), tag], from_row)).await
    }

    /// All of an app, in order of creation.
    pub async fn of_app(&self, app: AppId) -> Result<Vec<ClassRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM classes WHERE app_id = ?1 ORDER BY id");
        self.0.read(move |conn| many(conn, &sql, [app.to_string()], from_row)).await
    }
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<ClassRow> {
    Ok(ClassRow {
        id: id(row, 0)?,
        app_id: id(row, 1)?,
        tag: row.get(2)?,
        created_at: ms(row, 3)?,
        body: row.get(4)?,
        metadata: row.get(5)?,
    })
}
