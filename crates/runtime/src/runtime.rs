//! The trait behind which containers run, and what it answers.

use crate::{ContainerSpec, Layer};
use async_trait::async_trait;
use evoke_core::{Error, ErrorCode};
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use std::path::Path;

/// Runs isolated process trees on this machine.
#[async_trait]
pub trait Runtime: Send + Sync {
    /// Makes a container: namespaces, root, control groups, network, and the guest as its PID 1, waiting for
    /// what to run with its listeners open. Starting an id that exists fails with [`RuntimeError::Exists`].
    async fn start(&self, spec: ContainerSpec) -> Result<Started, StartError>;

    /// Ends a container at once and gives back all it held. Idempotent: an id of which nothing is left gives
    /// an [`Ended`] of zeros. Returns when processes, control groups and network are gone; the folder is
    /// removed in the background, out of the way of a new container of the same id.
    async fn destroy(&self, id: &str) -> Result<Ended, RuntimeError>;

    /// The ids of all containers that left anything on this machine, living or not.
    async fn list(&self) -> Result<Vec<String>, RuntimeError>;

    /// What a container has used so far.
    async fn usage(&self, id: &str) -> Result<Usage, RuntimeError>;

    /// Turns what a container wrote into the layer `layer` (whose name must be free). Its processes must have
    /// ended; the container still has to be destroyed. Durable when it returns.
    async fn commit_layer(&self, id: &str, layer: &Path) -> Result<LayerStats, RuntimeError>;

    /// Unpacks a plain tar stream over `lower` (bottom first) into the new layer `layer`, inside a user
    /// namespace of its own. All or nothing; durable when it returns.
    async fn unpack_layer(
        &self,
        layer: &Path,
        lower: &[Layer],
        archive: OwnedFd,
    ) -> Result<LayerStats, RuntimeError>;

    /// Makes one more state of a volume for a container that lives, to be shown by
    /// [`crate::Guest::replace_volume`].
    async fn mount_volume(&self, id: &str, volume: crate::Volume) -> Result<OwnedFd, RuntimeError> {
        let _ = volume;
        Err(RuntimeError::Refused(format!("volumes in container {id}")))
    }

    /// Lists what a container wrote to a place of a volume into `listing` (lines of [`crate::VolumeEntry`]), and
    /// copies into the directory `staging` what is not in `known`, an earlier such list, as it is.
    async fn collect_volume(
        &self,
        id: &str,
        (volume, slot): (&str, u32),
        known: OwnedFd,
        listing: OwnedFd,
        staging: OwnedFd,
    ) -> Result<crate::Collected, RuntimeError> {
        let _ = (volume, slot, known, listing, staging);
        Err(RuntimeError::Refused(format!("volumes in container {id}")))
    }

    /// Removes what a container wrote to a place of a volume that is shown no more; absent is fine.
    async fn drop_volume(&self, id: &str, volume: &str, slot: u32) -> Result<(), RuntimeError> {
        let _ = (volume, slot);
        Err(RuntimeError::Refused(format!("volumes in container {id}")))
    }

    /// Removes a tree below `layers/` or `containers/` of the data folder; absent is fine.
    async fn remove_tree(&self, path: &Path) -> Result<(), RuntimeError>;

    /// What this machine can and cannot do, with the mends.
    async fn probe(&self) -> Result<Vec<Finding>, RuntimeError>;
}

/// A running container.
#[derive(Debug)]
pub struct Started {
    /// Its PID 1; readable when the whole container has ended.
    pub pidfd: OwnedFd,
    /// The control socket, for [`crate::Guest`]. The container ends when nobody holds it.
    pub control: OwnedFd,
    /// Its listening sockets in the order of the spec, not blocking.
    pub listeners: Vec<OwnedFd>,
    /// The descriptors by which its served mounts are served, in the order of the spec.
    pub served: Vec<OwnedFd>,
    /// The host user that is its root.
    pub root: u32,
    /// Its address, at which this machine reaches what it listens on; none where it has loopback only.
    pub address: Option<std::net::Ipv4Addr>,
    /// Variables that its programs need for its devices. What [`crate::gpus::LIBRARY_PATH`] holds comes behind
    /// what they have there already.
    pub env: Vec<(String, String)>,
    /// Where the time went.
    pub timings: StartTimings,
}

