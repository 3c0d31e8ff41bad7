//! Reads volumes and their files.

use super::rows::{VolumeFile, VolumeFileKind, VolumeRow, VolumeVersionRow};
use super::split;
use crate::sql::{id, json, many, ms, one};
use crate::{Store, StoreError};
use evoke_core::{EnvironmentId, VolumeId};
use rusqlite::{Connection, Row, params};

const COLUMNS: &str = "id, environment_id, name, fs_version, head, trees, created_at";
const FILE: &str = "parent, name, kind, mode, mtime, size, content";

/// Reads volumes.
#[derive(Debug, Clone, Copy)]
pub struct Volumes<'a>(pub(crate) &'a Store);

impl Volumes<'_> {
    /// The contents that the files of all versions of all volumes have.
    pub async fn contents(&self) -> Result<Vec<String>, StoreError> {
        let sql = "SELECT DISTINCT content FROM volume_files WHERE kind = ?1";
        let file = VolumeFileKind::File.number();
        self.0.read(move |conn| many(conn, sql, [file], |row| row.get(0))).await
    }

    /// The one with this id.
    pub async fn by_id(&self, id: VolumeId) -> Result<Option<VolumeRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM volumes WHERE id = ?1");
        self.0.read(move |conn| one(conn, &sql, [id.to_string()], from_row)).await
    }

    /// The one of this name.
    pub async fn by_name(
        &self,
        environment: EnvironmentId,
        name: String,
    ) -> Result<Option<VolumeRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM volumes WHERE environment_id = ?1 AND name = ?2");
        self.0.read(move |conn| one(conn, &sql, params![environment.to_string(), name], from_row)).await
    }

    /// The named ones of an environment, newest first.
    pub async fn list(&self, environment: EnvironmentId) -> Result<Vec<VolumeRow>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM volumes WHERE environment_id = ?1 AND name IS NOT NULL
             ORDER BY created_at DESC"
        );
        self.0.read(move |conn| many(conn, &sql, [environment.to_string()], from_row)).await
    }

    /// Those without a name: they live for as long as a client says so.
    pub async fn ephemeral(&self) -> Result<Vec<VolumeRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM volumes WHERE name IS NULL");
        self.0.read(move |conn| many(conn, &sql, [], from_row)).await
    }

    /// The number of the oldest version that is kept; 0 where there is none but the empty one.
    pub async fn oldest_version(&self, id: VolumeId) -> Result<u64, StoreError> {
        let sql = "SELECT ifnull(min(number), 0) FROM volume_versions WHERE volume_id = ?1";
        let found = self.0.read(move |conn| one(conn, sql, [id.to_string()], |row| row.get::<_, i64>(0)));
        Ok(found.await?.unwrap_or(0) as u64)
    }

    /// The newest `most` versions of one, newest first.
    pub async fn versions(&self, id: VolumeId, most: u32) -> Result<Vec<VolumeVersionRow>, StoreError> {
        let sql = "SELECT number, created_at, author, puts, removes FROM volume_versions
                   WHERE volume_id = ?1 ORDER BY number DESC LIMIT ?2";
        self.0.read(move |conn| many(conn, sql, params![id.to_string(), most], version)).await
    }
}

/// What is there in one version of a volume.
#[derive(Debug, Clone)]
pub struct VolumeSnapshot<'a> {
    conn: &'a Connection,
    volume: String,
    version: i64,
}

impl<'a> VolumeSnapshot<'a> {
    /// Version `version` of `volume`, for use inside [`Store::read`].
    pub fn new(conn: &'a Connection, volume: VolumeId, version: u64) -> Self {
        Self { conn, volume: volume.to_string(), version: version as i64 }
    }

    /// The entry at `path`.
    pub fn get(&self, path: &str) -> Result<Option<VolumeFile>, StoreError> {
        let (parent, name) = split(path);
        let sql = format!(
            "SELECT {FILE} FROM volume_files WHERE volume_id = ?1 AND parent = ?2 AND name = ?3
               AND since <= ?4 AND until > ?4"
        );
        one(self.conn, &sql, params![self.volume, parent, name, self.version], file)
    }

