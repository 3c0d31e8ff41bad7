//! The server's side.

use super::{FromStore, ToStore};
use crate::fds::AsyncSocket;
use std::collections::HashMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;

/// How long the holder may take to answer.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a descriptor could not be stored or removed.
#[derive(Debug, thiserror::Error)]
pub enum FdStoreError {
    /// The holder refused it.
    #[error("the holder refused the descriptor: {0}")]
    Refused(String),
    /// The holder is gone.
    #[error("the holder is gone")]
    Gone,
    /// The holder did not answer.
    #[error("the holder did not answer within {} s", REPLY_TIMEOUT.as_secs())]
    TimedOut,
    /// The socket failed.
    #[error("the socket to the holder failed")]
    Socket(#[from] io::Error),
}

/// The server's connection to the holder's descriptor store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct FdStoreClient {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    socket: Arc<AsyncSocket>,
    next_id: AtomicU64,
    pending: Arc<Mutex<Pending>>,
    reader: tokio::task::JoinHandle<()>,
}

type Pending = Option<HashMap<u64, oneshot::Sender<Result<(), String>>>>;

impl Drop for Shared {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl FdStoreClient {
    /// Takes over the socket that the holder passed to this server and receives what former servers stored.
    pub async fn connect(socket: OwnedFd) -> Result<(Self, Vec<(String, OwnedFd)>), FdStoreError> {
        let socket = Arc::new(AsyncSocket::new(socket)?);
        let initial = tokio::time::timeout(REPLY_TIMEOUT, receive_initial(&socket));
        let initial = initial.await.unwrap_or(Err(FdStoreError::TimedOut))?;
        let pending = Arc::new(Mutex::new(Some(HashMap::new())));
        let reader = tokio::task::spawn(read_answers(Arc::clone(&socket), Arc::clone(&pending)));
        let shared = Arc::new(Shared { socket, next_id: AtomicU64::new(1), pending, reader });
        Ok((Self { shared }, initial))
    }

    /// Stores a duplicate of `fd` under `name`, replacing what was there. Once it returns, `fd` survives
    /// this server.
    pub async fn put(&self, name: &str, fd: BorrowedFd<'_>) -> Result<(), FdStoreError> {
        self.ask(|id| ToStore::Put { id, name: name.to_owned() }, &[fd]).await
    }

    /// Removes and closes what is stored under `name`; absent is fine.
    pub async fn remove(&self, name: &str) -> Result<(), FdStoreError> {
        self.ask(|id| ToStore::Remove { id, name: name.to_owned() }, &[]).await
    }

    async fn ask(
        &self,
        request: impl FnOnce(u64) -> ToStore,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), FdStoreError> {
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        match lock(&self.shared.pending).as_mut() {
            Some(pending) => pending.insert(id, sender),
            None => return Err(FdStoreError::Gone),
        };
        let _forget = Forget { pending: &self.shared.pending, id };
        let body = serde_json::to_vec(&request(id)).map_err(io::Error::other)?;
        let exchange = async {
            self.shared.socket.send(&body, fds).await?;
            receiver.await.map_err(|_| FdStoreError::Gone)?.map_err(FdStoreError::Refused)
        };
        tokio::time::timeout(REPLY_TIMEOUT, exchange).await.unwrap_or(Err(FdStoreError::TimedOut))
    }
}

fn lock(pending: &Mutex<Pending>) -> std::sync::MutexGuard<'_, Pending> {
    // Nothing that holds this lock can panic half way through a change.
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Drops the entry of a request that was answered or given up.
struct Forget<'a> {
    pending: &'a Mutex<Pending>,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if let Some(pending) = lock(self.pending).as_mut() {
            pending.remove(&self.id);
        }
    }
}

async fn receive_initial(socket: &AsyncSocket) -> Result<Vec<(String, OwnedFd)>, FdStoreError> {
    let mut initial = Vec::new();
    loop {
        let packet = socket.recv().await?.ok_or(FdStoreError::Gone)?;
        match serde_json::from_slice(&packet.body).map_err(io::Error::other)? {
            FromStore::Initial { names, last } if names.len() == packet.fds.len() => {
                initial.extend(names.into_iter().zip(packet.fds));
                if last {
                    return Ok(initial);
                }
            }
            other => return Err(FdStoreError::Refused(format!("unexpected message {other:?}"))),
        }
    }
}

async fn read_answers(socket: Arc<AsyncSocket>, pending: Arc<Mutex<Pending>>) {
    // A failed socket and a closed one mean the same: the holder is gone.
    while let Ok(Some(packet)) = socket.recv().await {
        if let Ok(FromStore::Done { id, result }) = serde_json::from_slice(&packet.body) {
            if let Some(waiting) = lock(&pending).as_mut().and_then(|p| p.remove(&id)) {
                // The asker may have given up; then nobody wants the answer.
                let _ = waiting.send(result);
            }
        }
    }
    *lock(&pending) = None;
}
