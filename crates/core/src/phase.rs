//! The phases of a container start: one list for logs, metrics, `evoke explain` and the benchmarks.

use serde::{Deserialize, Serialize};

/// A moment in the life of a container. Each is recorded with the time at which it was *reached*.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The planner decided that the container should exist.
    Queued,
    /// A worker was chosen and told.
    Placed,
    /// Image and mounts are on the machine, ready to be mounted.
    Root,
    /// Namespaces, network and control groups exist and the guest runs.
    Slot,
    /// The program was executed (or forked).
    Exec,
    /// The program said hello: interpreter started and client imported.
    Hello,
    /// User code is imported and enter hooks ran: the first input was asked for.
    Ready,
    /// The container was told to stop.
    Stopping,
    /// The container's processes are gone.
    Exited,
    /// Everything that the container held was given back.
    Removed,
}

/// Which way a container was started; from the slowest to the fastest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartPath {
    /// Everything made for this start, interpreter executed.
    Plain,
    /// Everything made for this start but the interpreter, which a template forked with the client imported.
    Fork,
}
