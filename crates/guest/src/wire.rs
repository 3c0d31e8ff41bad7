//! The messages between a container's guest and whoever holds the other end of its control socket: first the
//! privileged helper (one [`ToGuest::Setup`]), from then on the server.
//!
//! JSON inside [`crate::packet`]s; unknown fields are ignored so that a server and a guest of neighbouring
//! versions understand each other across an upgrade.

use serde::{Deserialize, Serialize};

/// A process of the container, numbered from 1 by the guest; never reused.
pub type ProcId = u64;

/// To the guest.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum ToGuest {
    /// The first message to a container's PID 1. Descriptors: root, `/dev`, sysfs if `sysfs`, one per bind, one
    /// per volume.
    Setup(Box<Setup>),
    /// The first and only message to a one-shot guest that unpacks an archive. Descriptors: the tree, the archive.
    Unpack,
    /// Something to do, answered by [`FromGuest::Reply`] with the same `id`.
    Request {
        /// Chosen by the asker.
        id: u64,
        /// What to do.
        request: Request,
    },
}

/// How the container's PID 1 makes its world.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Setup {
    /// The UTS host name.
    pub hostname: String,
    /// Whether a sysfs mount comes with the descriptors.
    pub sysfs: bool,
    /// Whether the container has a control group of version 2, which it then sees at `/sys/fs/cgroup`.
    pub cgroup2: bool,
    /// Where the binds' descriptors go, in order.
    pub binds: Vec<BindTarget>,
    /// Where the volumes' descriptors go, in order.
    #[serde(default)]
    pub volumes: Vec<VolumeTarget>,
    /// How many files of its control groups come last among the descriptors: writing a process's number to them
    /// leads it in.
    #[serde(default)]
    pub groups: usize,
    /// Whether other containers are made inside of this one's namespaces: then it ends when it is destroyed, not
    /// with its last program.
    #[serde(default)]
    pub nests: bool,
    /// Symbolic links: what they hold, and their absolute paths in the root. A link that is there already gives
    /// way, anything else stays.
    #[serde(default)]
    pub links: Vec<(String, String)>,
    /// Folders that are in memory.
    #[serde(default)]
    pub memory: Vec<MemoryFolder>,
    /// Files that the machine supplies, in memory (`/etc/hosts` and its like).
    pub files: Vec<SuppliedFile>,
    /// What to listen on before any program runs.
    pub listeners: Vec<Listen>,
    /// Size of `/dev/shm` in bytes.
    pub shm_bytes: u64,
    /// Milliseconds between SIGINT and SIGKILL when the control socket closes.
    pub grace_ms: u64,
}

/// Where one bind appears.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BindTarget {
    /// Absolute path in the root; made if it does not exist.
    pub target: String,
    /// Whether the source is a directory (else a file).
    pub directory: bool,
}

/// A folder of the root that is kept in memory, and is gone with the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryFolder {
    /// Absolute path in the root; made if it does not exist.
    pub target: String,
    /// Bytes that fit into it; half of the machine's memory where not given.
    pub bytes_max: Option<u64>,
}

/// A file of the root that is kept in memory, and is gone with the container.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuppliedFile {
    /// Absolute path in the root; made if it does not exist.
    pub path: String,
    /// What it holds.
    pub content: String,
    /// Permission bits.
    pub mode: u32,
    /// Its user and group, as the container counts them.
    pub owner: (u32, u32),
}

// What it holds may be a secret.
impl std::fmt::Debug for SuppliedFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SuppliedFile").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Where one volume appears: mounted below [`crate::VOLUMES_FOLDER`], with a symbolic link that leads there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeTarget {
    /// The volume's id, the name of its folder.
    pub volume: String,
    /// Absolute path of the link in the root. An empty directory gives way to it.
    pub target: String,
}

/// One listening socket of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Listen {
    /// 127.0.0.1 at this port inside the container's network.
    Tcp {
        /// The port; 0 lets the kernel choose.
        port: u16,
    },
    /// A unix socket at this absolute path of the container's root.
    Unix {
        /// The path; its directories are made.
        path: String,
    },
}

/// What the guest can be asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Request {
    /// Start a program. Descriptors: stdin, stdout, stderr; then, for [`Way::Fork`], the line to the template.
    Spawn(Box<Spawn>),
    /// Send a signal.
    Signal {
        /// To which process.
        proc: ProcId,
        /// The signal's number.
        signal: i32,
        /// To its whole process group instead of to it alone.
        group: bool,
    },
    /// What runs, and how what ended did.
    Status,
    /// Show another state of a volume, unless something of it is open. Descriptor: the new mount.
    ReplaceVolume {
        /// The volume's id.
        volume: String,
    },
    /// Stop everything: SIGINT now, SIGKILL after `grace_ms`, then exit.
    Shutdown {
        /// Milliseconds between the two.
        grace_ms: u64,
    },
}

/// A program to start.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Spawn {
    /// Free text that [`ProcStatus`] repeats.
    pub name: String,
    /// What runs.
    pub program: Program,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// The working directory; `/` if it is empty. Made if it does not exist, as Docker does.
    pub cwd: String,
    /// Whom it runs as: empty for root, else `name|uid[:group|gid]` looked up in the container's own files.
    pub user: String,
    /// How it comes to be.
    #[serde(default)]
    pub way: Way,
}

