//! The interface between the control plane, which is asked for tunnels, and what opens ports for them: a port of this
//! machine whose connections lead to a port of a container.

use evoke_core::{Error, TaskId};
use std::net::SocketAddr;

/// A port of a container that is reached from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tunnel {
    /// The container.
    pub task: TaskId,
    /// The port inside of it.
    pub port: u16,
}

/// What connections from outside speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mouth {
    /// TLS, whose end is here; the container gets what was inside.
    Tls,
    /// The same; HTTP/2 is offered to clients that ask which protocol to speak.
    TlsHttp2,
    /// Anything, as it is.
    Raw,
}

/// Where a tunnel begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entrance {
    /// The host that certificates name.
    pub host: String,
    /// The port there.
    pub port: u16,
}

/// Opens and closes tunnels.
#[async_trait::async_trait]
pub trait Tunnels: Send + Sync {
    /// Opens the mouths of a tunnel to `target`: one entrance for each, in their order. None where the tunnel is
    /// open already.
    async fn open(
        &self,
        tunnel: Tunnel,
        target: SocketAddr,
        mouths: &[Mouth],
    ) -> Result<Option<Vec<Entrance>>, Error>;

    /// Closes a tunnel, its connections too. False where there is none.
    async fn close(&self, tunnel: Tunnel) -> bool;

    /// Closes all tunnels of a container.
    async fn close_all(&self, task: TaskId);
}
