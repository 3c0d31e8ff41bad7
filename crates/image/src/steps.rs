//! What this crate needs of containers: [`Builder`]. The adapter to the runtime is in `container.rs`;
//! tests bring a fake.

use crate::error::Result;
use crate::log::LogSink;
use crate::spec::{HostBind, ImageSpec, LayerRef};
use async_trait::async_trait;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The file systems a step works on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Root {
    /// Bottom first.
    pub layers: Vec<LayerRef>,
    /// Of a `host` image.
    pub host_binds: Vec<HostBind>,
}

impl Root {
    /// The root of an image.
    pub fn of(image: &ImageSpec) -> Self {
        Self { layers: image.layers.clone(), host_binds: image.binds.clone() }
    }
}

/// A folder or file that a command sees read-only, and no layer keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadOnlyBind {
    /// On this machine.
    pub source: PathBuf,
    /// Inside.
    pub target: PathBuf,
}

/// What a command sees of other files than its root's; no layer keeps any of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mount {
    /// A file or folder of this machine.
    Bind {
        /// A folder of the server's own, or what is at a path of a layer.
        source: PathBuf,
        /// Whose files it holds; those of a layer can't be written.
        owner: MountOwner,
        /// Absolute path inside.
        target: String,
        /// Whether it can be written.
        writable: bool,
    },
    /// A folder in memory.
    Memory(evoke_runtime::MemoryFolder),
    /// A file in memory.
    File(evoke_runtime::SuppliedFile),
}

/// Whose files a mount holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountOwner {
    /// The server's own user's; they appear as root's.
    Server,
    /// Those of a layer.
    Layer,
}

/// Volumes that the commands of a build have mounted.
#[async_trait]
pub trait Volumes: Send + Sync + std::fmt::Debug {
    /// What the container of that name, which is about to start, mounts: each volume as it is now.
    async fn open(&self, container: &str) -> Result<Box<dyn OpenVolumes>>;
}

/// The volumes of one container. What it wrote is lost where this is dropped without a commit.
#[async_trait]
pub trait OpenVolumes: Send + Sync {
    /// For the runtime.
    fn mounts(&self) -> Vec<evoke_runtime::Volume>;
    /// Makes what the container wrote part of the volumes. Nothing runs in it any more, but it is there.
    async fn commit(&mut self) -> Result<()>;
}

/// A command to run in a container of its own.
#[derive(Debug, Clone)]
pub struct Command {
    /// What it stands on.
    pub root: Root,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Its whole environment.
    pub env: Vec<(String, String)>,
    /// Working folder; made if it is not there.
    pub cwd: String,
    /// The user as an image names it; empty is root.
    pub user: String,
    /// What it sees besides.
    pub binds: Vec<ReadOnlyBind>,
    /// What else it sees.
    pub mounts: Vec<Mount>,
    /// Volumes that it sees; what it writes there is kept however it ends.
    pub volumes: Option<Arc<dyn Volumes>>,
    /// Whether it has a network.
    pub network: bool,
    /// Where what it changed becomes a layer when it exits with 0; nothing is kept where not given.
    pub commit: Option<PathBuf>,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommandEnd {
    /// Exit code, if it exited.
    pub code: Option<i32>,
    /// Signal, if one ended it.
    pub signal: Option<i32>,
    /// The memory limit ended it.
    pub oom: bool,
}

impl CommandEnd {
    /// It exited with 0.
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }

    /// `exit code 2`, `signal 9 (out of memory)`.
    pub fn describe(&self) -> String {
        let end = match (self.code, self.signal) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "no exit code".to_owned(),
        };
        if self.oom { format!("{end} (out of memory)") } else { end }
    }
}

/// Where a copy reads from.
#[derive(Debug, Clone)]
pub enum CopyFrom {
    /// A folder of this machine, owned by the service user; its files become root's.
    Tree(PathBuf),
    /// Another image's root.
    Image(Root),
}

/// A COPY as it is carried out.
#[derive(Debug, Clone)]
pub struct Copy {
    /// What it is copied onto.
    pub onto: Root,
    /// Where from.
    pub from: CopyFrom,
    /// Paths below the tree or root; of a folder its contents are copied. Never empty.
    pub sources: Vec<String>,
    /// Absolute path; a folder if it ends with a slash, if several sources go there, or if it is one.
    pub destination: String,
    /// `user[:group]`, names or numbers.
    pub chown: Option<String>,
    /// Permission bits for all files and folders copied.
    pub chmod: Option<u32>,
    /// Where the result becomes a layer.
    pub commit: PathBuf,
}

/// Size of a new layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LayerSize {
    /// Bytes of file content.
    pub bytes: u64,
    /// Files, folders and links.
    pub entries: u64,
}

/// Runs steps. Each call leaves either its whole result or nothing, also where its future is dropped.
#[async_trait]
pub trait Builder: Send + Sync {
    /// Runs a command, its output going to `log`.
    async fn run(&self, command: Command, log: &dyn LogSink) -> Result<(CommandEnd, LayerSize)>;
    /// Copies files into a new layer; complaints go to `log`.
    async fn copy(&self, copy: Copy, log: &dyn LogSink) -> Result<LayerSize>;
    /// Makes a layer of a tar stream; entries stand for what lies above `lower`. What was left out of it goes to
    /// `log`.
    async fn unpack(
        &self,
        lower: &Root,
        archive: OwnedFd,
        commit: &Path,
        log: &dyn LogSink,
    ) -> Result<LayerSize>;
    /// Removes a layer's tree, if it is there.
    async fn remove(&self, layer: &Path) -> Result<()>;
}
