//! Apps: their state, their client's heartbeat, what they consist of, and their deployments.

use crate::sql::{exec, id, int, many, ms, one, opt_ms};
use crate::{Store, StoreError};
use evoke_core::{AppId, EnvironmentId, UnixMs};
use rusqlite::{Connection, Row, params};

pub(crate) const SCHEMA: &str = "
CREATE TABLE apps (
  id TEXT PRIMARY KEY, environment_id TEXT NOT NULL, name TEXT, description TEXT NOT NULL,
  state INTEGER NOT NULL, created_at INTEGER NOT NULL, heartbeat_at INTEGER, stopped_at INTEGER,
  layout BLOB NOT NULL, body BLOB NOT NULL
) WITHOUT ROWID;
CREATE UNIQUE INDEX apps_by_name ON apps (environment_id, name)
  WHERE name IS NOT NULL AND stopped_at IS NULL;
CREATE INDEX apps_live ON apps (id) WHERE stopped_at IS NULL;
CREATE INDEX apps_named ON apps (environment_id, name, stopped_at) WHERE name IS NOT NULL;
CREATE TABLE deployments (
  app_id TEXT NOT NULL, version INTEGER NOT NULL, deployed_at INTEGER NOT NULL,
  layout BLOB NOT NULL, body BLOB NOT NULL, PRIMARY KEY (app_id, version)
) WITHOUT ROWID;
";

/// A name is free as soon as its app is told to stop; a deployment knows its kind and who made it.
pub(crate) const SCHEMA_DEPLOYMENTS: &str = "
DROP INDEX apps_by_name;
CREATE UNIQUE INDEX apps_by_name ON apps (environment_id, name)
  WHERE name IS NOT NULL AND stopped_at IS NULL AND state <> 4;
ALTER TABLE deployments ADD COLUMN kind INTEGER NOT NULL DEFAULT 1;
ALTER TABLE deployments ADD COLUMN deployed_by TEXT NOT NULL DEFAULT '';
";

/// The protocol's number for an app that is told to stop.
const STATE_STOPPING: i32 = 4;
/// The protocol's number for a deployment that was published without becoming live.
pub const DEPLOYMENT_STAGED: i32 = 5;

const DEPLOYMENT_COLUMNS: &str = "app_id, version, deployed_at, layout, body, kind, deployed_by";

const COLUMNS: &str = "id, environment_id, name, description, state, created_at, heartbeat_at, stopped_at,
  layout, body";

/// A stored app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppRow {
    /// Its id.
    pub id: AppId,
    /// The environment that it belongs to.
    pub environment_id: EnvironmentId,
    /// The name that it is deployed under; unique in the environment among apps not stopped.
    pub name: Option<String>,
    /// What its client calls it.
    pub description: String,
    /// The protocol's state number.
    pub state: i32,
    /// When it was made.
    pub created_at: UnixMs,
    /// When its client was last heard of.
    pub heartbeat_at: Option<UnixMs>,
    /// When it was stopped for good.
    pub stopped_at: Option<UnixMs>,
    /// Its functions and classes by tag, as the protocol's layout message.
    pub layout: Vec<u8>,
    /// Whatever else the client sent (tags and newer fields), as received.
    pub body: Vec<u8>,
}

/// One deployment of an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeploymentRow {
    /// The app.
    pub app_id: AppId,
    /// Counted from 1 within the app.
    pub version: u32,
    /// When it was published.
    pub deployed_at: UnixMs,
    /// What was deployed.
    pub layout: Vec<u8>,
    /// What and how (the publishing request, completed with what only the server knows).
    pub body: Vec<u8>,
    /// The protocol's number of its kind: a plain deployment, a rollback, a staged one and so on.
    pub kind: i32,
    /// Who deployed it.
    pub deployed_by: String,
}

impl DeploymentRow {
    /// Whether it was published without becoming live.
    pub fn is_staged(&self) -> bool {
        self.kind == DEPLOYMENT_STAGED
    }
}

/// A change of an app.
#[derive(Debug, Clone)]
pub enum AppWrite {
    /// Makes it, or replaces what is stored under its id.
    Put(AppRow),
    /// Its state changed.
    State {
        /// Which app.
        id: AppId,
        /// The protocol's state number.
        state: i32,
        /// When it was stopped for good; `None` while it is not.
        stopped_at: Option<UnixMs>,
    },
    /// Its client was heard of.
    Heartbeat {
        /// Which app.
        id: AppId,
        /// When.
        at: UnixMs,
    },
    /// What it consists of changed.
    Layout {
        /// Which app.
        id: AppId,
        /// The new layout.
        layout: Vec<u8>,
    },
    /// It was deployed: its history grows. What it consists of comes with [`AppWrite::Put`].
    Deployed(DeploymentRow),
}

impl AppWrite {
    pub(crate) fn apply(&self, conn: &Connection) -> rusqlite::Result<()> {
        match self {
            Self::Put(row) => put(conn, row)?,
            Self::State { id, state, stopped_at } => exec(
                conn,
                "UPDATE apps SET state = ?2, stopped_at = ?3 WHERE id = ?1",
                params![id.to_string(), state, stopped_at.map(int)],
            )?,
            Self::Heartbeat { id, at } => exec(
                conn,
                "UPDATE apps SET heartbeat_at = ?2 WHERE id = ?1",
                params![id.to_string(), int(*at)],
            )?,
            Self::Layout { id, layout } => {
                exec(conn, "UPDATE apps SET layout = ?2 WHERE id = ?1", params![id.to_string(), layout])?
            }
            Self::Deployed(row) => exec(
                conn,
                "INSERT INTO deployments (app_id, version, deployed_at, layout, body, kind, deployed_by)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                params![
                    row.app_id.to_string(),
                    row.version,
                    int(row.deployed_at),
                    row.layout,
                    row.body,
                    row.kind,
                    row.deployed_by
                ],
            )?,
        };
        Ok(())
    }
}

