//! Network file systems by name; what is in them is a folder on the disk.

use crate::sql::{exec, id, int, many, ms, one};
use crate::{Store, StoreError};
use evoke_core::{EnvironmentId, SharedVolumeId, UnixMs};
use rusqlite::{Connection, Row, params};

pub(crate) const SCHEMA: &str = "
CREATE TABLE shared_volumes (
  id TEXT PRIMARY KEY, environment_id TEXT NOT NULL, name TEXT, created_at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE UNIQUE INDEX shared_volumes_by_name ON shared_volumes (environment_id, name) WHERE name IS NOT NULL;
";

const COLUMNS: &str = "id, environment_id, name, created_at";

/// A network file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedVolumeRow {
    /// Its id.
    pub id: SharedVolumeId,
    /// The environment that it belongs to.
    pub environment_id: EnvironmentId,
    /// Its name, unique in the environment; none for an ephemeral one.
    pub name: Option<String>,
    /// When it was made.
    pub created_at: UnixMs,
}

/// A change of a network file system.
#[derive(Debug, Clone)]
pub enum SharedVolumeWrite {
    /// Makes it.
    Create(SharedVolumeRow),
    /// Deletes it.
    Delete {
        /// Which.
        id: SharedVolumeId,
    },
}

impl SharedVolumeWrite {
    pub(crate) fn apply(&self, conn: &Connection) -> rusqlite::Result<()> {
        match self {
            Self::Create(row) => exec(
                conn,
                "INSERT INTO shared_volumes (id, environment_id, name, created_at) VALUES (?1, ?2, ?3, ?4)",
                params![row.id.to_string(), row.environment_id.to_string(), row.name, int(row.created_at)],
            )?,
            Self::Delete { id } => exec(conn, "DELETE FROM shared_volumes WHERE id = ?1", [id.to_string()])?,
        };
        Ok(())
    }
}

/// Reads network file systems.
#[derive(Debug, Clone, Copy)]
pub struct SharedVolumes<'a>(pub(crate) &'a Store);

impl SharedVolumes<'_> {
    /// The one with this id.
    pub async fn by_id(&self, id: SharedVolumeId) -> Result<Option<SharedVolumeRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM shared_volumes WHERE id = ?1");
        self.0.read(move |conn| one(conn, &sql, [id.to_string()], from_row)).await
    }

    /// The one of this name.
    pub async fn by_name(
        &self,
        environment: EnvironmentId,
        name: String,
    ) -> Result<Option<SharedVolumeRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM shared_volumes WHERE environment_id = ?1 AND name = ?2");
        self.0.read(move |conn| one(conn, &sql, params![environment.to_string(), name], from_row)).await
    }

    /// The named ones of an environment, newest first.
    pub async fn list(&self, environment: EnvironmentId) -> Result<Vec<SharedVolumeRow>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM shared_volumes WHERE environment_id = ?1 AND name IS NOT NULL
             ORDER BY created_at DESC"
        );
        self.0.read(move |conn| many(conn, &sql, [environment.to_string()], from_row)).await
    }

    /// Those without a name: they live for as long as a client says so.
    pub async fn ephemeral(&self) -> Result<Vec<SharedVolumeRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM shared_volumes WHERE name IS NULL");
        self.0.read(move |conn| many(conn, &sql, [], from_row)).await
    }
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<SharedVolumeRow> {
    Ok(SharedVolumeRow {
        id: id(row, 0)?,
        environment_id: id(row, 1)?,
        name: row.get(2)?,
        created_at: ms(row, 3)?,
    })
}
