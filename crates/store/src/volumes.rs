//! Volumes: chains of immutable versions. A file's row says since which version it is there and until which;
//! a version is what is there at its number, so making one costs what it changes, and every earlier one can
//! still be read, compared and restored.

mod read;
mod rows;
mod write;

pub use read::{VolumeSnapshot, Volumes};
pub use rows::{TREE_LEVELS_MAX, VolumeFile, VolumeFileKind, VolumeRow, VolumeTree, VolumeVersionRow};
pub use write::VolumeWrite;

pub(crate) const SCHEMA: &str = "
CREATE TABLE volumes (
  id TEXT PRIMARY KEY, environment_id TEXT NOT NULL, name TEXT, fs_version INTEGER NOT NULL,
  head INTEGER NOT NULL, trees TEXT NOT NULL, created_at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE UNIQUE INDEX volumes_by_name ON volumes (environment_id, name) WHERE name IS NOT NULL;
CREATE TABLE volume_versions (
  volume_id TEXT NOT NULL, number INTEGER NOT NULL, created_at INTEGER NOT NULL, author TEXT NOT NULL,
  puts INTEGER NOT NULL, removes INTEGER NOT NULL, PRIMARY KEY (volume_id, number)
) WITHOUT ROWID;
CREATE TABLE volume_files (
  volume_id TEXT NOT NULL, parent TEXT NOT NULL, name TEXT NOT NULL, since INTEGER NOT NULL,
  until INTEGER NOT NULL, kind INTEGER NOT NULL, mode INTEGER NOT NULL, mtime INTEGER NOT NULL,
  size INTEGER NOT NULL, content TEXT NOT NULL, PRIMARY KEY (volume_id, parent, name, since)
) WITHOUT ROWID;
CREATE INDEX volume_files_since ON volume_files (volume_id, since);
CREATE INDEX volume_files_until ON volume_files (volume_id, until) WHERE until < 9223372036854775807;
";

/// `until` of a file that is there in the newest version.
pub(crate) const ALIVE: i64 = i64::MAX;

/// A path as its folder and its name; the root has neither.
pub(crate) fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}
