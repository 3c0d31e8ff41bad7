//! The interface between the control plane and the workers, as plain Rust. On one machine both sides are in
//! one process; on a fleet the same traits are carried over the network.

use bytes::Bytes;
use evoke_core::{AppId, CallId, Error, FunctionId, InputId, Phase, StartPath, TaskId, UnixMs, VolumeId};
use std::net::{IpAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;

use crate::{BoxStream, Service};

/// One container to run: everything that a worker needs to know about it.
#[derive(Debug, Clone)]
pub struct Assignment {
    /// The container.
    pub task_id: TaskId,
    /// The app that it belongs to.
    pub app_id: AppId,
    /// The function that it runs.
    pub function_id: FunctionId,
    /// Fences the assignment: of two for one task, the one with the higher generation counts.
    pub generation: u64,
    /// The complete root file system, bottom first: image, mounts, client bundle.
    pub layers: Vec<LayerRef>,
    /// What of [`Self::layers`] is the same for every container of this image and client: what a template is made of.
    /// Empty where its program is not one that templates fork.
    pub template_layers: Vec<LayerRef>,
    /// Folders and files of the machine that it sees read-only.
    pub binds: Vec<HostBind>,
    /// Folders of the server that it may write to, live: whoever else has them sees it at once.
    pub shared: Vec<SharedFolder>,
    /// Volumes that it has.
    pub volumes: Vec<VolumeMount>,
    /// Buckets of object stores that it has.
    pub buckets: Vec<BucketMount>,
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Its environment.
    pub env: Vec<(String, String)>,
    /// Its working folder.
    pub cwd: String,
    /// A serialized `ContainerArguments`. The worker puts it into a file of the container and names it in
    /// `MODAL_CONTAINER_ARGUMENTS_PATH`. Empty where the program is not a function's container (image
    /// builds).
    pub container_arguments: Bytes,
    /// What it may use.
    pub limits: Limits,
    /// The names of the machine's GPUs that it has, and nobody else.
    pub gpus: Vec<String>,
    /// What network it sees.
    pub network: NetworkMode,
    /// How long it has to end after an interrupt before it is killed, in milliseconds.
    pub grace_ms: u64,
    /// Whether it is interrupted by SIGTERM, which the official runtime of servers waits for, and not by SIGINT.
    pub ends_by_sigterm: bool,
    /// How long it has to come from start to ready, in milliseconds.
    pub startup_timeout_ms: u64,
    /// Once its processes ended, what it wrote becomes a layer at this path (image builds).
    pub commit_on_exit: Option<PathBuf>,
}

/// One layer of a root file system, by its path on the host.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LayerRef {
    /// The folder.
    pub path: PathBuf,
    /// Whose its files are inside the container.
    pub owner: LayerOwner,
}

/// A folder or file of the machine, shown read-only. Its owners are not mapped: inside they are nobody's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostBind {
    /// The path on the machine.
    pub source: PathBuf,
    /// The path inside.
    pub target: PathBuf,
}

/// A folder of the server's own that a container may write to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SharedFolder {
    /// The path on the machine.
    pub source: PathBuf,
    /// The path inside.
    pub target: PathBuf,
}

/// A volume in a container.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct VolumeMount {
    /// Which.
    pub volume: VolumeId,
    /// The path inside.
    pub target: String,
    /// Whether it can only be read.
    pub read_only: bool,
    /// The folder of the volume that is seen, from its root on; empty for all of it. Made if it is not there.
    pub sub_path: String,
    /// What is seen of it first.
    pub view: VolumeView,
}

/// A bucket of an object store in a container.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct BucketMount {
    /// The path inside.
    pub target: String,
    /// The bucket's name.
    pub bucket: String,
    /// What the names of the objects that are seen begin with; empty for all of them.
    pub prefix: String,
    /// The store's address; none for that of its provider.
    pub endpoint: Option<String>,
    /// Whether it can only be read.
    pub read_only: bool,
    /// Whether whoever asks pays.
    pub requester_pays: bool,
    /// Whether the bucket is named in the path of addresses instead of in their host.
    pub path_style: bool,
    /// How the container is known to the store; none where it is anybody.
    pub credentials: Option<BucketCredentials>,
}

impl std::fmt::Debug for BucketMount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BucketMount({} at {})", self.bucket, self.target)
    }
}

