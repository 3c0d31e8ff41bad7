//! Entries of dictionaries: opaque keys and values. A key is found by its hash; two keys are the same if
//! their bytes are. An entry that was neither read nor written for a time is gone.
//!
//! Small values are in the row. Large ones are files (see [`Value::File`]), so that the one writer is never
//! busy with a big one; which files no row points at any more is kept here too, so that none is forgotten.

use crate::answer::Answer;
use crate::objects::contents_of;
use crate::sql::{exec, id, int, many, ms, one, opt_id};
use crate::{Store, StoreError};
use evoke_core::{BlobId, DictId, UnixMs};
use rusqlite::{Connection, OptionalExtension, Row, params};
use sha2::{Digest, Sha256};

pub(crate) const SCHEMA: &str = "
CREATE TABLE dict_entries (
  n INTEGER PRIMARY KEY, contents INTEGER NOT NULL, hash BLOB NOT NULL, used_at INTEGER NOT NULL,
  file TEXT, key BLOB NOT NULL, value BLOB
);
CREATE UNIQUE INDEX dict_entries_by_key ON dict_entries (contents, hash);
CREATE INDEX dict_entries_by_use ON dict_entries (used_at);
CREATE TABLE loose_files (id TEXT PRIMARY KEY, since INTEGER NOT NULL) WITHOUT ROWID;
CREATE TRIGGER dict_entry_deleted AFTER DELETE ON dict_entries WHEN old.file IS NOT NULL
BEGIN INSERT INTO loose_files (id, since) VALUES (old.file, 0) ON CONFLICT DO NOTHING; END;
CREATE TRIGGER dict_entry_replaced AFTER UPDATE OF file ON dict_entries
WHEN old.file IS NOT NULL AND old.file IS NOT new.file
BEGIN INSERT INTO loose_files (id, since) VALUES (old.file, 0) ON CONFLICT DO NOTHING; END;
";

/// An entry that is neither read nor written for this long (milliseconds) is gone: seven days.
pub const ENTRY_IDLE_MS_MAX: u64 = 7 * 24 * 3600 * 1000;
/// A read is noted where the last use that is known is older than this (milliseconds).
pub const ENTRY_TOUCH_MS: u64 = 3600 * 1000;
/// The most that a length says, as the client documents it.
pub const DICT_LEN_MAX: u32 = 100_000;
/// Entries over their time that one [`DictWrite::Expire`] deletes at most.
const EXPIRE_ROWS: u32 = 500;

/// A value, or where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// The bytes.
    Inline(bytes::Bytes),
    /// The file that holds the bytes.
    File(BlobId),
}

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DictEntry {
    /// The key.
    pub key: bytes::Bytes,
    /// The value.
    pub value: Value,
}

/// What a dictionary says to a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The value.
    pub value: Value,
    /// When it was last known to be used.
    pub used_at: UnixMs,
}

/// A change of a dictionary's entries. Each answers `None` where there is no such dictionary.
#[derive(Debug, Clone)]
pub enum DictWrite {
    /// Puts entries; answers whether any was new, or any was put where existing ones may be replaced.
    Update {
        /// Which dictionary.
        dict: DictId,
        /// What to put.
        entries: Vec<DictEntry>,
        /// Leaves keys alone that are there.
        if_not_exists: bool,
        /// Now.
        now: UnixMs,
        /// Whether something was put.
        answer: Answer<Option<bool>>,
    },
    /// Takes an entry out; answers its value.
    Pop {
        /// Which dictionary.
        dict: DictId,
        /// Its key.
        key: bytes::Bytes,
        /// Now.
        now: UnixMs,
        /// The value, if there was one.
        answer: Answer<Option<Option<Value>>>,
    },
    /// Notes that an entry was read.
    Touch {
        /// Which dictionary.
        dict: DictId,
        /// Its key.
        key: bytes::Bytes,
        /// When.
        now: UnixMs,
    },
    /// Deletes a piece of what was not used since `before`. Answers whether there may be more.
    Expire {
        /// The oldest use to keep.
        before: UnixMs,
        /// Whether there may be more.
        more: Answer<bool>,
    },
    /// Notes files that are about to be written: loose, unless an entry takes them before `since`.
    Announce {
        /// The files.
        files: Vec<BlobId>,
        /// From when on they count as loose.
        since: UnixMs,
    },
    /// Starts the time of files that have come loose.
    CountLoose {
        /// Now.
        now: UnixMs,
    },
    /// Forgets files that were removed.
    Removed {
        /// The files.
        files: Vec<BlobId>,
    },
}

