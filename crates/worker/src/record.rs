//! What is written down of a container, so that a later process of ours can go on with it. No secrets: the
//! program's environment is not among it.

use crate::lifecycle::Known;
use crate::volumes::VolumeRecord;
use evoke_core::{AppId, FunctionId, TaskId, UnixMs};
use evoke_runtime::ProcId;
use serde::{Deserialize, Serialize};
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

const RECORD_FILE: &str = "record.json";
const RECORD_DRAFT: &str = "record.new";

/// A container as a later process must know it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub task: TaskId,
    pub app: AppId,
    pub function: FunctionId,
    pub generation: u64,
    pub accepted_at: UnixMs,
    /// When the guest ran.
    pub started_at: Option<UnixMs>,
    /// Where this machine reaches what it listens on.
    #[serde(default)]
    pub address: Option<Ipv4Addr>,
    pub startup_timeout_ms: u64,
    pub commit_on_exit: Option<PathBuf>,
    /// See [`evoke_proto::worker::Assignment::ends_by_sigterm`].
    #[serde(default)]
    pub ends_by_sigterm: bool,
    #[serde(default)]
    pub volumes: Vec<VolumeRecord>,
    /// The template in whose namespaces it is, if so.
    #[serde(default)]
    pub template: Option<String>,
    /// The program's number with the guest; none until it was executed.
    pub proc: Option<ProcId>,
    pub known: Known,
}

impl Record {
    /// Reads the record in a container's folder.
    pub(crate) fn load(folder: &Path) -> io::Result<Self> {
        let bytes = std::fs::read(folder.join(RECORD_FILE))?;
        serde_json::from_slice(&bytes).map_err(io::Error::other)
    }

    /// Writes the record: whole or not at all, if this process is killed in the middle. It need not survive
    /// a loss of power, which no container survives.
    pub(crate) fn save(&self, folder: &Path) -> io::Result<()> {
        let draft = folder.join(RECORD_DRAFT);
        std::fs::write(&draft, serde_json::to_vec(self).map_err(io::Error::other)?)?;
        std::fs::rename(draft, folder.join(RECORD_FILE))
    }
}

/// Removes a container's folder; absent is fine.
pub(crate) fn remove_folder(folder: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
