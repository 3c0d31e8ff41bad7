//! What a server asks the helper, and what it answers.

use crate::{
    Collected, ContainerSpec, Ended, Finding, Layer, LayerStats, RuntimeError, StartTimings, Usage, Volume,
};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Asked {
    /// Chosen by the asker, repeated in the answer; answers may overtake each other.
    pub(crate) id: u64,
    pub(crate) request: Request,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    Start(Box<ContainerSpec>),
    Destroy {
        id: String,
    },
    List,
    Usage {
        id: String,
    },
    CommitLayer {
        id: String,
        layer: PathBuf,
    },
    UnpackLayer {
        layer: PathBuf,
        lower: Vec<Layer>,
    },
    RemoveTree {
        path: PathBuf,
    },
    /// Answered with the mount.
    MountVolume {
        id: String,
        volume: Box<Volume>,
    },
    /// Descriptors: the earlier list, the new one, the directory for copies.
    CollectVolume {
        id: String,
        volume: String,
        slot: u32,
    },
    DropVolume {
        id: String,
        volume: String,
        slot: u32,
    },
    Probe,
}

impl Request {
    /// What is being done, for messages.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Start(_) => "starting a container",
            Self::Destroy { .. } => "destroying a container",
            Self::List => "listing containers",
            Self::Usage { .. } => "reading a container's usage",
            Self::CommitLayer { .. } => "committing a layer",
            Self::UnpackLayer { .. } => "unpacking a layer",
            Self::RemoveTree { .. } => "removing a tree",
            Self::MountVolume { .. } => "mounting a volume",
            Self::CollectVolume { .. } => "collecting what was written to a volume",
            Self::DropVolume { .. } => "removing what was written to a volume",
            Self::Probe => "probing the machine",
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Answer {
    pub(crate) id: u64,
    pub(crate) result: Result<Reply, RuntimeError>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// Descriptors: pidfd, control socket, one per served mount.
    Started {
        timings: StartTimings,
        /// Variables that its programs need for its devices.
        env: Vec<(String, String)>,
        /// The host user that is its root.
        root: u32,
        /// Its address on the bridge; none where it has loopback only.
        address: Option<std::net::Ipv4Addr>,
    },
    Ended(Ended),
    Ids(Vec<String>),
    Usage(Usage),
    Layer(LayerStats),
    Collected(Collected),
    Done,
    Findings(Vec<Finding>),
}
