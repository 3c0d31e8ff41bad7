//! What makes a device usable in a container: device nodes, files of the driver, links, variables.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Changes to a container. Paths are absolute and in the container unless they are called the host's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edits {
    /// Variables of its programs.
    pub env: Vec<(String, String)>,
    /// Device nodes.
    pub nodes: Vec<Node>,
    /// Files and folders of the host, seen read-only.
    pub mounts: Vec<Mount>,
    /// Symbolic links: what they hold, and where they are.
    pub links: Vec<(String, String)>,
}

/// A device node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Below `/dev`.
    pub path: String,
    /// The node on the host that it is like.
    pub host: PathBuf,
}

/// A file or folder of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Where it is on the host.
    pub host: PathBuf,
    /// Where it appears.
    pub path: String,
}

impl Edits {
    /// Where something appears in the container, device nodes apart.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &String> {
        self.mounts.iter().map(|mount| &mount.path).chain(self.links.iter().map(|(_, path)| path))
    }

    /// Adds `other`, leaving out what is there already: several devices share most of the driver.
    pub(super) fn merge(&mut self, other: &Self) {
        fn add<T: Clone + PartialEq>(to: &mut Vec<T>, from: &[T]) {
            for item in from {
                if !to.contains(item) {
                    to.push(item.clone());
                }
            }
        }
        add(&mut self.env, &other.env);
        add(&mut self.nodes, &other.nodes);
        add(&mut self.mounts, &other.mounts);
        add(&mut self.links, &other.links);
    }
}
