//! Data objects: what dictionaries and queues have in common. Each is a row with a name or an owner, and
//! points at its *contents*, a number under which its entries or items are stored.
//!
//! Clearing or deleting an object of any size is one small write: it gets other contents, or goes away, and
//! the old ones are dead. What dead contents hold is deleted afterwards, a bounded piece at a time.

use crate::answer::Answer;
use crate::sql::{exec, id, int, many, ms, one, opt_id, opt_ms, opt_text};
use crate::{Store, StoreError};
use evoke_core::id::{self as ids, Id, Kind};
use evoke_core::{AppId, EnvironmentId, UnixMs};
use rusqlite::{Connection, Row, params};

pub(crate) const SCHEMA: &str = "
CREATE TABLE contents (
  id INTEGER PRIMARY KEY AUTOINCREMENT, dead INTEGER NOT NULL DEFAULT 0,
  last_item INTEGER NOT NULL DEFAULT 0, partitions INTEGER NOT NULL DEFAULT 0,
  items INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX contents_dead ON contents (id) WHERE dead = 1;
CREATE TABLE objects (
  id TEXT PRIMARY KEY, kind TEXT NOT NULL, environment_id TEXT NOT NULL, app_id TEXT, name TEXT,
  created_at INTEGER NOT NULL, created_by TEXT NOT NULL, heard_at INTEGER, contents INTEGER NOT NULL
) WITHOUT ROWID;
CREATE UNIQUE INDEX objects_by_name ON objects (environment_id, kind, name) WHERE name IS NOT NULL;
CREATE INDEX objects_by_age ON objects (environment_id, kind, created_at) WHERE name IS NOT NULL;
CREATE INDEX objects_of_app ON objects (app_id) WHERE app_id IS NOT NULL;
CREATE INDEX objects_by_heartbeat ON objects (heard_at) WHERE heard_at IS NOT NULL;
";

const COLUMNS: &str = "id, environment_id, app_id, name, created_at, created_by, heard_at";

/// Rows of dead contents that one [`ObjectWrite::Sweep`] deletes at most of each kind.
const SWEEP_ROWS: u32 = 500;

/// The kinds of data objects.
pub trait DataKind: Kind {}
impl DataKind for ids::Dict {}
impl DataKind for ids::Queue {}

/// A stored object. It has a name, or an app that owns it, or a client that keeps it by its heartbeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectRow<K: DataKind> {
    /// Its id.
    pub id: Id<K>,
    /// The environment that it belongs to.
    pub environment_id: EnvironmentId,
    /// The app with which it ends.
    pub app_id: Option<AppId>,
    /// Its name; unique among its kind in the environment.
    pub name: Option<String>,
    /// When it was made.
    pub created_at: UnixMs,
    /// Who made it.
    pub created_by: String,
    /// When its client was last heard of, for one that lives as long as its client.
    pub heard_at: Option<UnixMs>,
}

/// A change of data objects, whatever their kind.
#[derive(Debug, Clone)]
pub enum ObjectWrite {
    /// Makes one. A taken name is a conflict.
    Create {
        /// Its id.
        id: String,
        /// The prefix of its kind's ids.
        kind: &'static str,
        /// Its environment.
        environment_id: EnvironmentId,
        /// The app with which it ends.
        app_id: Option<AppId>,
        /// Its name.
        name: Option<String>,
        /// When.
        created_at: UnixMs,
        /// By whom.
        created_by: String,
        /// Now, for one that lives as long as its client.
        heard_at: Option<UnixMs>,
    },
    /// Empties one.
    Clear {
        /// Which.
        id: String,
    },
    /// Deletes one.
    Delete {
        /// Which.
        id: String,
    },
    /// Deletes those that end with an app.
    DeleteOfApp {
        /// Which app.
        app_id: AppId,
    },
    /// Notes that the client of one was heard of.
    Heard {
        /// Which.
        id: String,
        /// When.
        at: UnixMs,
    },
    /// Counts all clients as heard of now: while no server ran they could not be.
    AllHeard {
        /// Now.
        at: UnixMs,
    },
    /// Deletes those whose client was not heard of since.
    DeleteSilent {
        /// The oldest time at which it may have been heard of.
        before: UnixMs,
    },
    /// Deletes a piece of what dead contents hold. Answers whether there is more.
    Sweep {
        /// Whether there is more.
        more: Answer<bool>,
    },
}

