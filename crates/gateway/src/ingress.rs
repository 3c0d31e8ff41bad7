//! The listeners of the platform: what comes through them is served by who may come.

use evoke_core::{Error, ErrorCode, TaskId};
use evoke_proto::worker::{ContainerIngress, ContainerListener};
use evoke_proto::{Service, grpc};
use std::io;
use std::sync::Arc;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;

use crate::accept::{self, Room};
use crate::connection::Context;
use crate::{Authenticator, HttpRoutes, WebIngress};

/// Connections at a time on the public listener; further ones wait to be accepted.
const PUBLIC_CONNECTIONS_MAX: u32 = 8_192;
/// Connections at a time on one listener of a container.
const CONTAINER_CONNECTIONS_MAX: u32 = 512;

/// Who comes through a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    /// Anybody; the token in a request says who.
    Public,
    /// This container and nobody else.
    Container(TaskId),
}

/// Where connections come from.
#[derive(Debug)]
pub enum Listener {
    /// A port.
    Tcp(TcpListener),
    /// A socket in the file system.
    Unix(UnixListener),
}

impl Listener {
    /// A listener over a standard one.
    pub fn from_tcp(listener: std::net::TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener).map(Listener::Tcp)
    }
    /// A listener over a standard one.
    pub fn from_unix(listener: std::os::unix::net::UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        UnixListener::from_std(listener).map(Listener::Unix)
    }

    /// The port that it is bound to, where it is one.
    pub(crate) fn port(&self) -> Option<u16> {
        match self {
            Listener::Tcp(listener) => listener.local_addr().ok().map(|address| address.port()),
            Listener::Unix(_) => None,
        }
    }
}

/// Everything that requests are served with. Cheap to clone.
#[derive(Clone)]
pub struct Ingress {
    /// Serves the RPCs.
    pub service: Arc<dyn Service>,
    /// Serves what is not gRPC.
    pub http: Arc<dyn HttpRoutes>,
    /// Knows the tokens of the public listener.
    pub authenticator: Arc<dyn Authenticator>,
    /// Serves the requests that are for web functions, where there are any.
    pub web: Option<WebIngress>,
}

impl Ingress {
    /// Serves `listener` until `stop` turns true (or its sender is gone), then lets the requests that were
    /// begun end, within a bound. `origin` is the base address of the URLs for callers whose requests name
    /// none, without a slash at the end.
    pub async fn serve(
        &self,
        listener: Listener,
        identity: Identity,
        origin: impl Into<Arc<str>>,
        stop: watch::Receiver<bool>,
    ) {
        let context = Context {
            identity,
            origin: origin.into(),
            port: listener.port(),
            service: self.service.clone(),
            http: self.http.clone(),
            authenticator: self.authenticator.clone(),
            grpc: grpc::Grpc::default(),
            web: self.web.clone(),
        };
        let room = Room::of(match identity {
            Identity::Public => PUBLIC_CONNECTIONS_MAX,
            Identity::Container(_) => CONTAINER_CONNECTIONS_MAX,
        });
        accept::serve(listener, room, Arc::new(context), stop).await;
    }
}

#[async_trait::async_trait]
impl ContainerIngress for Ingress {
    async fn serve_container(
        &self,
        task: TaskId,
        listener: ContainerListener,
        origin: Arc<str>,
        service: Arc<dyn Service>,
        stop: watch::Receiver<bool>,
    ) -> Result<(), Error> {
        let listener = match listener {
            ContainerListener::Tcp(listener) => Listener::from_tcp(listener),
            ContainerListener::Unix(listener) => Listener::from_unix(listener),
        };
        let listener = listener.map_err(|e| {
            Error::new(ErrorCode::Internal, format!("The listener of container {task} cannot be served: {e}"))
        })?;
        let ingress = Ingress { service, ..self.clone() };
        ingress.serve(listener, Identity::Container(task), origin, stop).await;
        Ok(())
    }
}
