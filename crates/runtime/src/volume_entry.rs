//! What a container wrote to a volume, as the helper lists it: one entry a line, a directory before what is in it.

use serde::{Deserialize, Serialize};

/// One entry of the list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeEntry {
    /// Where it is, from the volume's root on, without a slash at the start.
    pub path: String,
    /// What it is.
    pub kind: VolumeEntryKind,
    /// Its permission bits.
    pub mode: u32,
    /// When it was last written to, in milliseconds since 1970.
    pub mtime_ms: u64,
    /// Its inode, and when that last changed (nanoseconds; 0 where it changed while it was read): as long as both
    /// stay, it is the same.
    pub inode: u64,
    /// See `inode`.
    pub changed_ns: i64,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeEntryKind {
    /// A file.
    File {
        /// Its length in bytes.
        size: u64,
        /// The name of its copy among the staged files; none where it is as it was.
        staged: Option<u64>,
    },
    /// A directory.
    Folder {
        /// Nothing of what lies below it is seen.
        opaque: bool,
        /// What lies below it is that of another path.
        origin: Option<String>,
    },
    /// A symbolic link.
    Link {
        /// Where it points.
        target: String,
    },
    /// Nothing, where something lies below.
    Removed,
}

/// What a collection found beside the entries.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collected {
    /// Paths of what a volume cannot hold (sockets, devices, names that are not UTF-8), made printable; some of them.
    pub skipped: Vec<String>,
}