impl<K: DataKind> From<ObjectRow<K>> for crate::Write {
    fn from(row: ObjectRow<K>) -> Self {
        ObjectWrite::Create {
            id: row.id.to_string(),
            kind: K::PREFIX,
            environment_id: row.environment_id,
            app_id: row.app_id,
            name: row.name,
            created_at: row.created_at,
            created_by: row.created_by,
            heard_at: row.heard_at,
        }
        .into()
    }
}

impl ObjectWrite {
    pub(crate) fn apply(&self, conn: &Connection) -> rusqlite::Result<()> {
        match self {
            Self::Create { .. } => self.create(conn)?,
            Self::Clear { id } => {
                exec(
                    conn,
                    "UPDATE contents SET dead = 1 WHERE id = (SELECT contents FROM objects WHERE id = ?1)",
                    [id],
                )?;
                let contents = new_contents(conn)?;
                exec(conn, "UPDATE objects SET contents = ?2 WHERE id = ?1", params![id, contents])?;
            }
            Self::Delete { id } => delete_where(conn, "id = ?1", id)?,
            Self::DeleteOfApp { app_id } => delete_where(conn, "app_id = ?1", &app_id.to_string())?,
            Self::Heard { id, at } => {
                let sql = "UPDATE objects SET heard_at = ?2 WHERE id = ?1 AND heard_at IS NOT NULL";
                exec(conn, sql, params![id, int(*at)])?;
            }
            Self::AllHeard { at } => {
                exec(conn, "UPDATE objects SET heard_at = ?1 WHERE heard_at IS NOT NULL", [int(*at)])?;
            }
            Self::DeleteSilent { before } => delete_where(conn, "heard_at < ?1", &int(*before))?,
            Self::Sweep { more } => more.give(conn, sweep(conn)?)?,
        }
        Ok(())
    }

    fn create(&self, conn: &Connection) -> rusqlite::Result<()> {
        let Self::Create { id, kind, environment_id, app_id, name, created_at, created_by, heard_at } = self
        else {
            return Ok(());
        };
        let contents = new_contents(conn)?;
        exec(
            conn,
            "INSERT INTO objects (id, kind, environment_id, app_id, name, created_at, created_by, heard_at,
               contents)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            params![
                id,
                kind,
                environment_id.to_string(),
                opt_text(app_id),
                name,
                int(*created_at),
                created_by,
                heard_at.map(int),
                contents
            ],
        )?;
        Ok(())
    }
}

fn new_contents(conn: &Connection) -> rusqlite::Result<i64> {
    exec(conn, "INSERT INTO contents (dead) VALUES (0)", [])?;
    Ok(conn.last_insert_rowid())
}

/// Deletes the objects that `condition` selects by its one parameter.
fn delete_where(conn: &Connection, condition: &str, parameter: &dyn rusqlite::ToSql) -> rusqlite::Result<()> {
    let sql =
        format!("UPDATE contents SET dead = 1 WHERE id IN (SELECT contents FROM objects WHERE {condition})");
    exec(conn, &sql, [parameter])?;
    exec(conn, &format!("DELETE FROM objects WHERE {condition}"), [parameter])?;
    Ok(())
}

/// Deletes all objects of an environment.
pub(crate) fn delete_of_environment(conn: &Connection, id: EnvironmentId) -> rusqlite::Result<()> {
    delete_where(conn, "environment_id = ?1", &id.to_string())
}

