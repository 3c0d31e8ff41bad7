//! Autoscaler settings that were changed while a function was live. They hold until the next deployment.

use crate::sql::{exec, id, many};
use crate::{Store, StoreError};
use evoke_core::{AppId, FunctionId};
use rusqlite::{Connection, params};

pub(crate) const SCHEMA: &str = "
CREATE TABLE scaling_overrides (
  function_id TEXT PRIMARY KEY, app_id TEXT NOT NULL, body BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX scaling_overrides_of_app ON scaling_overrides (app_id);
";

/// A change of settings.
#[derive(Debug, Clone)]
pub enum ScalingWrite {
    /// Sets all that is changed of a function or a variant.
    Put {
        /// Which.
        function_id: FunctionId,
        /// Its app.
        app_id: AppId,
        /// The changes: protobuf bytes, opaque here.
        body: Vec<u8>,
    },
    /// The functions of an app are as they were deployed.
    ResetApp {
        /// Which.
        app_id: AppId,
    },
}

impl ScalingWrite {
    pub(crate) fn apply(&self, conn: &Connection) -> rusqlite::Result<()> {
        match self {
            Self::Put { function_id, app_id, body } => exec(
                conn,
                "INSERT INTO scaling_overrides (function_id, app_id, body) VALUES (?1, ?2, ?3)
                 ON CONFLICT (function_id) DO UPDATE SET body = excluded.body",
                params![function_id.to_string(), app_id.to_string(), body],
            )?,
            Self::ResetApp { app_id } => {
                exec(conn, "DELETE FROM scaling_overrides WHERE app_id = ?1", [app_id.to_string()])?
            }
        };
        Ok(())
    }
}

/// Reads changed settings.
#[derive(Debug, Clone, Copy)]
pub struct Scaling<'a>(pub(crate) &'a Store);

impl Scaling<'_> {
    /// The changes of an app's functions and variants.
    pub async fn of_app(&self, app: AppId) -> Result<Vec<(FunctionId, Vec<u8>)>, StoreError> {
        let sql = "SELECT function_id, body FROM scaling_overrides WHERE app_id = ?1";
        self.0
            .read(move |conn| many(conn, sql, [app.to_string()], |row| Ok((id(row, 0)?, row.get(1)?))))
            .await
    }
}
