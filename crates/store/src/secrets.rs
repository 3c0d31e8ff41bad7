//! Secrets: named or anonymous maps of environment variables, stored sealed (see [`crate::vault`]).

use crate::answer::Answer;
use crate::sql::{exec, id, int, json, many, ms, one, opt_id, opt_ms, opt_text, to_json};
use crate::vault::Sealed;
use crate::{Store, StoreError};
use evoke_core::{AppId, EnvironmentId, SecretId, UnixMs};
use rusqlite::{Connection, Row, params};

pub(crate) const SCHEMA: &str = "
CREATE TABLE secrets (
  id TEXT PRIMARY KEY, environment_id TEXT, app_id TEXT, name TEXT, version INTEGER NOT NULL,
  keys TEXT NOT NULL, key_id TEXT NOT NULL, nonce BLOB NOT NULL, sealed BLOB NOT NULL,
  created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE UNIQUE INDEX secrets_by_name ON secrets (environment_id, name) WHERE name IS NOT NULL;
CREATE INDEX secrets_of_app ON secrets (app_id) WHERE app_id IS NOT NULL;
";

/// Who made a secret, and when a container last got it.
pub(crate) const AUTHORS: &str = "
ALTER TABLE secrets ADD COLUMN created_by TEXT NOT NULL DEFAULT '';
ALTER TABLE secrets ADD COLUMN used_at INTEGER;
CREATE INDEX secrets_unowned ON secrets (created_at) WHERE name IS NULL AND app_id IS NULL;
";

const COLUMNS: &str = "id, environment_id, app_id, name, version, keys, key_id, nonce, sealed, created_at,
  updated_at, created_by, used_at";

/// A stored secret. The values are only in `sealed`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretRow {
    /// Its id.
    pub id: SecretId,
    /// The environment that a named one belongs to.
    pub environment_id: Option<EnvironmentId>,
    /// The app that an anonymous one belongs to.
    pub app_id: Option<AppId>,
    /// Its name, if it has one; unique in the environment.
    pub name: Option<String>,
    /// Grows with each change; attempts record it.
    pub version: u64,
    /// The names of its variables, which may be shown.
    pub keys: Vec<String>,
    /// The variables themselves, encrypted.
    pub sealed: Sealed,
    /// When it was made.
    pub created_at: UnixMs,
    /// When it was last changed.
    pub updated_at: UnixMs,
    /// Who made it.
    pub created_by: String,
    /// When a container last got it.
    pub used_at: Option<UnixMs>,
}

/// A change of a secret.
#[derive(Debug, Clone)]
pub enum SecretWrite {
    /// Makes it, or replaces what is stored under its id.
    Put(SecretRow),
    /// Replaces what is stored, if that still has the version before this one's. Answers whether it had.
    Update {
        /// The new row.
        row: SecretRow,
        /// Whether it was replaced.
        answer: Answer<bool>,
    },
    /// Notes that a container got it.
    Used {
        /// Which.
        id: SecretId,
        /// When.
        at: UnixMs,
    },
    /// Deletes those without name and app that were neither made nor used since.
    DeleteUnused {
        /// The oldest time to keep.
        before: UnixMs,
    },
    /// Deletes it.
    Delete {
        /// Which.
        id: SecretId,
    },
    /// Deletes all anonymous ones of an app.
    DeleteOfApp {
        /// Which app.
        app_id: AppId,
    },
}

impl SecretWrite {
    pub(crate) fn apply(&self, conn: &Connection) -> rusqlite::Result<()> {
        match self {
            Self::Put(row) => put(conn, row)?,
            Self::Update { row, answer } => {
                let sql = "SELECT 1 FROM secrets WHERE id = ?1 AND version = ?2 - 1";
                let current =
                    conn.prepare_cached(sql)?.exists(params![row.id.to_string(), row.version as i64])?;
                if current {
                    put(conn, row)?;
                }
                answer.give(conn, current)?;
                0
            }
            Self::Used { id, at } => exec(
                conn,
                "UPDATE secrets SET used_at = ?2 WHERE id = ?1",
                params![id.to_string(), int(*at)],
            )?,
            Self::DeleteUnused { before } => exec(
                conn,
                "DELETE FROM secrets WHERE name IS NULL AND app_id IS NULL
                   AND created_at < ?1 AND coalesce(used_at, 0) < ?1",
                [int(*before)],
            )?,
            Self::Delete { id } => exec(conn, "DELETE FROM secrets WHERE id = ?1", [id.to_string()])?,
            Self::DeleteOfApp { app_id } => {
                exec(conn, "DELETE FROM secrets WHERE app_id = ?1 AND name IS NULL", [app_id.to_string()])?
            }
        };
        Ok(())
    }
}

fn put(conn: &Connection, row: &SecretRow) -> rusqlite::Result<usize> {
    exec(
        conn,
        "INSERT INTO secrets (id, environment_id, app_id, name, version, keys, key_id, nonce, sealed,
           created_at, updated_at, created_by, used_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)
         ON CONFLICT (id) DO UPDATE SET name = excluded.name, version = excluded.version,
           keys = excluded.keys, key_id = excluded.key_id, nonce = excluded.nonce,
           sealed = excluded.sealed, updated_at = excluded.updated_at",
        params![
            row.id.to_string(),
            opt_text(&row.environment_id),
            opt_text(&row.app_id),
            row.name,
            row.version as i64,
            to_json(&row.keys)?,
            row.sealed.key_id,
            row.sealed.nonce,
            row.sealed.ciphertext,
            int(row.created_at),
            int(row.updated_at),
            row.created_by,
            row.used_at.map(int)
        ],
    )
}

/// Reads secrets.
#[derive(Debug, Clone, Copy)]
pub struct Secrets<'a>(pub(crate) &'a Store);

impl Secrets<'_> {
    /// The one with this id.
    pub async fn by_id(&self, id: SecretId) -> Result<Option<SecretRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM secrets WHERE id = ?1");
        self.0.read(move |conn| one(conn, &sql, [id.to_string()], from_row)).await
    }

    /// The one of this name.
    pub async fn by_name(
        &self,
        environment: EnvironmentId,
        name: String,
    ) -> Result<Option<SecretRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM secrets WHERE environment_id = ?1 AND name = ?2");
        self.0.read(move |conn| one(conn, &sql, params![environment.to_string(), name], from_row)).await
    }

    /// Those without a name that belong to an app, oldest first.
    pub async fn of_app(&self, app: AppId) -> Result<Vec<SecretRow>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM secrets WHERE app_id = ?1 AND name IS NULL ORDER BY created_at, id"
        );
        self.0.read(move |conn| many(conn, &sql, [app.to_string()], from_row)).await
    }

    /// The named ones of an environment, by name.
    pub async fn list(&self, environment: EnvironmentId) -> Result<Vec<SecretRow>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM secrets WHERE environment_id = ?1 AND name IS NOT NULL ORDER BY name"
        );
        self.0.read(move |conn| many(conn, &sql, [environment.to_string()], from_row)).await
    }
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<SecretRow> {
    Ok(SecretRow {
        id: id(row, 0)?,
        environment_id: opt_id(row, 1)?,
        app_id: opt_id(row, 2)?,
        name: row.get(3)?,
        version: row.get::<_, i64>(4)? as u64,
        keys: json(row, 5)?,
        sealed: Sealed { key_id: row.get(6)?, nonce: row.get(7)?, ciphertext: row.get(8)? },
        created_at: ms(row, 9)?,
        updated_at: ms(row, 10)?,
        created_by: row.get(11)?,
        used_at: opt_ms(row, 12)?,
    })
}