/// Deletes a piece of what dead contents hold; whether there is more.
fn sweep(conn: &Connection) -> rusqlite::Result<bool> {
    let dead: Option<i64> = conn
        .prepare_cached("SELECT min(id) FROM contents WHERE dead = 1")?
        .query_row([], |row| row.get(0))?;
    let Some(contents) = dead else { return Ok(false) };
    let entries = crate::dicts::sweep(conn, contents, SWEEP_ROWS)?;
    let items = crate::queues::sweep(conn, contents, SWEEP_ROWS)?;
    if entries == 0 && items == 0 {
        exec(conn, "DELETE FROM contents WHERE id = ?1", [contents])?;
    }
    Ok(true)
}

/// The contents of an object; none where there is no such object.
pub(crate) fn contents_of(conn: &Connection, id: &str) -> rusqlite::Result<Option<i64>> {
    use rusqlite::OptionalExtension;
    conn.prepare_cached("SELECT contents FROM objects WHERE id = ?1")?
        .query_row([id], |row| row.get(0))
        .optional()
}

/// Reads data objects.
#[derive(Debug, Clone, Copy)]
pub struct Objects<'a>(pub(crate) &'a Store);

impl Objects<'_> {
    /// The one with this id.
    pub async fn by_id<K: DataKind>(&self, id: Id<K>) -> Result<Option<ObjectRow<K>>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM objects WHERE id = ?1");
        self.0.read(move |conn| one(conn, &sql, [id.to_string()], from_row)).await
    }

    /// The one of this name.
    pub async fn by_name<K: DataKind>(
        &self,
        environment: EnvironmentId,
        name: String,
    ) -> Result<Option<ObjectRow<K>>, StoreError> {
        let sql =
            format!("SELECT {COLUMNS} FROM objects WHERE environment_id = ?1 AND kind = ?2 AND name = ?3");
        let find = move |conn: &Connection| {
            one(conn, &sql, params![environment.to_string(), K::PREFIX, name], from_row)
        };
        self.0.read(find).await
    }

    /// Named ones of an environment made before `before` (seconds; 0 for now), newest first, about `most` of
    /// them: a page only ends between two times, so that the next one misses none.
    pub async fn page<K: DataKind>(
        &self,
        environment: EnvironmentId,
        before: f64,
        most: usize,
    ) -> Result<Vec<ObjectRow<K>>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM objects WHERE environment_id = ?1 AND kind = ?2 AND name IS NOT NULL
             ORDER BY created_at DESC"
        );
        let read = move |conn: &Connection| {
            let mut statement = conn.prepare_cached(&sql)?;
            let mut rows = statement.query(params![environment.to_string(), K::PREFIX])?;
            let mut page: Vec<ObjectRow<K>> = Vec::new();
            while let Some(row) = rows.next()? {
                let row: ObjectRow<K> = from_row(row)?;
                if before > 0.0 && row.created_at.as_secs_f64() >= before {
                    continue;
                }
                if page.len() >= most && page.last().is_some_and(|last| last.created_at != row.created_at) {
                    break;
                }
                page.push(row);
            }
            Ok(page)
        };
        self.0.read(read).await
    }

    /// The ids of an environment's objects of one kind that a client may be waiting at.
    pub async fn ids_in<K: DataKind>(&self, environment: EnvironmentId) -> Result<Vec<Id<K>>, StoreError> {
        let sql = "SELECT id FROM objects WHERE environment_id = ?1 AND kind = ?2";
        let read = move |conn: &Connection| {
            many(conn, sql, params![environment.to_string(), K::PREFIX], |row| id(row, 0))
        };
        self.0.read(read).await
    }
}

fn from_row<K: DataKind>(row: &Row<'_>) -> rusqlite::Result<ObjectRow<K>> {
    Ok(ObjectRow {
        id: id(row, 0)?,
        environment_id: id(row, 1)?,
        app_id: opt_id(row, 2)?,
        name: row.get(3)?,
        created_at: ms(row, 4)?,
        created_by: row.get(5)?,
        heard_at: opt_ms(row, 6)?,
    })
}