impl DictWrite {
    /// Whether it changes one entry of at most so many bytes.
    pub(crate) fn is_of_one_entry(&self, bytes_max: usize) -> bool {
        match self {
            Self::Update { entries, .. } => {
                entries.len() == 1
                    && entries.iter().all(|entry| match &entry.value {
                        Value::Inline(bytes) => entry.key.len() + bytes.len() <= bytes_max,
                        Value::File(_) => entry.key.len() <= bytes_max,
                    })
            }
            Self::Pop { .. } | Self::Touch { .. } => true,
            _ => false,
        }
    }

    pub(crate) fn apply(&self, conn: &Connection) -> rusqlite::Result<()> {
        match self {
            Self::Update { dict, entries, if_not_exists, now, answer } => {
                let Some(contents) = contents_of(conn, &dict.to_string())? else {
                    return answer.give(conn, None);
                };
                let mut put = false;
                for entry in entries {
                    put |= put_entry(conn, contents, entry, *if_not_exists, *now)?;
                }
                answer.give(conn, Some(put || !if_not_exists))
            }
            Self::Pop { dict, key, now, answer } => {
                let Some(contents) = contents_of(conn, &dict.to_string())? else {
                    return answer.give(conn, None);
                };
                let popped = conn
                    .prepare_cached(
                        "DELETE FROM dict_entries WHERE contents = ?1 AND hash = ?2
                         RETURNING value, file, used_at",
                    )?
                    .query_row(params![contents, hash(key)], found)
                    .optional()?;
                let alive = popped.filter(|found| found.used_at > idle_since(*now));
                answer.give(conn, Some(alive.map(|found| found.value)))
            }
            Self::Touch { dict, key, now } => exec(
                conn,
                "UPDATE dict_entries SET used_at = max(used_at, ?3)
                 WHERE contents = (SELECT contents FROM objects WHERE id = ?1) AND hash = ?2",
                params![dict.to_string(), hash(key), int(*now)],
            )
            .map(drop),
            Self::Expire { before, more } => {
                let deleted = exec(
                    conn,
                    "DELETE FROM dict_entries WHERE n IN
                       (SELECT n FROM dict_entries WHERE used_at <= ?1 ORDER BY used_at LIMIT ?2)",
                    params![int(*before), EXPIRE_ROWS],
                )?;
                more.give(conn, deleted > 0)
            }
            Self::Announce { files, since } => {
                let sql = "INSERT INTO loose_files (id, since) VALUES (?1, ?2) ON CONFLICT DO NOTHING";
                files
                    .iter()
                    .try_for_each(|file| exec(conn, sql, params![file.to_string(), int(*since)]).map(drop))
            }
            Self::CountLoose { now } => {
                exec(conn, "UPDATE loose_files SET since = ?1 WHERE since = 0", [int(*now)]).map(drop)
            }
            Self::Removed { files } => files.iter().try_for_each(|file| {
                exec(conn, "DELETE FROM loose_files WHERE id = ?1", [file.to_string()]).map(drop)
            }),
        }
    }
}

/// Puts one entry; whether it did.
fn put_entry(
    conn: &Connection,
    contents: i64,
    entry: &DictEntry,
    if_not_exists: bool,
    now: UnixMs,
) -> rusqlite::Result<bool> {
    let (value, file) = match &entry.value {
        Value::Inline(value) => (Some(value.as_ref()), None),
        Value::File(file) => (None, Some(file.to_string())),
    };
    // One over its time counts as not there.
    let replace_before = if if_not_exists { int(idle_since(now)) } else { i64::MAX };
    let put = exec(
        conn,
        "INSERT INTO dict_entries (contents, hash, used_at, file, key, value) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT (contents, hash) DO UPDATE SET used_at = excluded.used_at, file = excluded.file,
           value = excluded.value WHERE used_at <= ?7",
        params![contents, hash(&entry.key), int(now), file, entry.key.as_ref(), value, replace_before],
    )? > 0;
    if put && file.is_some() {
        exec(conn, "DELETE FROM loose_files WHERE id = ?1", [file])?;
    }
    Ok(put)
}

/// What was last used at this time or before is gone.
fn idle_since(now: UnixMs) -> UnixMs {
    UnixMs(now.0.saturating_sub(ENTRY_IDLE_MS_MAX))
}

/// Keys are found by these 16 bytes of their digest; nobody can make two keys that share them.
fn hash(key: &[u8]) -> [u8; 16] {
    let mut short = [0; 16];
    short.copy_from_slice(&Sha256::digest(key)[..16]);
    short
}

fn found(row: &Row<'_>) -> rusqlite::Result<Found> {
    Ok(Found { value: value(row, 0, 1)?, used_at: ms(row, 2)? })
}