    /// The entries of the folder `path`, by name.
    pub fn children(&self, path: &str) -> Result<Vec<VolumeFile>, StoreError> {
        let sql = format!(
            "SELECT {FILE} FROM volume_files WHERE volume_id = ?1 AND parent = ?2
               AND since <= ?3 AND until > ?3 ORDER BY name"
        );
        many(self.conn, &sql, params![self.volume, path, self.version], file)
    }

    /// Everything below the folder `path`, however deep, folders before what is in them.
    pub fn under(&self, path: &str) -> Result<Vec<VolumeFile>, StoreError> {
        let (first, last) = below(path);
        let sql = format!(
            "SELECT {FILE} FROM volume_files WHERE volume_id = ?1 AND (parent = ?2
                 OR (parent >= ?3 AND parent < ?4))
               AND since <= ?5 AND until > ?5 ORDER BY parent, name"
        );
        many(self.conn, &sql, params![self.volume, path, first, last, self.version], file)
    }

    /// What came between version `before` and this one: entries that are new or other, and paths that are
    /// there no more.
    pub fn since(&self, before: u64) -> Result<(Vec<VolumeFile>, Vec<String>), StoreError> {
        let before = before as i64;
        // For a few versions by when they came; for all of them the table itself is the shorter way.
        let by = if before == 0 { "" } else { "INDEXED BY volume_files_since" };
        let sql = format!(
            "SELECT {FILE} FROM volume_files {by} WHERE volume_id = ?1
               AND since > ?2 AND since <= ?3 AND until > ?3 ORDER BY parent, name"
        );
        let puts = many(self.conn, &sql, params![self.volume, before, self.version], file)?;
        let removes = many(
            self.conn,
            "SELECT parent, name FROM volume_files AS gone INDEXED BY volume_files_until
             WHERE volume_id = ?1 AND until < 9223372036854775807
               AND since <= ?2 AND until > ?2 AND until <= ?3 AND NOT EXISTS (
                 SELECT 1 FROM volume_files AS new WHERE new.volume_id = ?1 AND new.parent = gone.parent
                   AND new.name = gone.name AND new.since <= ?3 AND new.until > ?3)
             ORDER BY parent, name",
            params![self.volume, before, self.version],
            path,
        )?;
        Ok((puts, removes))
    }
}

/// The folders below `path` as a range of strings: from the first, up to before the last.
fn below(path: &str) -> (String, String) {
    if path.is_empty() {
        // Everything but the root itself; no path holds a character this high at its start.
        return ("\u{1}".to_owned(), "\u{10ffff}".to_owned());
    }
    // '0' is what follows '/'.
    (format!("{path}/"), format!("{path}0"))
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<VolumeRow> {
    Ok(VolumeRow {
        id: id(row, 0)?,
        environment_id: id(row, 1)?,
        name: row.get(2)?,
        fs_version: row.get(3)?,
        head: row.get::<_, i64>(4)? as u64,
        trees: json(row, 5)?,
        created_at: ms(row, 6)?,
    })
}

fn version(row: &Row<'_>) -> rusqlite::Result<VolumeVersionRow> {
    Ok(VolumeVersionRow {
        number: row.get::<_, i64>(0)? as u64,
        created_at: ms(row, 1)?,
        author: row.get(2)?,
        puts: row.get::<_, i64>(3)? as u64,
        removes: row.get::<_, i64>(4)? as u64,
    })
}

fn path(row: &Row<'_>) -> rusqlite::Result<String> {
    let parent = row.get_ref(0)?.as_str()?;
    let name = row.get_ref(1)?.as_str()?;
    Ok(if parent.is_empty() { name.to_owned() } else { format!("{parent}/{name}") })
}

fn file(row: &Row<'_>) -> rusqlite::Result<VolumeFile> {
    Ok(VolumeFile {
        path: path(row)?,
        kind: VolumeFileKind::from_number(row.get(2)?),
        mode: row.get(3)?,
        mtime: ms(row, 4)?,
        size: row.get::<_, i64>(5)? as u64,
        content: row.get(6)?,
    })
}
