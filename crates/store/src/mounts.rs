//! Sets of mounted files, named by the digest of their list; the files themselves are in the content
//! store.

use crate::sql::{exec, id, int, many, ms, one, opt_id, opt_text};
use crate::{Store, StoreError};
use evoke_core::{EnvironmentId, MountId, UnixMs};
use rusqlite::{Connection, Row, params};

pub(crate) const SCHEMA: &str = "
CREATE TABLE mounts (
  id TEXT PRIMARY KEY, digest TEXT NOT NULL, files BLOB NOT NULL, name TEXT, namespace INTEGER NOT NULL,
  environment_id TEXT, created_at INTEGER NOT NULL, used_at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE UNIQUE INDEX mounts_by_digest ON mounts (digest) WHERE name IS NULL;
CREATE UNIQUE INDEX mounts_by_name ON mounts (name, namespace, ifnull(environment_id, ''))
  WHERE name IS NOT NULL;
";

const COLUMNS: &str = "id, digest, files, name, namespace, environment_id, created_at, used_at";

/// A stored set of files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountRow {
    /// Its id.
    pub id: MountId,
    /// SHA-256 of the canonical list of files, in hexadecimal.
    pub digest: String,
    /// The list itself: path, digest and mode of each file, as control encodes it.
    pub files: Vec<u8>,
    /// Its name, if it is a deployed one.
    pub name: Option<String>,
    /// The protocol's namespace number.
    pub namespace: i32,
    /// The environment that a name belongs to.
    pub environment_id: Option<EnvironmentId>,
    /// When it was made.
    pub created_at: UnixMs,
    /// When a client last asked for it; what is not used may be collected.
    pub used_at: UnixMs,
}

/// A change of a set of files.
#[derive(Debug, Clone)]
pub enum MountWrite {
    /// Makes it, or replaces what is stored under its id.
    Put(MountRow),
    /// A client asked for it.
    Used {
        /// Which.
        id: MountId,
        /// When.
        at: UnixMs,
    },
    /// Forgets it unless it has a name or was used since.
    Collect {
        /// Which.
        id: MountId,
        /// It stays where it was used at this time or later.
        before: UnixMs,
    },
    /// Forgets it.
    Delete {
        /// Which.
        id: MountId,
    },
}

impl MountWrite {
    pub(crate) fn apply(&self, conn: &Connection) -> rusqlite::Result<()> {
        match self {
            Self::Put(row) => exec(
                conn,
                "INSERT INTO mounts (id, digest, files, name, namespace, environment_id, created_at, used_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
                 ON CONFLICT (id) DO UPDATE SET digest = excluded.digest, files = excluded.files,
                   used_at = excluded.used_at",
                params![
                    row.id.to_string(),
                    row.digest,
                    row.files,
                    row.name,
                    row.namespace,
                    opt_text(&row.environment_id),
                    int(row.created_at),
                    int(row.used_at)
                ],
            )?,
            Self::Used { id, at } => {
                exec(conn, "UPDATE mounts SET used_at = ?2 WHERE id = ?1", params![id.to_string(), int(*at)])?
            }
            Self::Collect { id, before } => exec(
                conn,
                "DELETE FROM mounts WHERE id = ?1 AND name IS NULL AND used_at < ?2",
                params![id.to_string(), int(*before)],
            )?,
            Self::Delete { id } => exec(conn, "DELETE FROM mounts WHERE id = ?1", [id.to_string()])?,
        };
        Ok(())
    }
}

/// Reads sets of files.
#[derive(Debug, Clone, Copy)]
pub struct Mounts<'a>(pub(crate) &'a Store);

impl Mounts<'_> {
    /// The one with this id.
    pub async fn by_id(&self, id: MountId) -> Result<Option<MountRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM mounts WHERE id = ?1");
        self.0.read(move |conn| one(conn, &sql, [id.to_string()], from_row)).await
    }

    /// At most `limit` in order of their ids, those after `after`.
    pub async fn page(&self, after: Option<MountId>, limit: u32) -> Result<Vec<MountRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM mounts WHERE id > ?1 ORDER BY id LIMIT ?2");
        let after = opt_text(&after).unwrap_or_default();
        self.0.read(move |conn| many(conn, &sql, params![after, limit], from_row)).await
    }

    /// The nameless one with this content.
    pub async fn by_digest(&self, digest: String) -> Result<Option<MountRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM mounts WHERE digest = ?1 AND name IS NULL");
        self.0.read(move |conn| one(conn, &sql, [digest], from_row)).await
    }

    /// The deployed one of this name.
    pub async fn by_name(
        &self,
        name: String,
        namespace: i32,
        environment: Option<EnvironmentId>,
    ) -> Result<Option<MountRow>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM mounts
             WHERE name = ?1 AND namespace = ?2 AND ifnull(environment_id, '') = ifnull(?3, '')"
        );
        let environment = opt_text(&environment);
        self.0.read(move |conn| one(conn, &sql, params![name, namespace, environment], from_row)).await
    }
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<MountRow> {
    Ok(MountRow {
        id: id(row, 0)?,
        digest: row.get(1)?,
        files: row.get(2)?,
        name: row.get(3)?,
        namespace: row.get(4)?,
        environment_id: opt_id(row, 5)?,
        created_at: ms(row, 6)?,
        used_at: ms(row, 7)?,
    })
}