/// How a program comes to be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Way {
    /// By executing it.
    #[default]
    Execute,
    /// By executing it as a template, which forks programs for the containers in its namespaces.
    Template,
    /// By a template's fork; by executing it where that fails.
    Fork,
}

/// What is said on the line between a container's guest and the process that a template forks for it. The first
/// of the guest's messages is [`ForkRules`], the last [`ForkProgram`] with stdin, stdout and stderr; these are the
/// other side's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromFork {
    /// The process, by its number in the container.
    Forked {
        /// Its number.
        pid: i32,
    },
    /// Whoever forked it has ended, so that it is a child of the container's guest.
    Parted,
    /// It is in the container's namespaces and has given up what it has to.
    Ready,
    /// It will not be.
    Failed {
        /// Why.
        why: String,
    },
}

/// What a forked process gives up before it is told what it is to run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ForkRules {
    /// The capabilities that it keeps, by their bits.
    pub capabilities: u64,
    /// A further system call filter, by its instructions, each as (code, jt, jf, k).
    pub filter: Vec<(u16, u8, u8, u32)>,
}

/// What a forked process is to run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ForkProgram {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// The working directory.
    pub cwd: String,
}

/// What a spawned process runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Program {
    /// `argv[0]` is looked up in the environment's `PATH` unless it has a slash.
    Exec {
        /// The program and its arguments.
        argv: Vec<String>,
    },
    /// The guest's own copying, as `COPY` of a Dockerfile does it. Complaints go to stderr.
    Copy(Copy),
    /// The guest's own look at a layer; [`LayerFacts`] go to stdout as JSON, complaints to stderr.
    Survey(Survey),
}

/// A layer to look at.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Survey {
    /// Absolute path of the layer's tree.
    pub layer: String,
    /// Absolute path of what lies below it.
    pub below: String,
}

/// A package that is installed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Package {
    /// As its own description has it.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// What a layer changed of what lies below it. Folders are not counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerFacts {
    /// Files that were not there.
    pub added: u64,
    /// Files that were there, with another content or owner.
    pub changed: u64,
    /// Files that are not to be seen any more.
    pub removed: u64,
    /// Bytes of the layer's files.
    pub bytes: u64,
    /// Python distributions that the layer holds.
    pub python_found: Vec<Package>,
    /// Python distributions that lie below and that it hides.
    pub python_gone: Vec<Package>,
    /// Where it touches their list: Debian packages as the layer has them.
    pub debian_found: Vec<Package>,
    /// Likewise: as they were below.
    pub debian_gone: Vec<Package>,
}

/// Files to copy inside the container, from a bound tree into its root.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Copy {
    /// Absolute path of the tree that `sources` are relative to.
    pub from: String,
    /// What to copy; a directory's contents are copied, not the directory itself.
    pub sources: Vec<String>,
    /// The destination, absolute or relative to `cwd`; a directory if it ends in `/` or there are several sources.
    pub destination: String,
    /// Owner as `name|uid[:group|gid]`; root if empty.
    pub owner: String,
    /// Permission bits for everything copied; kept from the source if absent.
    pub mode: Option<u32>,
}

/// From the guest.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum FromGuest {
    /// The root is made and the listeners are open. Descriptors: the listeners, in order.
    Ready {
        /// Microseconds from the setup message to this one.
        setup_us: u64,
    },
    /// The setup failed; the guest exits.
    Failed {
        /// What it was doing.
        step: String,
        /// What the kernel said.
        detail: String,
        /// The kernel's error number, if it was the kernel that refused.
        errno: Option<i32>,
    },
    /// An archive was unpacked.
    Unpacked(UnpackStats),
    /// The answer to a request.
    Reply {
        /// The request's number.
        id: u64,
        /// How it went.
        result: Result<Reply, String>,
    },
    /// Something happened.
    Event(Event),
}

/// What a request gave.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Reply {
    /// Nothing to tell.
    Done,
    /// Something of the volume is open; nothing was done.
    VolumeBusy,
    /// The program was executed.
    Spawned {
        /// Its number.
        proc: ProcId,
        /// Its pid inside the container.
        pid: i32,
        /// Why a template's fork was not had, where it was asked for.
        #[serde(default)]
        not_forked: Option<String>,
    },
    /// All processes the guest started, as far as it remembers them.
    Status {
        /// In order of start.
        processes: Vec<ProcStatus>,
    },
}

/// One process that the guest started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcStatus {
    /// Its number.
    pub proc: ProcId,
    /// The name given when it was spawned.
    pub name: String,
    /// Its pid inside the container.
    pub pid: i32,
    /// How it ended; `None` while it runs.
    pub exit: Option<Exit>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Its exit code, if it exited.
    pub code: Option<i32>,
    /// The signal that ended it, if one did.
    pub signal: Option<i32>,
}

/// What the guest tells unasked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A spawned process ended.
    Exited {
        /// Which.
        proc: ProcId,
        /// How.
        exit: Exit,
    },
}

/// What unpacking an archive made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnpackStats {
    /// Entries written.
    pub entries: u64,
    /// Bytes of regular files written.
    pub bytes: u64,
    /// What was left out, for people; bounded.
    pub warnings: Vec<String>,
}
