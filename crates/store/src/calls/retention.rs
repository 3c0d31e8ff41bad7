//! Forgetting calls that ended long ago or take too much room.
//!
//! Both deletions take the oldest calls first and work in slices, so that the writer is never held for long.

use super::rows::Key;
use crate::sql;
use evoke_core::UnixMs;
use rusqlite::{Connection, Result, params};

/// What a slice of a deletion did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Deleted {
    /// Calls deleted.
    pub calls: u32,
    /// Whether there may be more.
    pub more: bool,
}

/// Calls by age with whether they ended, and when; oldest first.
const OLDEST: &str = "SELECT c.key, c.created_ms, \
    NOT EXISTS (SELECT 1 FROM open_calls m WHERE m.call = c.key) \
    AND NOT EXISTS (SELECT 1 FROM inputs i JOIN pending p ON p.input = i.key WHERE i.call = c.key), \
    coalesce((SELECT max(o.finished_ms) FROM outputs o WHERE o.call = c.key), c.created_ms) \
    FROM calls c ORDER BY c.key";

/// Keys of at most `slice` ended calls from before `before`. Keys rise with time, so the walk ends at the
/// first call that is younger.
fn ended_before(db: &Connection, before: UnixMs, slice: u32) -> Result<Vec<Key>> {
    let mut found = Vec::new();
    let mut statement = db.prepare_cached(OLDEST)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        if sql::ms(row, 1)? >= before || found.len() as u32 >= slice {
            break;
        }
        if row.get::<_, bool>(2)? && sql::ms(row, 3)? < before {
            found.push(row.get(0)?);
        }
    }
    Ok(found)
}

/// Deletes at most `slice` of the calls whose last result is older than `before`, with all that hangs on
/// them, and as many containers that ended before that time.
pub fn delete_before(db: &Connection, before: UnixMs, slice: u32) -> Result<Deleted> {
    let keys = ended_before(db, before, slice)?;
    for key in &keys {
        delete_call(db, *key)?;
    }
    let tasks = delete_tasks(db, before, slice)?;
    Ok(Deleted { calls: keys.len() as u32, more: keys.len() as u32 == slice || tasks == slice })
}

/// Deletes at most `slice` of the oldest ended calls if payloads and results together take more than
/// `max_bytes`. The measure is the table's own: a sum over all rows would cost a scan.
pub fn delete_over_bytes(db: &Connection, max_bytes: u64, now: UnixMs, slice: u32) -> Result<Deleted> {
    let pages: i64 = db.query_row("PRAGMA page_count", [], |row| row.get(0))?;
    let free: i64 = db.query_row("PRAGMA freelist_count", [], |row| row.get(0))?;
    let size: i64 = db.query_row("PRAGMA page_size", [], |row| row.get(0))?;
    if ((pages - free).max(0) as u64).saturating_mul(size.max(0) as u64) <= max_bytes {
        return Ok(Deleted::default());
    }
    let deleted = delete_before(db, now, slice)?;
    Ok(Deleted { more: deleted.calls > 0, ..deleted })
}

fn delete_call(db: &Connection, key: Key) -> Result<()> {
    for statement in [
        "DELETE FROM attempts WHERE input IN (SELECT key FROM inputs WHERE call = ?1)",
        "DELETE FROM outputs WHERE call = ?1",
        "DELETE FROM chunks WHERE call = ?1",
        "DELETE FROM inputs WHERE call = ?1",
        "DELETE FROM calls WHERE key = ?1",
    ] {
        db.prepare_cached(statement)?.execute([key])?;
    }
    Ok(())
}

fn delete_tasks(db: &Connection, before: UnixMs, slice: u32) -> Result<u32> {
    let ids: Vec<String> = db
        .prepare_cached("SELECT id FROM tasks WHERE ended_ms < ?1 ORDER BY ended_ms LIMIT ?2")?
        .query_map(params![sql::int(before), slice], |row| row.get(0))?
        .collect::<Result<_>>()?;
    for id in &ids {
        db.prepare_cached("DELETE FROM task_phases WHERE task = ?1")?.execute([id])?;
        db.prepare_cached("DELETE FROM tasks WHERE id = ?1")?.execute([id])?;
    }
    Ok(ids.len() as u32)
}
