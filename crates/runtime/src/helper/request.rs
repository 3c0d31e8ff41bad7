//! What a server asks the helper, and what it answers.

use crate::{ContainerSpec, Ended, Finding, Layer, LayerStats, RuntimeError, StartTimings, Usage};
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
    Destroy { id: String },
    List,
    Usage { id: String },
    CommitLayer { id: String, layer: PathBuf },
    UnpackLayer { layer: PathBuf, lower: Vec<Layer> },
    RemoveTree { path: PathBuf },
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
    /// Descriptors: pidfd, control socket.
    Started {
        timings: StartTimings,
    },
    Ended(Ended),
    Ids(Vec<String>),
    Usage(Usage),
    Layer(LayerStats),
    Done,
    Findings(Vec<Finding>),
}
