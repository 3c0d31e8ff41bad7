//! Environments: namespaces of apps and named objects within a workspace.

use crate::sql::{exec, id, int, many, ms, one, opt_ms};
use crate::{Store, StoreError};
use evoke_core::{EnvironmentId, UnixMs};
use rusqlite::{Connection, Row, params};

pub(crate) const SCHEMA: &str = "
CREATE TABLE environments (
  id TEXT PRIMARY KEY, workspace TEXT NOT NULL, name TEXT NOT NULL, created_at INTEGER NOT NULL,
  deleted_at INTEGER, body BLOB NOT NULL
) WITHOUT ROWID;
CREATE UNIQUE INDEX environments_by_name ON environments (workspace, name) WHERE deleted_at IS NULL;
";

const COLUMNS: &str = "id, workspace, name, created_at, deleted_at, body";

/// A stored environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvironmentRow {
    /// Its id.
    pub id: EnvironmentId,
    /// The workspace that it belongs to.
    pub workspace: String,
    /// Its name; unique in the workspace among those not deleted.
    pub name: String,
    /// When it was made.
    pub created_at: UnixMs,
    /// When it was deleted.
    pub deleted_at: Option<UnixMs>,
    /// Its settings, as received.
    pub body: Vec<u8>,
}

/// A change of an environment.
#[derive(Debug, Clone)]
pub enum EnvironmentWrite {
    /// Makes it, or replaces what is stored under its id.
    Put(EnvironmentRow),
    /// Marks it as deleted, with all secrets, dictionaries, queues and names of images in it; its name is free again. Its apps
    /// must be stopped before.
    Delete {
        /// Which.
        id: EnvironmentId,
        /// When.
        at: UnixMs,
    },
}

impl EnvironmentWrite {
    pub(crate) fn apply(&self, conn: &Connection) -> rusqlite::Result<()> {
        match self {
            Self::Put(row) => exec(
                conn,
                "INSERT INTO environments (id, workspace, name, created_at, deleted_at, body)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                 ON CONFLICT (id) DO UPDATE SET name = excluded.name, deleted_at = excluded.deleted_at,
                   body = excluded.body",
                params![
                    row.id.to_string(),
                    row.workspace,
                    row.name,
                    int(row.created_at),
                    row.deleted_at.map(int),
                    row.body
                ],
            )?,
            Self::Delete { id, at } => {
                crate::objects::delete_of_environment(conn, *id)?;
                crate::image_names::delete_of_environment(conn, *id)?;
                exec(conn, "DELETE FROM secrets WHERE environment_id = ?1", [id.to_string()])?;
                exec(
                    conn,
                    "UPDATE environments SET deleted_at = ?2 WHERE id = ?1 AND deleted_at IS NULL",
                    params![id.to_string(), int(*at)],
                )?
            }
        };
        Ok(())
    }
}

/// Reads environments.
#[derive(Debug, Clone, Copy)]
pub struct Environments<'a>(pub(crate) &'a Store);

impl Environments<'_> {
    /// The one with this id, deleted or not.
    pub async fn by_id(&self, id: EnvironmentId) -> Result<Option<EnvironmentRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM environments WHERE id = ?1");
        self.0.read(move |conn| one(conn, &sql, [id.to_string()], from_row)).await
    }

    /// The live one of this name.
    pub async fn by_name(
        &self,
        workspace: String,
        name: String,
    ) -> Result<Option<EnvironmentRow>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM environments WHERE workspace = ?1 AND name = ?2 AND deleted_at IS NULL"
        );
        self.0.read(move |conn| one(conn, &sql, [workspace, name], from_row)).await
    }

    /// All live ones of a workspace, oldest first.
    pub async fn list(&self, workspace: String) -> Result<Vec<EnvironmentRow>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM environments WHERE workspace = ?1 AND deleted_at IS NULL ORDER BY id"
        );
        self.0.read(move |conn| many(conn, &sql, [workspace], from_row)).await
    }
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<EnvironmentRow> {
    Ok(EnvironmentRow {
        id: id(row, 0)?,
        workspace: row.get(1)?,
        name: row.get(2)?,
        created_at: ms(row, 3)?,
        deleted_at: opt_ms(row, 4)?,
        body: row.get(5)?,
    })
}
