//! Where a worker keeps things and how much it takes on.

use evoke_core::TaskId;
use std::path::PathBuf;
use std::time::Duration;

/// The port of a container\'s service on its own loopback.
pub const CONTAINER_PORT: u16 = evoke_core::ports::CONTAINER;
/// Where the same service listens as a unix socket in the container's root.
pub const CONTAINER_SOCKET: &str = "/run/evoke/platform.sock";
/// The folder inside a container that holds what it is told by file.
pub const INSIDE_FOLDER: &str = "/__evoke";
/// The name of the file with the serialized `ContainerArguments` there.
pub(crate) const ARGUMENTS_FILE: &str = "arguments";

/// Containers on one machine at most, unless configured.
const CONTAINERS_MAX: usize = 4096;
/// Time between two looks at what each container uses, unless configured.
const USAGE_INTERVAL: Duration = Duration::from_secs(30);

/// Templates at most, and memory of each, unless configured.
const TEMPLATES_MAX: usize = 8;
const TEMPLATE_BYTES: u64 = 512 << 20;

/// What a worker is told at its start.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// Folder for what is known of each container, below the data folder so that it can be bound into
    /// containers. Made if it does not exist.
    pub tasks_folder: PathBuf,
    /// Folder for captured output that control has not taken over. Made if it does not exist.
    pub spool_folder: PathBuf,
    /// The user that this process runs as and whose files it makes.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// The program that does as `fusermount` under that name: see [`evoke_runtime::fuse`].
    pub fusermount: PathBuf,
    /// Variables by which programs of this machine reach the network (proxies, authorities).
    pub network_env: Vec<(String, String)>,
    /// Containers at most; further assignments are refused.
    pub containers_max: usize,
    /// Time between two looks at what each container uses.
    pub usage_interval: Duration,
    /// How many templates there are, and how large.
    pub templates: Templates,
}

/// Bounds of templates.
#[derive(Debug, Clone, Copy)]
pub struct Templates {
    /// How many there are at most.
    pub most: usize,
    /// Memory of each, in bytes.
    pub memory_bytes: u64,
}

impl WorkerConfig {
    /// The defaults in `data`, the data folder, for files of `uid` and `gid`.
    pub fn new(data: &std::path::Path, uid: u32, gid: u32) -> Self {
        Self {
            tasks_folder: data.join("tasks"),
            spool_folder: data.join("spool"),
            uid,
            gid,
            fusermount: PathBuf::from("/proc/self/exe"),
            network_env: Vec::new(),
            containers_max: CONTAINERS_MAX,
            usage_interval: USAGE_INTERVAL,
            templates: Templates { most: TEMPLATES_MAX, memory_bytes: TEMPLATE_BYTES },
        }
    }

    pub(crate) fn task_folder(&self, task: TaskId) -> PathBuf {
        self.tasks_folder.join(task.to_string())
    }
}
