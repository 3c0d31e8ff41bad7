//! Accepts a listener's connections and serves each, until told to stop.

use evoke_proto::Peer;
use rustix::net::sockopt;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use crate::Listener;
use crate::connection::{self, Answers, Connection, stopped};
use crate::wire::Wire;

/// Pause after the machine could not give a descriptor for a connection, in milliseconds.
pub(crate) const ACCEPT_PAUSE_MS: u64 = 50;
/// How long requests that were begun may take to end once the listener stops, in milliseconds.
const GRACE_MS_MAX: u64 = 5_000;

/// A silent connection is asked after this time whether its other end is there, and again as often, in seconds.
const SILENCE_S_MAX: u64 = 60;
/// How long the other end may take nothing of what is sent to it, in milliseconds.
const UNTAKEN_MS_MAX: u32 = 300_000;

/// Places for a listener's connections; who finds none waits to be accepted.
pub(crate) struct Room {
    places: Arc<Semaphore>,
    most: u32,
}

/// A place.
pub(crate) type Permit = Option<OwnedSemaphorePermit>;

impl Room {
    /// Room for `most` connections at a time.
    pub(crate) fn of(most: u32) -> Self {
        Self { places: Arc::new(Semaphore::new(most as usize)), most }
    }
}

enum Accepted {
    Tcp(TcpStream),
    Unix(UnixStream),
}

async fn accept(listener: &Listener) -> io::Result<(Accepted, Peer)> {
    match listener {
        Listener::Tcp(listener) => {
            let (stream, address) = listener.accept().await?;
            // Only latency is lost where this fails.
            let _ = stream.set_nodelay(true);
            if let Err(error) = notice_the_dead(&stream) {
                tracing::debug!(%error, "a client that vanishes will not be noticed");
            }
            Ok((Accepted::Tcp(stream), Peer::Net(address)))
        }
        Listener::Unix(listener) => Ok((Accepted::Unix(listener.accept().await?.0), Peer::Unix)),
    }
}

/// Has the kernel end connections whose other end vanished, or takes nothing of what is sent to it.
pub(crate) fn notice_the_dead(stream: &TcpStream) -> io::Result<()> {
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(SILENCE_S_MAX))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(SILENCE_S_MAX))?;
    sockopt::set_tcp_user_timeout(stream, UNTAKEN_MS_MAX)?;
    Ok(())
}

/// Serves `listener` until `stop` turns true (or its sender is gone), then lets what was begun end, within a
/// bound.
pub(crate) async fn serve<A: Answers>(
    listener: Listener,
    room: Room,
    answers: Arc<A>,
    mut stop: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    loop {
        let next = async {
            // The semaphore is never closed.
            let permit = room.places.clone().acquire_owned().await.ok();
            (accept(&listener).await, permit)
        };
        let (accepted, permit) = tokio::select! {
            next = next => next,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            () = stopped(&mut stop) => break,
        };
        let answers = answers.clone();
        match accepted {
            Ok((Accepted::Tcp(stream), peer)) => {
                let (wire, watch) = Wire::new(stream);
                let connection = Connection::new(peer, Some(watch), stop.clone(), permit);
                connections.spawn(connection::serve(answers, wire, connection))
            }
            Ok((Accepted::Unix(stream), peer)) => {
                let connection = Connection::new(peer, None, stop.clone(), permit);
                connections.spawn(connection::serve(answers, stream, connection))
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(Duration::from_millis(ACCEPT_PAUSE_MS)).await;
                continue;
            }
        };
    }
    drop(listener);
    let ended = async {
        while connections.join_next().await.is_some() {}
        // What outlives its connection holds a place of it. An error would mean that the semaphore was closed.
        let _ = room.places.acquire_many(room.most).await;
    };
    if tokio::time::timeout(Duration::from_millis(GRACE_MS_MAX), ended).await.is_err() {
        tracing::debug!(left = connections.len(), "ending connections that are still open");
        connections.shutdown().await;
    }
}
