//! Schedules: which functions run by themselves, and the due time that each was last started for. That time is
//! stored in the transaction that makes the call, so that no due time is started twice.

use crate::sql::{exec, id, int, many, ms, opt_ms};
use crate::{Store, StoreError};
use evoke_core::{AppId, FunctionId, UnixMs};
use rusqlite::{Connection, Row, params};

pub(crate) const SCHEMA: &str = "
CREATE TABLE schedules (
  function_id TEXT PRIMARY KEY, app_id TEXT NOT NULL, since_ms INTEGER NOT NULL, last_ms INTEGER,
  body BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX schedules_of_app ON schedules (app_id);
";

/// A function that runs by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScheduleRow {
    /// Which function.
    pub function_id: FunctionId,
    /// Its app.
    pub app_id: AppId,
    /// Since when the schedule holds: periods count from here, and nothing before was missed.
    pub since: UnixMs,
    /// The latest due time that a run was started for.
    pub last: Option<UnixMs>,
    /// The protocol's schedule message.
    pub body: Vec<u8>,
}

/// A change of a schedule.
#[derive(Debug, Clone)]
pub enum ScheduleWrite {
    /// Makes it, or replaces it.
    Put(ScheduleRow),
    /// A run was started.
    Started {
        /// Of which function.
        function_id: FunctionId,
        /// For which due time.
        due: UnixMs,
    },
    /// The function has none any more.
    Delete {
        /// Which function.
        function_id: FunctionId,
    },
    /// The app was stopped.
    DeleteOfApp {
        /// Which app.
        app_id: AppId,
    },
}

impl ScheduleWrite {
    pub(crate) fn apply(&self, conn: &Connection) -> rusqlite::Result<()> {
        match self {
            Self::Put(row) => exec(
                conn,
                "INSERT INTO schedules (function_id, app_id, since_ms, last_ms, body)
                 VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT (function_id) DO UPDATE SET since_ms = excluded.since_ms,
                   last_ms = excluded.last_ms, body = excluded.body",
                params![
                    row.function_id.to_string(),
                    row.app_id.to_string(),
                    int(row.since),
                    row.last.map(int),
                    row.body
                ],
            )?,
            Self::Started { function_id, due } => exec(
                conn,
                "UPDATE schedules SET last_ms = ?2 WHERE function_id = ?1",
                params![function_id.to_string(), int(*due)],
            )?,
            Self::Delete { function_id } => {
                exec(conn, "DELETE FROM schedules WHERE function_id = ?1", [function_id.to_string()])?
            }
            Self::DeleteOfApp { app_id } => {
                exec(conn, "DELETE FROM schedules WHERE app_id = ?1", [app_id.to_string()])?
            }
        };
        Ok(())
    }
}

/// Reads schedules.
#[derive(Debug, Clone, Copy)]
pub struct Schedules<'a>(pub(crate) &'a Store);

impl Schedules<'_> {
    /// All of them.
    pub async fn all(&self) -> Result<Vec<ScheduleRow>, StoreError> {
        let sql = "SELECT function_id, app_id, since_ms, last_ms, body FROM schedules ORDER BY function_id";
        self.0.read(move |conn| many(conn, sql, [], from_row)).await
    }
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<ScheduleRow> {
    Ok(ScheduleRow {
        function_id: id(row, 0)?,
        app_id: id(row, 1)?,
        since: ms(row, 2)?,
        last: opt_ms(row, 3)?,
        body: row.get(4)?,
    })
}