fn put(conn: &Connection, row: &AppRow) -> rusqlite::Result<usize> {
    exec(
        conn,
        "INSERT INTO apps (id, environment_id, name, description, state, created_at, heartbeat_at, stopped_at,
           layout, body)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
         ON CONFLICT (id) DO UPDATE SET name = excluded.name, description = excluded.description,
           state = excluded.state, heartbeat_at = excluded.heartbeat_at, stopped_at = excluded.stopped_at,
           layout = excluded.layout, body = excluded.body",
        params![
            row.id.to_string(),
            row.environment_id.to_string(),
            row.name,
            row.description,
            row.state,
            int(row.created_at),
            row.heartbeat_at.map(int),
            row.stopped_at.map(int),
            row.layout,
            row.body
        ],
    )
}

/// Reads apps.
#[derive(Debug, Clone, Copy)]
pub struct Apps<'a>(pub(crate) &'a Store);

impl Apps<'_> {
    /// The one with this id.
    pub async fn by_id(&self, id: AppId) -> Result<Option<AppRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM apps WHERE id = ?1");
        self.0.read(move |conn| one(conn, &sql, [id.to_string()], from_row)).await
    }

    /// The one that is deployed under this name.
    pub async fn by_name(
        &self,
        environment: EnvironmentId,
        name: String,
    ) -> Result<Option<AppRow>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM apps WHERE environment_id = ?1 AND name = ?2 AND stopped_at IS NULL
             AND state <> {STATE_STOPPING}"
        );
        self.0.read(move |conn| one(conn, &sql, params![environment.to_string(), name], from_row)).await
    }

    /// The app of this name that was stopped last.
    pub async fn last_stopped(
        &self,
        environment: EnvironmentId,
        name: String,
    ) -> Result<Option<AppRow>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM apps WHERE environment_id = ?1 AND name = ?2 AND stopped_at IS NOT NULL
             ORDER BY stopped_at DESC LIMIT 1"
        );
        self.0.read(move |conn| one(conn, &sql, params![environment.to_string(), name], from_row)).await
    }

    /// All that are not stopped, oldest first.
    pub async fn live(&self) -> Result<Vec<AppRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM apps WHERE stopped_at IS NULL ORDER BY id");
        self.0.read(move |conn| many(conn, &sql, [], from_row)).await
    }

    /// The newest `limit` of an environment, newest first.
    pub async fn recent(&self, environment: EnvironmentId, limit: u32) -> Result<Vec<AppRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM apps WHERE environment_id = ?1 ORDER BY id DESC LIMIT ?2");
        self.0.read(move |conn| many(conn, &sql, params![environment.to_string(), limit], from_row)).await
    }

    /// The newest `limit` deployments of an app, newest first.
    pub async fn deployments(&self, app: AppId, limit: u32) -> Result<Vec<DeploymentRow>, StoreError> {
        let sql = format!(
            "SELECT {DEPLOYMENT_COLUMNS} FROM deployments WHERE app_id = ?1 ORDER BY version DESC LIMIT ?2"
        );
        self.0.read(move |conn| many(conn, &sql, params![app.to_string(), limit], deployment)).await
    }

    /// One deployment of an app.
    pub async fn deployment(&self, app: AppId, version: u32) -> Result<Option<DeploymentRow>, StoreError> {
        let sql = format!("SELECT {DEPLOYMENT_COLUMNS} FROM deployments WHERE app_id = ?1 AND version = ?2");
        self.0.read(move |conn| one(conn, &sql, params![app.to_string(), version], deployment)).await
    }

    /// The newest deployment of an app that became live, up to and without a version.
    pub async fn deployment_before(
        &self,
        app: AppId,
        version: u32,
    ) -> Result<Option<DeploymentRow>, StoreError> {
        let sql = format!(
            "SELECT {DEPLOYMENT_COLUMNS} FROM deployments
             WHERE app_id = ?1 AND version < ?2 AND kind <> {DEPLOYMENT_STAGED} ORDER BY version DESC LIMIT 1"
        );
        self.0.read(move |conn| one(conn, &sql, params![app.to_string(), version], deployment)).await
    }

    /// How many deployments of an app were made between two times.
    pub async fn deployments_between(
        &self,
        app: AppId,
        since: UnixMs,
        until: UnixMs,
    ) -> Result<u64, StoreError> {
        let sql = "SELECT count(*) FROM deployments
                   WHERE app_id = ?1 AND deployed_at >= ?2 AND deployed_at < ?3";
        let params = (app.to_string(), int(since), int(until));
        let count = self.0.read(move |conn| one(conn, sql, params, |row| row.get::<_, i64>(0))).await?;
        Ok(count.unwrap_or(0).max(0) as u64)
    }
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<AppRow> {
    Ok(AppRow {
        id: id(row, 0)?,
        environment_id: id(row, 1)?,
        name: row.get(2)?,
        description: row.get(3)?,
        state: row.get(4)?,
        created_at: ms(row, 5)?,
        heartbeat_at: opt_ms(row, 6)?,
        stopped_at: opt_ms(row, 7)?,
        layout: row.get(8)?,
        body: row.get(9)?,
    })
}

fn deployment(row: &Row<'_>) -> rusqlite::Result<DeploymentRow> {
    Ok(DeploymentRow {
        app_id: id(row, 0)?,
        version: row.get(1)?,
        deployed_at: ms(row, 2)?,
        layout: row.get(3)?,
        body: row.get(4)?,
        kind: row.get(5)?,
        deployed_by: row.get(6)?,
    })
}
