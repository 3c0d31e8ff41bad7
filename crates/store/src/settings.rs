//! Single values of the server itself, by name.

use crate::sql::{exec, one};
use crate::{Store, StoreError};
use rusqlite::{Connection, params};

pub(crate) const SCHEMA: &str = "
CREATE TABLE settings (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
";

/// A change of a setting.
#[derive(Debug, Clone)]
pub enum SettingWrite {
    /// Sets it.
    Put {
        /// Its name.
        key: String,
        /// Its value.
        value: Vec<u8>,
    },
    /// Removes it.
    Delete {
        /// Its name.
        key: String,
    },
}

impl SettingWrite {
    pub(crate) fn apply(&self, conn: &Connection) -> rusqlite::Result<()> {
        match self {
            Self::Put { key, value } => exec(
                conn,
                "INSERT INTO settings (key, value) VALUES (?1, ?2)
                 ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                params![key, value],
            )?,
            Self::Delete { key } => exec(conn, "DELETE FROM settings WHERE key = ?1", [key])?,
        };
        Ok(())
    }
}

/// Reads settings.
#[derive(Debug, Clone, Copy)]
pub struct Settings<'a>(pub(crate) &'a Store);

impl Settings<'_> {
    /// The value of this name.
    pub async fn get(&self, key: String) -> Result<Option<Vec<u8>>, StoreError> {
        self.0
            .read(move |conn| one(conn, "SELECT value FROM settings WHERE key = ?1", [key], |row| row.get(0)))
            .await
    }
}