/// How somebody is known to an object store.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct BucketCredentials {
    /// The public half.
    pub key_id: String,
    /// The secret half.
    pub secret: String,
    /// What comes with credentials for a time.
    pub session: Option<String>,
    /// The region, where somebody said it.
    pub region: Option<String>,
}

/// One version of a volume as folders on the machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct VolumeView {
    /// The version's number.
    pub version: u64,
    /// The folders to be laid one over the other, lowest first. Files of the server's own user, with whiteouts.
    pub trees: Vec<PathBuf>,
}

/// One change that a container made to a volume. Changes are told in an order in which each finds what it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeChange {
    /// Where, from the volume's root on.
    pub path: String,
    /// Permission bits of what is there now.
    pub mode: u32,
    /// When it was last written to.
    pub mtime: UnixMs,
    /// What happened.
    pub kind: VolumeChangeKind,
}

/// What a container did at a path of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeChangeKind {
    /// Wrote a file.
    File {
        /// A finished copy of it, which is taken away.
        staged: PathBuf,
    },
    /// Made a folder, or changed its permissions.
    Folder,
    /// Made a symbolic link.
    Link {
        /// Where it points.
        target: String,
    },
    /// Removed what was there, with all that was in it.
    Remove,
    /// Removed all that was in this folder before.
    Empty,
    /// Moved here what was in another folder.
    Moved {
        /// That folder, where it was in the version that the container saw first.
        from: String,
    },
}

/// Whose the files of a layer are inside the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LayerOwner {
    /// The ids on disk are the container's own.
    Canonical,
    /// The files of this user and group of the host appear as root's.
    Single {
        /// The host's user id.
        uid: u32,
        /// The host's group id.
        gid: u32,
    },
}

/// What a container may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Share of the CPU under contention, in thousandths of a core.
    pub cpu_shares_milli: u32,
    /// Most CPU, in thousandths of a core; none: what is free.
    pub cpu_max_milli: Option<u32>,
    /// Memory that is kept for it, in bytes.
    pub memory_low_bytes: u64,
    /// Memory over which it is killed, in bytes; none: what the machine has.
    pub memory_max_bytes: Option<u64>,
    /// Most processes and threads.
    pub pids_max: u32,
    /// Size of /dev/shm, in bytes.
    pub shm_bytes: u64,
    /// What it may write to its root at most, in bytes, where this machine can bound that; none: what is free.
    pub disk_max_bytes: Option<u64>,
}

/// What network a container sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkMode {
    /// An interface of its own, behind the host's address.
    Bridged,
    /// Only its own loopback.
    Loopback,
}

/// What a worker tells the control plane about a container.
#[derive(Debug, Clone)]
pub enum WorkerEvent {
    /// It reached a phase.
    Phase {
        /// The container.
        task: TaskId,
        /// The phase.
        phase: Phase,
        /// When.
        at: UnixMs,
    },
    /// Its program runs, and came to be this way.
    Path {
        /// The container.
        task: TaskId,
        /// Which way.
        path: StartPath,
    },
    /// It could not be started. Everything it held is given back; no other event follows.
    StartFailed {
        /// The container.
        task: TaskId,
        /// Why, and the mend.
        error: Error,
        /// When.
        at: UnixMs,
    },
    /// Its processes are gone, its output is shipped, and everything it held is given back. The last event.
    Exited {
        /// The container.
        task: TaskId,
        /// How its program ended.
        exit: Exit,
        /// What it used in all.
        usage: Usage,
        /// What became of [`Assignment::commit_on_exit`], where that was asked for.
        committed: Option<Result<CommittedLayer, Error>>,
        /// When.
        at: UnixMs,
    },
}

/// How a container's program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Exit {
    /// Its exit code, if it exited.
    pub code: Option<i32>,
    /// The signal that ended it, if one did.
    pub signal: Option<i32>,
    /// The kernel killed it for using more memory than its limit.
    pub oom: bool,
    /// The worker stopped it, as it was told to.
    pub killed_by_us: bool,
}

/// What a container used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// From start to end, in milliseconds.
    pub wall_ms: u64,
    /// CPU time, in nanoseconds.
    pub cpu_ns: u64,
    /// The most memory it held, in bytes.
    pub memory_peak_bytes: u64,
}

/// A layer made of what a container wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CommittedLayer {
    /// Size of its files, in bytes.
    pub bytes: u64,
    /// Number of its files.
    pub files: u64,
}

