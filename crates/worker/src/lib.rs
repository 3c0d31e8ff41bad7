//! The machine's agent: takes assignments, drives each container from its start to its last trace, captures
//! its output, forwards its calls, and goes on with all of it after a restart.
//!
//! Invariants:
//! - What a container does next is decided by a pure state machine (`lifecycle`); everything else carries
//!   its actions out. Every way to fail ends in the same removal.
//! - Before a container's program runs, its descriptors are where they outlive this process.
//! - A byte that a container wrote is in its pipe, in its spool or with control; in exactly one of them
//!   counts, and a SIGKILL at any instant loses and repeats none.
//! - Output that led to a result is with control before the result is.
//! - Whatever waits is bounded by a named constant.
//!
//! Entry points: [`Worker::start`], then [`WorkerHandle::adopt`] once, then the calls of
//! [`evoke_proto::worker::Worker`].

mod adopt;
mod buckets;
mod config;
mod container;
mod fd_keeper;
mod forward;
mod lifecycle;
mod live;
mod output;
mod prepare;
mod record;
mod registry;
mod tasks;
mod templates;
#[cfg(test)]
mod testing;
mod usage;
mod volumes;
mod worker;

pub use buckets::has_bucket_client;
pub use config::{CONTAINER_PORT, CONTAINER_SOCKET, INSIDE_FOLDER, Templates, WorkerConfig};
pub use fd_keeper::FdKeeper;
pub use volumes::BuildVolumes;
pub use worker::{Worker, WorkerDeps, WorkerHandle};
