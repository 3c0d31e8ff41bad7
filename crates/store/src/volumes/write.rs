//! Changes of volumes.

use super::rows::{VolumeFile, VolumeRow, VolumeTree};
use super::{ALIVE, split};
use crate::sql::{exec, int, to_json};
use evoke_core::{UnixMs, VolumeId};
use rusqlite::{Connection, params};

/// A change of a volume.
#[derive(Debug, Clone)]
pub enum VolumeWrite {
    /// Makes it.
    Create(VolumeRow),
    /// Gives it another name.
    Rename {
        /// Which.
        id: VolumeId,
        /// The name.
        name: String,
    },
    /// Makes its next version.
    Advance {
        /// Which.
        id: VolumeId,
        /// The number of the new version: one more than that of the newest.
        number: u64,
        /// When.
        at: UnixMs,
        /// What made it, for people.
        author: String,
        /// Entries that are new or other than before.
        puts: Vec<VolumeFile>,
        /// Paths that are there no more.
        removes: Vec<String>,
    },
    /// Notes the folders that make up the newest version.
    Trees {
        /// Which.
        id: VolumeId,
        /// The folders, oldest first.
        trees: Vec<VolumeTree>,
    },
    /// Forgets what only versions older than `before` had, but for the newest one.
    Prune {
        /// The oldest time to keep.
        before: UnixMs,
    },
    /// Deletes it with all its versions.
    Delete {
        /// Which.
        id: VolumeId,
    },
}

impl VolumeWrite {
    pub(crate) fn apply(&self, conn: &Connection) -> rusqlite::Result<()> {
        match self {
            Self::Create(row) => create(conn, row)?,
            Self::Rename { id, name } => {
                exec(conn, "UPDATE volumes SET name = ?2 WHERE id = ?1", params![id.to_string(), name])?
            }
            Self::Advance { id, number, at, author, puts, removes } => {
                let id = id.to_string();
                return advance(conn, &id, *number, (*at, author), puts, removes);
            }
            Self::Trees { id, trees } => exec(
                conn,
                "UPDATE volumes SET trees = ?2 WHERE id = ?1",
                params![id.to_string(), to_json(trees)?],
            )?,
            Self::Prune { before } => return prune(conn, *before),
            Self::Delete { id } => return delete(conn, &id.to_string()),
        };
        Ok(())
    }
}

fn create(conn: &Connection, row: &VolumeRow) -> rusqlite::Result<usize> {
    exec(
        conn,
        "INSERT INTO volumes (id, environment_id, name, fs_version, head, trees, created_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![
            row.id.to_string(),
            row.environment_id.to_string(),
            row.name,
            row.fs_version,
            row.head as i64,
            to_json(&row.trees)?,
            int(row.created_at)
        ],
    )
}

fn advance(
    conn: &Connection,
    id: &str,
    number: u64,
    (at, author): (UnixMs, &str),
    puts: &[VolumeFile],
    removes: &[String],
) -> rusqlite::Result<()> {
    let number = number as i64;
    // Whoever decided on another newest version than there is must not be believed: the whole batch fails.
    let moved =
        exec(conn, "UPDATE volumes SET head = ?2 WHERE id = ?1 AND head = ?2 - 1", params![id, number])?;
    if moved == 0 {
        return Err(rusqlite::Error::StatementChangedRows(0));
    }
    exec(
        conn,
        "INSERT INTO volume_versions (volume_id, number, created_at, author, puts, removes)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![id, number, int(at), author, puts.len() as i64, removes.len() as i64],
    )?;
    let mut end = conn.prepare_cached(
        "UPDATE volume_files SET until = ?4
         WHERE volume_id = ?1 AND parent = ?2 AND name = ?3 AND until = ?5",
    )?;
    let replaced = puts.iter().map(|file| &file.path);
    for path in removes.iter().chain(replaced) {
        let (parent, name) = split(path);
        end.execute(params![id, parent, name, number, ALIVE])?;
    }
    let mut insert = conn.prepare_cached(
        "INSERT INTO volume_files
           (volume_id, parent, name, since, until, kind, mode, mtime, size, content)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
    )?;
    for file in puts {
        let (parent, name) = split(&file.path);
        insert.execute(params![
            id,
            parent,
            name,
            number,
            ALIVE,
            file.kind.number(),
            file.mode,
            int(file.mtime),
            file.size as i64,
            file.content
        ])?;
    }
    Ok(())
}

fn prune(conn: &Connection, before: UnixMs) -> rusqlite::Result<()> {
    exec(
        conn,
        "DELETE FROM volume_versions
         WHERE created_at < ?1 AND number < (SELECT head FROM volumes WHERE id = volume_id)",
        [int(before)],
    )?;
    // What ended by the oldest version that is kept is in none that is kept.
    exec(
        conn,
        "DELETE FROM volume_files WHERE until <=
           (SELECT min(number) FROM volume_versions v WHERE v.volume_id = volume_files.volume_id)",
        [],
    )?;
    Ok(())
}

fn delete(conn: &Connection, id: &str) -> rusqlite::Result<()> {
    exec(conn, "DELETE FROM volumes WHERE id = ?1", [id])?;
    exec(conn, "DELETE FROM volume_versions WHERE volume_id = ?1", [id])?;
    exec(conn, "DELETE FROM volume_files WHERE volume_id = ?1", [id])?;
    Ok(())
}
