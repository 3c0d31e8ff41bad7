//! The readers: a fixed number of read-only connections, lent to one reading at a time.

use crate::writer::lock;
use crate::{Db, StoreError};
use rusqlite::Connection;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use tokio::sync::Semaphore;

/// Readings on threads of their own at a time; more wait.
const READERS: usize = 4;
/// Connections beyond those, for readings on the caller's thread.
const SPARE: usize = 2;

/// Where readings get their connection.
pub(crate) enum Readers {
    /// Connections of their own to the database's file.
    Pool(Pool),
    /// The writer's: a database in memory has one connection only.
    Shared(Arc<Mutex<Db>>),
}

pub(crate) struct Pool {
    idle: Mutex<Vec<Connection>>,
    returned: Condvar,
    permits: Arc<Semaphore>,
}

impl Readers {
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let idle = (0..READERS + SPARE).map(|_| Db::open_reader(path)).collect::<Result<Vec<_>, _>>()?;
        Ok(Self::Pool(Pool {
            idle: Mutex::new(idle),
            returned: Condvar::new(),
            permits: Arc::new(Semaphore::new(READERS)),
        }))
    }

    /// Admission for a reading on a thread of its own; bounds how many threads there are.
    pub(crate) fn permits(&self) -> Option<Arc<Semaphore>> {
        match self {
            Readers::Pool(pool) => Some(pool.permits.clone()),
            Readers::Shared(_) => None,
        }
    }

    /// Reads on this thread; waits for a connection where all are lent.
    pub(crate) fn with<T>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        match self {
            Readers::Shared(db) => read(lock(db).connection()),
            Readers::Pool(pool) => {
                let lent = pool.take();
                lent.conn.as_ref().map_or(Err(StoreError::Closed), read)
            }
        }
    }
}

/// A lent connection; goes back however the reading ends.
struct Lent<'a> {
    pool: &'a Pool,
    /// `None` only while it is given back.
    conn: Option<Connection>,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        lock(&self.pool.idle).extend(self.conn.take());
        self.pool.returned.notify_one();
    }
}

impl Pool {
    fn take(&self) -> Lent<'_> {
        let mut idle = lock(&self.idle);
        loop {
            if let Some(conn) = idle.pop() {
                return Lent { pool: self, conn: Some(conn) };
            }
            idle = self.returned.wait(idle).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
