//! The rows of volumes as plain data.

use evoke_core::{EnvironmentId, UnixMs, VolumeId};
use serde::{Deserialize, Serialize};

/// Trees that one version of a volume is laid together from, at most.
pub const TREE_LEVELS_MAX: usize = 24;

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeRow {
    /// Its id.
    pub id: VolumeId,
    /// The environment that it belongs to.
    pub environment_id: EnvironmentId,
    /// Its name, unique in the environment; none for an ephemeral one.
    pub name: Option<String>,
    /// The protocol's number of the calls by which clients use it (1 or 2).
    pub fs_version: i32,
    /// The number of its newest version; 0 is the empty one that it began with.
    pub head: u64,
    /// The folders on disk that make up the newest version, oldest first.
    pub trees: Vec<VolumeTree>,
    /// When it was made.
    pub created_at: UnixMs,
}

/// A folder with what some versions in a row changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeTree {
    /// The first of the versions.
    pub from: u64,
    /// The last of them.
    pub to: u64,
    /// How many entries it has.
    pub entries: u64,
}

/// One version of a volume, as history shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeVersionRow {
    /// Its number.
    pub number: u64,
    /// When it was made.
    pub created_at: UnixMs,
    /// What made it, for people.
    pub author: String,
    /// Entries that it added or changed.
    pub puts: u64,
    /// Entries that it removed.
    pub removes: u64,
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VolumeFileKind {
    /// A plain file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
}

impl VolumeFileKind {
    pub(crate) fn number(self) -> i64 {
        match self {
            Self::File => 1,
            Self::Folder => 2,
            Self::Link => 3,
        }
    }

    pub(crate) fn from_number(number: i64) -> Self {
        match number {
            2 => Self::Folder,
            3 => Self::Link,
            _ => Self::File,
        }
    }
}

/// One entry of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeFile {
    /// Where it is, from the volume's root on, without a slash at the start.
    pub path: String,
    /// What it is.
    pub kind: VolumeFileKind,
    /// Its permission bits.
    pub mode: u32,
    /// When it was last changed.
    pub mtime: UnixMs,
    /// Its size in bytes.
    pub size: u64,
    /// For a file the name of its content, for a link where it points.
    pub content: String,
}

impl VolumeFile {
    /// Whether both are the same but for the time.
    pub fn same(&self, other: &Self) -> bool {
        (self.kind, self.mode, self.size, &self.content)
            == (other.kind, other.mode, other.size, &other.content)
    }
}