/// Where the time of a start went, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartTimings {
    /// In the helper: network slot.
    pub network_us: u64,
    /// In the helper: clone, id maps and control groups.
    pub namespaces_us: u64,
    /// In the helper: id-mapped layers and overlay.
    pub root_us: u64,
    /// In the helper, all of it.
    pub helper_us: u64,
    /// In the guest: from its orders to ready.
    pub guest_us: u64,
    /// From the caller's request to ready.
    pub total_us: u64,
}

/// What was left of a container when it was destroyed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// All it used.
    pub usage: Usage,
}

/// Resources used by a container since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Processor time, in nanoseconds.
    pub cpu_ns: u64,
    /// Memory charged now, in bytes.
    pub memory_bytes: u64,
    /// The most memory that was charged at once, in bytes.
    pub memory_peak_bytes: u64,
    /// Processes the kernel ended for lack of memory under the container's limit.
    pub oom_kills: u64,
}

/// What a layer holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerStats {
    /// Files, directories, links.
    pub entries: u64,
    /// Bytes of regular files.
    pub bytes: u64,
    /// What was left out of an archive, for people.
    pub warnings: Vec<String>,
}

/// One fact about this machine, for `doctor`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was looked at, in a word or two.
    pub subject: String,
    /// Whether it is fine.
    pub state: FindingState,
    /// What was found.
    pub detail: String,
    /// What to do about it.
    pub mend: Option<String>,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FindingState {
    /// As it should be.
    Fine,
    /// Works, with less than there could be.
    Degraded,
    /// Containers cannot run.
    Broken,
}

/// Why something could not be done to a container.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum RuntimeError {
    /// The request breaks a rule; nothing was done.
    #[error("the request is not allowed: {0}")]
    Refused(String),
    /// There is no such container or tree.
    #[error("there is no {0}")]
    NotFound(String),
    /// The name is taken.
    #[error("{0} exists already")]
    Exists(String),
    /// Its processes have not ended.
    #[error("container {0} is still running")]
    StillRunning(String),
    /// The machine's bound is reached.
    #[error("{0}")]
    Exhausted(String),
    /// The disk is full.
    #[error("the disk that holds the data folder is full while {0}")]
    DiskFull(String),
    /// The kernel refused a step.
    #[error("{step} failed: {detail}")]
    Step {
        /// What was being done.
        step: String,
        /// What the kernel said.
        detail: String,
    },
    /// It took longer than its bound.
    #[error("{0} took too long")]
    TimedOut(String),
    /// The privileged helper is gone.
    #[error("the privileged helper is not there")]
    HelperGone,
}

/// Why a container could not be started.
pub type StartError = RuntimeError;

impl RuntimeError {
    /// Whether an archive could not be unpacked for what is in it.
    pub fn is_of_archive(&self) -> bool {
        let own = |step: &str| step == evoke_guest::READING || step.starts_with(evoke_guest::MAKING);
        matches!(self, Self::Step { step, .. } if own(step))
    }

    /// The kernel's (or the standard library's) refusal of `step`.
    pub fn step(step: impl Into<String>, error: impl Into<std::io::Error>) -> Self {
        let step = step.into();
        let error = error.into();
        match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => Self::DiskFull(step),
            _ => Self::Step { step, detail: error.to_string() },
        }
    }

    /// The code under which callers see it.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Refused(_) => ErrorCode::InvalidArgument,
            Self::NotFound(_) => ErrorCode::NotFound,
            Self::Exists(_) => ErrorCode::AlreadyExists,
            Self::StillRunning(_) => ErrorCode::FailedPrecondition,
            Self::Exhausted(_) | Self::DiskFull(_) => ErrorCode::ResourceExhausted,
            Self::Step { .. } => ErrorCode::Internal,
            Self::TimedOut(_) => ErrorCode::DeadlineExceeded,
            Self::HelperGone => ErrorCode::Unavailable,
        }
    }
}

impl From<RuntimeError> for Error {
    fn from(error: RuntimeError) -> Self {
        let out = Error::new(error.code(), error.to_string());
        match error {
            RuntimeError::DiskFull(_) => out.with_hint("Free some space, then try again."),
            RuntimeError::Step { .. } => {
                out.with_hint("`evoke doctor` shows what this machine lacks for running containers.")
            }
            _ => out,
        }
    }
}
