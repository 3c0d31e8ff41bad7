//! Items of queues: first in, first out within a partition. A partition is a row as long as it has items; a
//! partition over its time is as good as empty, whether its items are deleted yet or not. The numbers of items
//! and partitions of a queue are kept with its contents, so that no limit costs a count.

use crate::answer::Answer;
use crate::objects::contents_of;
use crate::sql::{exec, int, one};
use crate::{Store, StoreError};
use bytes::Bytes;
use evoke_core::{QueueId, UnixMs};
use rusqlite::{Connection, OptionalExtension, params};

pub(crate) const SCHEMA: &str = "
CREATE TABLE queue_partitions (
  id INTEGER PRIMARY KEY, contents INTEGER NOT NULL, key BLOB NOT NULL, items INTEGER NOT NULL,
  bytes INTEGER NOT NULL, expires_at INTEGER NOT NULL
);
CREATE UNIQUE INDEX queue_partitions_by_key ON queue_partitions (contents, key);
CREATE INDEX queue_partitions_by_expiry ON queue_partitions (expires_at);
CREATE TABLE queue_items (
  partition INTEGER NOT NULL, n INTEGER NOT NULL, value BLOB NOT NULL, PRIMARY KEY (partition, n)
) WITHOUT ROWID;
";

/// Items in one partition.
pub const PARTITION_ITEMS_MAX: usize = 5_000;
/// Bytes of the items in one partition.
pub const PARTITION_BYTES_MAX: usize = 64 << 20;
/// Partitions with items in one queue.
pub const PARTITIONS_MAX: i64 = 100_000;
/// Partitions over their time that one [`QueueWrite::Expire`] deletes at most.
const EXPIRE_PARTITIONS: u32 = 8;

/// Items of a put that counts as small.
const SMALL_ITEMS: usize = 32;

/// How a put ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// All items are in.
    Done,
    /// The partition has no room for them; none is in.
    PartitionFull,
    /// The queue may have no more partitions.
    QueueFull,
}

/// A change of a queue's items. Each answers `None` where there is no such queue.
#[derive(Debug, Clone)]
pub enum QueueWrite {
    /// Puts items at the end of a partition, all or none.
    Put {
        /// Which queue.
        queue: QueueId,
        /// Which partition.
        partition: Bytes,
        /// The items.
        values: Vec<Bytes>,
        /// Now.
        now: UnixMs,
        /// When the partition's time is over.
        expires_at: UnixMs,
        /// How it ended.
        answer: Answer<Option<Put>>,
    },
    /// Takes items from the front of a partition.
    Pop {
        /// Which queue.
        queue: QueueId,
        /// Which partition.
        partition: Bytes,
        /// How many at most.
        most: u32,
        /// Now.
        now: UnixMs,
        /// The items, first in first; empty where there are none.
        answer: Answer<Option<Vec<Bytes>>>,
    },
    /// Empties a partition.
    Clear {
        /// Which queue.
        queue: QueueId,
        /// Which partition.
        partition: Bytes,
    },
    /// Deletes a few of the partitions whose time is over. Answers whether there are more.
    Expire {
        /// Now.
        now: UnixMs,
        /// Whether there may be more.
        more: Answer<bool>,
    },
}

struct Partition {
    id: i64,
    items: i64,
    bytes: i64,
    expires_at: i64,
}

impl QueueWrite {
    /// Whether it puts at most so many bytes, or takes one item.
    pub(crate) fn is_small(&self, bytes_max: usize) -> bool {
        match self {
            Self::Put { values, .. } => {
                values.len() <= SMALL_ITEMS && values.iter().map(Bytes::len).sum::<usize>() <= bytes_max
            }
            Self::Pop { most, .. } => *most <= 1,
            _ => false,
        }
    }

    pub(crate) fn apply(&self, conn: &Connection) -> rusqlite::Result<()> {
        match self {
            Self::Put { queue, partition, values, now, expires_at, answer } => {
                let Some(contents) = contents_of(conn, &queue.to_string())? else {
                    return answer.give(conn, None);
                };
                let put = put(conn, contents, partition, values, (*now, *expires_at))?;
                answer.give(conn, Some(put))
            }
            Self::Pop { queue, partition, most, now, answer } => {
                let Some(contents) = contents_of(conn, &queue.to_string())? else {
                    return answer.give(conn, None);
                };
                let popped = match find(conn, contents, partition)? {
                    Some(found) if found.expires_at > int(*now) => pop(conn, contents, &found, *most)?,
                    _ => Vec::new(),
                };
                answer.give(conn, Some(popped))
            }
            Self::Clear { queue, partition } => {
                let Some(contents) = contents_of(conn, &queue.to_string())? else { return Ok(()) };
                match find(conn, contents, partition)? {
                    Some(found) => delete(conn, contents, &found),
                    None => Ok(()),
                }
            }
            Self::Expire { now, more } => {
                let over: Vec<(i64, Partition)> = conn
                    .prepare_cached(
                        "SELECT contents, id, items, bytes, expires_at FROM queue_partitions
                         WHERE expires_at <= ?1 ORDER BY expires_at LIMIT ?2",
                    )?
                    .query_map(params![int(*now), EXPIRE_PARTITIONS], |row| {
                        Ok((row.get(0)?, partition_from(row, 1)?))
                    })?
                    .collect::<rusqlite::Result<_>>()?;
                for (contents, partition) in &over {
                    delete(conn, *contents, partition)?;
                }
                more.give(conn, !over.is_empty())
            }
        }
    }
}

