//! What a container is made of: the request that the privileged helper validates.

use evoke_guest::wire::Listen;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// One socket that is open in the container before any program runs.
pub type ListenerSpec = Listen;
pub use evoke_guest::wire::{MemoryFolder, SuppliedFile};

/// Everything needed to start one container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Its name on this machine: 1 to 64 of `A-Z a-z 0-9 - _`.
    pub id: String,
    /// Its UTS host name, 1 to 63 of the same characters and dots.
    pub hostname: String,
    /// The read-only trees under its root, bottom first; 1 to [`crate::LAYERS_MAX`].
    pub layers: Vec<Layer>,
    /// What else is bound into the root; at most [`crate::BINDS_MAX`].
    pub binds: Vec<Bind>,
    /// The volumes in it; at most [`crate::VOLUMES_MAX`].
    pub volumes: Vec<Volume>,
    /// Folders of its root that are in memory; at most [`crate::MEMORY_FOLDERS_MAX`].
    pub memory: Vec<MemoryFolder>,
    /// Files that it is given in memory; at most [`crate::SUPPLIED_BYTES_MAX`] bytes in all.
    pub files: Vec<SuppliedFile>,
    /// Where something is mounted that no layer has, no empty folder and no empty file stays in what is committed.
    pub leaves_no_stubs: bool,
    /// What of its root a process of the server's serves; at most [`crate::SERVED_MAX`].
    pub served: Vec<Served>,
    /// The names of the GPUs that it has, and nobody else; at most [`crate::GPUS_MAX`].
    pub gpus: Vec<String>,
    /// What it can reach.
    pub network: Network,
    /// What it may use.
    pub limits: Limits,
    /// What it listens on from the start; at most [`crate::LISTENERS_MAX`].
    pub listeners: Vec<ListenerSpec>,
    /// Milliseconds its programs get between SIGINT and SIGKILL when nobody holds its control socket any more.
    pub grace_ms: u64,
    /// Further lines for its `/etc/hosts` as (address, name).
    pub hosts: Vec<(String, String)>,
    /// Name servers to use instead of the machine's.
    pub nameservers: Vec<String>,
    /// In whose namespaces it is made.
    #[serde(default)]
    pub nest: Nest,
}

/// In whose namespaces a container's own are made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Nest {
    /// The machine's.
    #[default]
    Machine,
    /// The machine's, and other containers may be made in its own: those end when it ends.
    Around,
    /// Those of this container, which has to be one that others may be made in. Its programs may then enter this one.
    Inside(String),
}

impl ContainerSpec {
    /// A container with the machine's defaults and nothing listened on.
    pub fn new(id: impl Into<String>, layers: Vec<Layer>) -> Self {
        let id = id.into();
        Self {
            hostname: "evoke".to_owned(),
            id,
            layers,
            binds: Vec::new(),
            volumes: Vec::new(),
            memory: Vec::new(),
            files: Vec::new(),
            leaves_no_stubs: false,
            served: Vec::new(),
            gpus: Vec::new(),
            network: Network::Bridged,
            limits: Limits::default(),
            listeners: Vec::new(),
            grace_ms: 10_000,
            hosts: Vec::new(),
            nameservers: Vec::new(),
            nest: Nest::Machine,
        }
    }
}

/// Whose files a host tree holds, and so what the container sees as their owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Owner {
    /// Ids on disk are the container's own: what is stored as 0 is the container root's. Only for layers that
    /// [`crate::Runtime::unpack_layer`] or [`crate::Runtime::commit_layer`] made.
    Canonical,
    /// One host user's files appear as the container root's; all others as nobody's.
    Single {
        /// The host user.
        uid: u32,
        /// The host group.
        gid: u32,
    },
}

/// One read-only tree of a root file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// The host path: below the data folder, or one of the helper's configured read-only roots.
    pub path: PathBuf,
    /// Whose files it holds.
    pub owner: Owner,
}

/// A host file or directory that appears in the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// The host path, under the same rules as a layer's.
    pub source: PathBuf,
    /// The absolute path in the container; made if it does not exist.
    pub target: String,
    /// Whether it can't be written. Sources outside of the data folder must say so.
    pub read_only: bool,
    /// Whose files it holds.
    pub owner: Owner,
}

/// One state of a volume in a container: read-only trees one over the other, and above them what the container
/// writes, in a place of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// The volume's id: letters and digits with one dash.
    pub id: String,
    /// Which of the container's places for this volume takes what it writes; a number is used once.
    pub slot: u32,
    /// The absolute path in the container.
    pub target: String,
    /// Whether it can't be written.
    pub read_only: bool,
    /// The directory of the volume that is seen, relative to its root; all of it if empty. Made if missing.
    pub sub_path: String,
    /// The trees, bottom first; 1 to [`crate::LAYERS_MAX`].
    pub trees: Vec<Layer>,
}

/// A file system that a process of the server's serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// The absolute path in the container.
    pub target: String,
    /// Whether it can't be written.
    pub read_only: bool,
}

/// What a container can reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Network {
    /// `eth0` behind the machine's address; other containers are out of reach.
    Bridged,
    /// Its own loopback only.
    Loopback,
}

/// What a container may use. Requests are shares and reservations; the `max` fields are hard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Its share of the processors when they are contended, in thousandths of a core.
    pub cpu_shares_milli: u32,
    /// Processor time at most, in thousandths of a core.
    pub cpu_max_milli: Option<u32>,
    /// Memory with swap at most, in bytes; beyond it the kernel ends a process of the container.
    pub memory_max: Option<u64>,
    /// Memory that is taken from others first, in bytes.
    pub memory_low: u64,
    /// Processes and threads at most.
    pub pids_max: u32,
    /// Size of `/dev/shm`, in bytes.
    pub shm_bytes: u64,
    /// What it may write to its root at most, in bytes, where the file system keeps project quotas.
    pub disk_max: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            cpu_shares_milli: 125,
            cpu_max_milli: None,
            memory_max: None,
            memory_low: 0,
            pids_max: 8192,
            shm_bytes: 64 * 1024 * 1024,
            disk_max: None,
        }
    }
}