/// Which output of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OutputFd {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A piece of a container's output.
#[derive(Debug, Clone)]
pub struct LogChunk {
    /// The container.
    pub task: TaskId,
    /// Its app.
    pub app: AppId,
    /// Its function.
    pub function: FunctionId,
    /// Which output.
    pub fd: OutputFd,
    /// Where the piece begins in all that the container wrote there, in bytes. A piece that the log store
    /// has already is ignored.
    pub spool_offset: u64,
    /// When it was captured.
    pub at_ms: UnixMs,
    /// The call that it belongs to, where that is certain.
    pub call: Option<CallId>,
    /// The input that it belongs to, where that is certain.
    pub input: Option<InputId>,
    /// The bytes, not necessarily text, not necessarily whole lines.
    pub data: Bytes,
}

/// How a container is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// SIGINT, and SIGKILL once the grace is over.
    Interrupt {
        /// The grace, in milliseconds.
        grace_ms: u64,
    },
    /// SIGKILL.
    Kill,
}

/// What a worker needs of the control plane: its containers' own RPCs are served by it (as a [`Service`],
/// forwarded undecoded, the context's principal being the container), and it takes what the worker tells.
#[async_trait::async_trait]
pub trait Control: Service {
    /// Takes an event. It returns once the event is noted; the same event may come twice.
    async fn report(&self, event: WorkerEvent);

    /// Takes output. What it took is durable when it returns.
    async fn append_logs(&self, chunks: Vec<LogChunk>) -> Result<(), Error>;

    /// Merges what a container changed in a volume since version `base` into its newest version, durably; the
    /// newest version then. `author` says to people what made it.
    async fn merge_volume(
        &self,
        volume: VolumeId,
        base: u64,
        changes: Vec<VolumeChange>,
        author: String,
    ) -> Result<u64, Error>;

    /// The newest version of a volume, ready to be mounted.
    async fn volume_view(&self, volume: VolumeId) -> Result<VolumeView, Error>;

    /// How far standard output and standard error of a container were taken over, in bytes: where shipping
    /// goes on after a restart.
    async fn log_offsets(&self, task: TaskId) -> (u64, u64);
}

/// What the control plane needs of a worker.
#[async_trait::async_trait]
pub trait Worker: Send + Sync {
    /// Accepts an assignment; how it goes on comes through [`Control::report`].
    async fn assign(&self, assignment: Assignment) -> Result<(), Error>;

    /// Stops a container; a container that is gone already is fine.
    async fn stop(&self, task: TaskId, how: StopMode);

    /// The containers that live: after a restart, those that lived on.
    async fn running(&self) -> Vec<TaskId>;

    /// Makes what a container changed in a volume part of its newest version, and shows that to it if none of
    /// its files is open there.
    async fn commit_volume(&self, task: TaskId, volume: VolumeId) -> Result<(), Error>;

    /// The same, but fails where files are open.
    async fn reload_volume(&self, task: TaskId, volume: VolumeId) -> Result<(), Error>;

    /// Where this machine reaches what a container listens on; none where it has no network, or is gone.
    fn address(&self, task: TaskId) -> Option<IpAddr>;

    /// Names the input that a container works on, to tag its output by; none where that is not certain.
    fn set_current_input(&self, task: TaskId, current: Option<(CallId, InputId)>);
}

/// A listener that only one container can reach.
#[derive(Debug)]
pub enum ContainerListener {
    /// On the loopback of its network namespace.
    Tcp(TcpListener),
    /// A socket in its root.
    Unix(UnixListener),
}

/// Serves a container's listeners: its RPCs go to the service that the worker gives, everything else (its
/// blobs) is the platform's. The gateway is one; the worker gets it handed in.
#[async_trait::async_trait]
pub trait ContainerIngress: Send + Sync {
    /// Serves until `stop` resolves (or its sender is dropped), then until the calls in flight are done,
    /// within a bound. `origin` is the base address of the URLs that the container is given, as the
    /// container reaches it, without a slash at the end.
    async fn serve_container(
        &self,
        task: TaskId,
        listener: ContainerListener,
        origin: Arc<str>,
        service: Arc<dyn Service>,
        stop: tokio::sync::watch::Receiver<bool>,
    ) -> Result<(), Error>;
}

/// Chunks of a body, for callers that stream.
pub type BodyStream = BoxStream<Result<Bytes, Error>>;
