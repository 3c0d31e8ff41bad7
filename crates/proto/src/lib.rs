//! The protocol: its messages, its table of RPCs, how they travel over HTTP/2, and the interface between
//! the control plane and the workers.
//!
//! Messages and table are generated at build time from the schema inside the official client's published
//! wheel (see `modal.lock` and `build/`). Nothing here decides anything about a call's meaning.
//!
//! - [`api`] and [`router`]: messages of the two services; `api::rpc::AppCreate` names an RPC by type.
//! - [`rpc`]: the table, [`rpc::find`] by path.
//! - [`Service`]: what serves calls; [`Dispatcher`] is the one made of handlers, one per RPC.
//! - [`grpc`]: serves a [`Service`] to a gRPC client.
//! - [`frames`]: serves a [`Service`] to the lean transport of containers.
//! - [`Status`]: a failed call; every [`evoke_core::Error`] becomes one.
//! - [`web`]: requests to web functions between gateway and control plane.
//! - [`worker`]: assignments, events and logs between control plane and worker.

pub mod coverage;
mod dispatcher;
pub mod frames;
pub mod grpc;
mod invoke;
pub mod rpc;
mod service;
mod status;
mod timeout;
pub mod tunnels;
pub mod web;
pub mod worker;

pub use dispatcher::{Dispatcher, DispatcherBuilder, decode, encode};
pub use service::{BoxStream, CallContext, Peer, Reply, Service};
pub use status::{Code, Status};

/// The release of the official client whose schema this is built from.
pub const CLIENT_VERSION: &str = env!("EVOKE_MODAL_VERSION");

// The generated code names messages of the other package by these paths.
#[allow(missing_docs, clippy::all)]
mod generated {
    pub mod client {
        include!(concat!(env!("OUT_DIR"), "/modal.client.rs"));
    }
    pub mod task_command_router {
        include!(concat!(env!("OUT_DIR"), "/modal.task_command_router.rs"));
    }
}

pub use generated::client as api;
pub use generated::task_command_router as router;
