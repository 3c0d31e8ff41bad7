//! The holder's descriptor store: named descriptors that outlive a server. A server puts what must survive
//! it (a container's control socket, pidfd, output pipes, listeners) and a later one gets all of it back.
//!
//! The holder's side is plain code for a poll loop; the server's side is for tokio. A put is answered only
//! once the holder has the descriptor, so that whatever a server builds on it survives that server's death.

mod client;
mod store;

pub use client::{FdStoreClient, FdStoreError};
pub use store::FdStore;

use serde::{Deserialize, Serialize};

/// Names in the store at most.
pub const ENTRIES_MAX: usize = 16 * 1024;
/// Bytes in a name at most.
pub const NAME_MAX: usize = 128;
/// Descriptors sent in one packet when a server gets the initial set.
const HAND_OVER_BATCH: usize = 64;

#[derive(Debug, Serialize, Deserialize)]
enum ToStore {
    Put { id: u64, name: String },
    Remove { id: u64, name: String },
}

#[derive(Debug, Serialize, Deserialize)]
enum FromStore {
    Initial { names: Vec<String>, last: bool },
    Done { id: u64, result: Result<(), String> },
}
