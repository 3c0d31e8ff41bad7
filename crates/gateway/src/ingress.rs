//! Listeners: accepts their connections and serves each, until told to stop.

use evoke_core::{Error, ErrorCode, TaskId};
use evoke_proto::worker::{ContainerIngress, ContainerListener};
use evoke_proto::{Peer, Service, grpc};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::connection::{self, Context, stopped};
use crate::{Authenticator, HttpRoutes};

/// Connections at a time on the public listener; further ones wait to be accepted.
const PUBLIC_CONNECTIONS_MAX: usize = 8_192;
/// Connections at a time on one listener of a container.
const CONTAINER_CONNECTIONS_MAX: usize = 512;
/// Pause after the machine could not give a descriptor for a connection, in milliseconds.
const ACCEPT_PAUSE_MS: u64 = 50;
/// How long requests that were begun may take to end once the listener stops, in milliseconds.
const GRACE_MS_MAX: u64 = 5_000;

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

    async fn accept(&self) -> io::Result<(Accepted, Peer)> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                // Only latency is lost where this fails.
                let _ = stream.set_nodelay(true);
                Ok((Accepted::Tcp(stream), Peer::Net(address)))
            }
            Listener::Unix(listener) => Ok((Accepted::Unix(listener.accept().await?.0), Peer::Unix)),
        }
    }
}

enum Accepted {
    Tcp(TcpStream),
    Unix(UnixStream),
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
        mut stop: watch::Receiver<bool>,
    ) {
        let context = Arc::new(Context {
            identity,
            origin: origin.into(),
            service: self.service.clone(),
            http: self.http.clone(),
            authenticator: self.authenticator.clone(),
            grpc: grpc::Grpc::default(),
        });
        let room = Arc::new(Semaphore::new(match identity {
            Identity::Public => PUBLIC_CONNECTIONS_MAX,
            Identity::Container(_) => CONTAINER_CONNECTIONS_MAX,
        }));
        let mut connections = JoinSet::new();
        loop {
            let next = async {
                // The semaphore is never closed.
                let permit = room.clone().acquire_owned().await.ok();
                (listener.accept().await, permit)
            };
            let (accepted, permit) = tokio::select! {
                next = next => next,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
                () = stopped(&mut stop) => break,
            };
            let (context, stop) = (context.clone(), stop.clone());
            match accepted {
                Ok((Accepted::Tcp(stream), peer)) => connections.spawn(async move {
                    connection::serve(context, stream, peer, stop).await;
                    drop(permit);
                }),
                Ok((Accepted::Unix(stream), peer)) => connections.spawn(async move {
                    connection::serve(context, stream, peer, stop).await;
                    drop(permit);
                }),
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection failed");
                    tokio::time::sleep(Duration::from_millis(ACCEPT_PAUSE_MS)).await;
                    continue;
                }
            };
        }
        drop(listener);
        let ended = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(Duration::from_millis(GRACE_MS_MAX), ended).await.is_err() {
            tracing::debug!(?identity, left = connections.len(), "ending connections that are still open");
            connections.shutdown().await;
        }
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