fn partition_from(row: &rusqlite::Row<'_>, at: usize) -> rusqlite::Result<Partition> {
    Ok(Partition {
        id: row.get(at)?,
        items: row.get(at + 1)?,
        bytes: row.get(at + 2)?,
        expires_at: row.get(at + 3)?,
    })
}

fn find(conn: &Connection, contents: i64, key: &[u8]) -> rusqlite::Result<Option<Partition>> {
    conn.prepare_cached(
        "SELECT id, items, bytes, expires_at FROM queue_partitions WHERE contents = ?1 AND key = ?2",
    )?
    .query_row(params![contents, key], |row| partition_from(row, 0))
    .optional()
}

fn put(
    conn: &Connection,
    contents: i64,
    key: &[u8],
    values: &[Bytes],
    (now, expires_at): (UnixMs, UnixMs),
) -> rusqlite::Result<Put> {
    let mut found = find(conn, contents, key)?;
    if let Some(over) = found.take_if(|partition| partition.expires_at <= int(now)) {
        delete(conn, contents, &over)?;
    }
    let count = values.len() as i64;
    let bytes: i64 = values.iter().map(|value| value.len() as i64).sum();
    let (items, held) = found.as_ref().map_or((0, 0), |partition| (partition.items, partition.bytes));
    if items + count > PARTITION_ITEMS_MAX as i64 || held + bytes > PARTITION_BYTES_MAX as i64 {
        return Ok(Put::PartitionFull);
    }
    if values.is_empty() {
        return Ok(Put::Done);
    }
    let is_new = found.is_none();
    let (partitions, last): (i64, i64) = conn
        .prepare_cached(
            "UPDATE contents SET partitions = partitions + ?2, items = items + ?3, last_item = last_item + ?3
             WHERE id = ?1 RETURNING partitions, last_item",
        )?
        .query_row(params![contents, is_new, count], |row| Ok((row.get(0)?, row.get(1)?)))?;
    if partitions > PARTITIONS_MAX && is_new {
        let sql = "UPDATE contents SET partitions = partitions - 1, items = items - ?2 WHERE id = ?1";
        exec(conn, sql, params![contents, count])?;
        return Ok(Put::QueueFull);
    }
    let partition = match found {
        Some(partition) => {
            let sql = "UPDATE queue_partitions SET items = items + ?2, bytes = bytes + ?3, expires_at = ?4
               WHERE id = ?1";
            exec(conn, sql, params![partition.id, count, bytes, int(expires_at)])?;
            partition.id
        }
        None => {
            let sql = "INSERT INTO queue_partitions (contents, key, items, bytes, expires_at)
               VALUES (?1, ?2, ?3, ?4, ?5)";
            exec(conn, sql, params![contents, key, count, bytes, int(expires_at)])?;
            conn.last_insert_rowid()
        }
    };
    let mut insert =
        conn.prepare_cached("INSERT INTO queue_items (partition, n, value) VALUES (?1, ?2, ?3)")?;
    for (n, value) in (last - count + 1..).zip(values) {
        insert.execute(params![partition, n, value.as_ref()])?;
    }
    Ok(Put::Done)
}

fn pop(conn: &Connection, contents: i64, partition: &Partition, most: u32) -> rusqlite::Result<Vec<Bytes>> {
    let mut last = None;
    let mut values = Vec::new();
    {
        let mut statement =
            conn.prepare_cached("SELECT n, value FROM queue_items WHERE partition = ?1 ORDER BY n LIMIT ?2")?;
        let mut rows = statement.query(params![partition.id, most])?;
        while let Some(row) = rows.next()? {
            last = Some(row.get::<_, i64>(0)?);
            values.push(Bytes::from(row.get::<_, Vec<u8>>(1)?));
        }
    }
    let Some(last) = last else { return Ok(values) };
    let count = values.len() as i64;
    let bytes: i64 = values.iter().map(|value| value.len() as i64).sum();
    exec(conn, "DELETE FROM queue_items WHERE partition = ?1 AND n <= ?2", params![partition.id, last])?;
    let emptied = partition.items == count;
    if emptied {
        exec(conn, "DELETE FROM queue_partitions WHERE id = ?1", [partition.id])?;
    } else {
        let sql = "UPDATE queue_partitions SET items = items - ?2, bytes = bytes - ?3 WHERE id = ?1";
        exec(conn, sql, params![partition.id, count, bytes])?;
    }
    forget(conn, contents, count, emptied)?;
    Ok(values)
}