fn value(row: &Row<'_>, inline: usize, file: usize) -> rusqlite::Result<Value> {
    Ok(match opt_id(row, file)? {
        Some(file) => Value::File(file),
        None => Value::Inline(row.get::<_, Vec<u8>>(inline)?.into()),
    })
}

/// Deletes up to `most` entries of dead contents; how many.
pub(crate) fn sweep(conn: &Connection, contents: i64, most: u32) -> rusqlite::Result<usize> {
    exec(
        conn,
        "DELETE FROM dict_entries WHERE n IN (SELECT n FROM dict_entries WHERE contents = ?1 LIMIT ?2)",
        params![contents, most],
    )
}

/// Where a walk over a dictionary's entries goes on.
#[derive(Debug, Clone)]
pub struct DictCursor {
    contents: i64,
    after: Vec<u8>,
}

/// Reads dictionaries.
#[derive(Debug, Clone, Copy)]
pub struct Dicts<'a>(pub(crate) &'a Store);

impl Dicts<'_> {
    /// What the dictionary says to a key; `None` where there is no such dictionary. Reads on the calling
    /// thread.
    pub fn get(&self, dict: DictId, key: &[u8], now: UnixMs) -> Result<Option<Option<Found>>, StoreError> {
        let sql = "SELECT e.value, e.file, e.used_at FROM objects o
           LEFT JOIN dict_entries e ON e.contents = o.contents AND e.hash = ?2 AND e.used_at > ?3
           WHERE o.id = ?1";
        self.0.read_here(|conn| {
            one(conn, sql, params![dict.to_string(), hash(key), int(idle_since(now))], |row| {
                let there = row.get::<_, Option<i64>>(2)?.is_some();
                there.then(|| found(row)).transpose()
            })
        })
    }

    /// How many entries it has, up to [`DICT_LEN_MAX`]; `None` where there is no such dictionary.
    pub async fn len(&self, dict: DictId, now: UnixMs) -> Result<Option<u32>, StoreError> {
        let sql = "SELECT (SELECT count(*) FROM (SELECT 1 FROM dict_entries e
             WHERE e.contents = o.contents AND e.used_at > ?2 LIMIT ?3)) FROM objects o WHERE o.id = ?1";
        let read = move |conn: &Connection| {
            one(conn, sql, params![dict.to_string(), int(idle_since(now)), DICT_LEN_MAX], |row| row.get(0))
        };
        self.0.read(read).await
    }

    /// A walk over the entries that it has now; `None` where there is no such dictionary.
    pub async fn cursor(&self, dict: DictId) -> Result<Option<DictCursor>, StoreError> {
        let read = move |conn: &Connection| Ok(contents_of(conn, &dict.to_string())?);
        let contents = self.0.read(read).await?;
        Ok(contents.map(|contents| DictCursor { contents, after: Vec::new() }))
    }

    /// The next entries of a walk, up to `rows_max` and not many more than `bytes_max` bytes. None at its end.
    pub async fn next(
        &self,
        cursor: DictCursor,
        with_values: bool,
        now: UnixMs,
        (rows_max, bytes_max): (usize, usize),
    ) -> Result<Option<(Vec<DictEntry>, DictCursor)>, StoreError> {
        let columns = if with_values { "value, file" } else { "x'', NULL" };
        let sql = format!(
            "SELECT {columns}, used_at, key, hash FROM dict_entries WHERE contents = ?1 AND hash > ?2
             ORDER BY hash"
        );
        let read = move |conn: &Connection| {
            let mut cursor = cursor;
            let mut statement = conn.prepare_cached(&sql)?;
            let mut rows = statement.query(params![cursor.contents, cursor.after])?;
            let (mut entries, mut bytes, mut seen) = (Vec::new(), 0, false);
            while let Some(row) = rows.next()? {
                seen = true;
                cursor.after = row.get(4)?;
                let found = found(row)?;
                if found.used_at <= idle_since(now) {
                    continue;
                }
                let key: Vec<u8> = row.get(3)?;
                bytes += key.len() + if let Value::Inline(value) = &found.value { value.len() } else { 0 };
                entries.push(DictEntry { key: key.into(), value: found.value });
                if entries.len() >= rows_max || bytes >= bytes_max {
                    break;
                }
            }
            Ok(seen.then_some((entries, cursor)))
        };
        self.0.read(read).await
    }

    /// Files that no entry has pointed at since `before`, up to `most`.
    pub async fn loose_files(&self, before: UnixMs, most: u32) -> Result<Vec<BlobId>, StoreError> {
        let sql = "SELECT id FROM loose_files WHERE since > 0 AND since < ?1 LIMIT ?2";
        let read = move |conn: &Connection| many(conn, sql, params![int(before), most], |row| id(row, 0));
        self.0.read(read).await
    }
}
