//! The database itself, without threads: opens it, and applies groups of batches in one transaction each.
//! The threads around it are in [`crate::Store`]; simulation uses it as it is.

use crate::{StoreError, Write, schema};
use rusqlite::{Connection, OpenFlags};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Page cache of the writing connection, in KiB.
const WRITER_CACHE_KIB: i64 = 4 * 1024;
/// Page cache of a reading connection, in KiB.
const READER_CACHE_KIB: i64 = 1024;
/// Statements that a connection keeps prepared.
const STATEMENTS_MAX: usize = 128;
/// How long to wait for another process that holds the database (a person with the `sqlite3` shell).
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Size to which the write-ahead log's file is cut when it starts again, in bytes.
const WAL_FILE_KEPT: i64 = 64 * 1024 * 1024;

/// An open database.
#[derive(Debug)]
pub struct Db {
    conn: Connection,
    path: Option<PathBuf>,
}

impl Db {
    /// Opens the database at `path`, and makes it if there is none. Its folder must exist.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let mut conn = Connection::open_with_flags(
            path,
            OpenFlags::SQLITE_OPEN_READ_WRITE
                | OpenFlags::SQLITE_OPEN_CREATE
                | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )
        .map_err(|error| cannot_open(path, error.into()))?;
        prepare(&mut conn, path).map_err(|error| cannot_open(path, error))?;
        Ok(Self { conn, path: Some(path.to_owned()) })
    }

    /// A database that lives in memory and ends with this value.
    pub fn open_in_memory() -> Result<Self, StoreError> {
        let mut conn = Connection::open_in_memory()?;
        prepare(&mut conn, Path::new(":memory:"))?;
        Ok(Self { conn, path: None })
    }

    /// Its file; `None` in memory.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The connection, for reading.
    pub fn connection(&self) -> &Connection {
        &self.conn
    }

    /// A further connection to the same file, for reading only.
    pub(crate) fn open_reader(path: &Path) -> Result<Connection, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = Connection::open_with_flags(path, flags)?;
        conn.busy_timeout(BUSY_TIMEOUT)?;
        conn.pragma_update(None, "cache_size", -READER_CACHE_KIB)?;
        conn.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
        Ok(conn)
    }

    /// A further connection to the same file, for checkpoints.
    pub(crate) fn open_checkpointer(path: &Path) -> Result<Connection, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = Connection::open_with_flags(path, flags)?;
        conn.pragma_update(None, "synchronous", "NORMAL")?;
        conn.pragma_update(None, "wal_autocheckpoint", 0)?;
        conn.pragma_update(None, "cache_size", -READER_CACHE_KIB)?;
        Ok(conn)
    }

    /// Commits the batches in their order and in one transaction. A batch that contradicts what is stored
    /// fails alone; when the machine fails (a full disk), all of them fail and none is applied. The results
    /// are in the order of the batches.
    pub fn commit(&self, batches: &[&[Write]]) -> Vec<Result<(), StoreError>> {
        match self.try_commit(batches) {
            Ok(results) => results,
            Err(error) => {
                if !self.conn.is_autocommit() {
                    if let Err(error) = self.conn.execute_batch("ROLLBACK") {
                        // SQLite has then already rolled back; there is nothing left to undo.
                        tracing::warn!(%error, "rolling back a failed group of writes");
                    }
                }
                batches.iter().map(|_| Err(error.clone())).collect()
            }
        }
    }

    fn try_commit(&self, batches: &[&[Write]]) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        self.statement("BEGIN IMMEDIATE")?;
        match batches.iter().try_for_each(|batch| self.apply(batch)) {
            Ok(()) => {
                self.statement("COMMIT")?;
                Ok(batches.iter().map(|_| Ok(())).collect())
            }
            Err(error) if batches.len() == 1 || error.is_of_the_machine() => Err(error),
            Err(_) => {
                if !self.conn.is_autocommit() {
                    self.statement("ROLLBACK")?;
                }
                self.commit_one_by_one(batches)
            }
        }
    }

    /// The same where one of the batches is known to fail. A savepoint for each costs more than most batches do,
    /// and hardly ever does one fail.
    fn commit_one_by_one(&self, batches: &[&[Write]]) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        self.statement("BEGIN IMMEDIATE")?;
        let mut results = Vec::with_capacity(batches.len());
        for batch in batches {
            self.statement("SAVEPOINT batch")?;
            let result = self.apply(batch);
            if let Err(error) = &result {
                if error.is_of_the_machine() || self.conn.is_autocommit() {
                    return Err(error.clone());
                }
                self.statement("ROLLBACK TO batch")?;
            }
            self.statement("RELEASE batch")?;
            results.push(result);
        }
        self.statement("COMMIT")?;
        Ok(results)
    }

    fn apply(&self, batch: &[Write]) -> Result<(), StoreError> {
        for write in batch {
            write.apply(&self.conn)?;
        }
        Ok(())
    }

    fn statement(&self, sql: &str) -> Result<(), StoreError> {
        self.conn.prepare_cached(sql)?.execute([])?;
        Ok(())
    }
}

fn prepare(conn: &mut Connection, path: &Path) -> Result<(), StoreError> {
    conn.busy_timeout(BUSY_TIMEOUT)?;
    conn.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    // Reading the header first: a file that is not a database must not be touched.
    conn.query_row("SELECT count(*) FROM sqlite_master", [], |row| row.get::<_, i64>(0))?;
    conn.pragma_update(None, "journal_mode", "WAL")?;
    // With a write-ahead log NORMAL syncs around checkpoints only, and when the log starts again from its
    // beginning, without which a power loss could mix old and new pages. Commits are synced by `sync`.
    conn.pragma_update(None, "synchronous", "NORMAL")?;
    conn.pragma_update(None, "wal_autocheckpoint", 0)?;
    conn.pragma_update(None, "journal_size_limit", WAL_FILE_KEPT)?;
    conn.pragma_update(None, "cache_size", -WRITER_CACHE_KIB)?;
    // Pages go to the log at commit only, so that a full disk shows there and rolls back as a whole.
    conn.pragma_update(None, "cache_spill", false)?;
    conn.pragma_update(None, "temp_store", "MEMORY")?;
    schema::migrate(conn, path)
}

fn cannot_open(path: &Path, error: StoreError) -> StoreError {
    let path = path.to_owned();
    match error {
        StoreError::Corrupt(reason) if reason.contains("not a database") => {
            StoreError::Foreign { path, reason }
        }
        StoreError::Corrupt(reason) => StoreError::Corrupt(format!("{}: {reason}", path.display())),
        StoreError::Io(source) => StoreError::Open { path, source },
        StoreError::Statement(source) => StoreError::Open { path, source: Arc::new(Shared(source)) },
        other => other,
    }
}

/// Lets an error behind an `Arc` be the source of another.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct Shared(Arc<rusqlite::Error>);