/// Deletes a partition with its items, of which the limits bound the number.
fn delete(conn: &Connection, contents: i64, partition: &Partition) -> rusqlite::Result<()> {
    exec(conn, "DELETE FROM queue_items WHERE partition = ?1", [partition.id])?;
    exec(conn, "DELETE FROM queue_partitions WHERE id = ?1", [partition.id])?;
    forget(conn, contents, partition.items, true)
}

fn forget(conn: &Connection, contents: i64, items: i64, partition: bool) -> rusqlite::Result<()> {
    let sql = "UPDATE contents SET items = items - ?2, partitions = partitions - ?3 WHERE id = ?1";
    exec(conn, sql, params![contents, items, partition]).map(drop)
}

/// Deletes a piece of dead contents: a partition, or up to `most` items of one; how many rows.
pub(crate) fn sweep(conn: &Connection, contents: i64, most: u32) -> rusqlite::Result<usize> {
    let partition: Option<i64> = conn
        .prepare_cached("SELECT id FROM queue_partitions WHERE contents = ?1 LIMIT 1")?
        .query_row([contents], |row| row.get(0))
        .optional()?;
    let Some(partition) = partition else { return Ok(0) };
    let sql = "DELETE FROM queue_items WHERE partition = ?1 AND n IN
       (SELECT n FROM queue_items WHERE partition = ?1 ORDER BY n LIMIT ?2)";
    let deleted = exec(conn, sql, params![partition, most])?;
    if deleted < most as usize {
        return Ok(deleted + exec(conn, "DELETE FROM queue_partitions WHERE id = ?1", [partition])?);
    }
    Ok(deleted)
}

/// The size of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueSize {
    /// Partitions with items.
    pub partitions: u64,
    /// Items in all of them.
    pub items: u64,
}

/// Items with their numbers, as [`Queues::items_after`] gives them.
pub type NumberedItems = Vec<(i64, Bytes)>;

/// Reads queues.
#[derive(Debug, Clone, Copy)]
pub struct Queues<'a>(pub(crate) &'a Store);

impl Queues<'_> {
    /// Items in one partition; `None` where there is no such queue. Reads on the calling thread.
    pub fn len(&self, queue: QueueId, partition: &[u8], now: UnixMs) -> Result<Option<u64>, StoreError> {
        let sql = "SELECT p.items FROM objects o LEFT JOIN queue_partitions p
             ON p.contents = o.contents AND p.key = ?2 AND p.expires_at > ?3 WHERE o.id = ?1";
        self.0.read_here(|conn| {
            one(conn, sql, params![queue.to_string(), partition, int(now)], |row| {
                Ok(row.get::<_, Option<i64>>(0)?.unwrap_or(0).max(0) as u64)
            })
        })
    }

    /// Its size; `None` where there is no such queue.
    pub async fn size(&self, queue: QueueId, now: UnixMs) -> Result<Option<QueueSize>, StoreError> {
        let sql = "SELECT c.partitions - count(p.id), c.items - coalesce(sum(p.items), 0)
             FROM objects o JOIN contents c ON c.id = o.contents
             LEFT JOIN queue_partitions p ON p.contents = c.id AND p.expires_at <= ?2
             WHERE o.id = ?1 GROUP BY c.id";
        let read = move |conn: &Connection| {
            one(conn, sql, params![queue.to_string(), int(now)], |row| {
                let count = |at| row.get::<_, i64>(at).map(|count| count.max(0) as u64);
                Ok(QueueSize { partitions: count(0)?, items: count(1)? })
            })
        };
        self.0.read(read).await
    }

    /// Items of a partition with their numbers, those after number `after`, up to `rows_max` and not many more
    /// than `bytes_max` bytes; `None` where there is no such queue.
    pub async fn items_after(
        &self,
        queue: QueueId,
        partition: Bytes,
        after: i64,
        now: UnixMs,
        (rows_max, bytes_max): (usize, usize),
    ) -> Result<Option<NumberedItems>, StoreError> {
        let read = move |conn: &Connection| {
            let Some(contents) = contents_of(conn, &queue.to_string())? else { return Ok(None) };
            let found = find(conn, contents, &partition)?;
            let Some(partition) = found.filter(|found| found.expires_at > int(now)) else {
                return Ok(Some(Vec::new()));
            };
            let mut statement = conn.prepare_cached(
                "SELECT n, value FROM queue_items WHERE partition = ?1 AND n > ?2 ORDER BY n LIMIT ?3",
            )?;
            let mut rows = statement.query(params![partition.id, after, rows_max as i64])?;
            let (mut items, mut bytes) = (Vec::new(), 0);
            while let Some(row) = rows.next()? {
                let value: Vec<u8> = row.get(1)?;
                bytes += value.len();
                items.push((row.get(0)?, value.into()));
                if bytes >= bytes_max {
                    break;
                }
            }
            Ok(Some(items))
        };
        self.0.read(read).await
    }
}
