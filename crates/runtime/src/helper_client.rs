//! The client of the privileged helper: the [`Runtime`] of a real machine.

use crate::fds::{AsyncSocket, Packet};
use crate::helper::request::{Answer, Asked, Reply, Request};
use crate::{Collected, Started, Usage, Volume};
use crate::{
    ContainerSpec, Ended, Finding, Layer, LayerStats, Runtime, RuntimeError, StartError, StartTimings,
};
use async_trait::async_trait;
use evoke_guest::wire::FromGuest;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, oneshot};

/// How long the helper may take for what does not depend on the size of a tree.
const SHORT_TIMEOUT: Duration = Duration::from_secs(60);
/// How long it may take to unpack, commit or remove a tree.
const LONG_TIMEOUT: Duration = Duration::from_secs(3600);
/// How long a guest may take to make its root.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// Requests to the helper in flight; more wait their turn here.
const IN_FLIGHT_MAX: usize = 128;

/// Runs containers through the privileged helper. Cheap to clone; any number of requests may be in flight.
#[derive(Debug, Clone)]
pub struct HelperRuntime {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    socket: Arc<AsyncSocket>,
    next_id: AtomicU64,
    pending: Arc<Mutex<Pending>>,
    turns: Semaphore,
    reader: tokio::task::JoinHandle<()>,
}

type Answered = Result<(Reply, Vec<OwnedFd>), RuntimeError>;
/// `None` once the helper is gone.
type Pending = Option<HashMap<u64, oneshot::Sender<Answered>>>;

impl Drop for Shared {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

fn lock(pending: &Mutex<Pending>) -> MutexGuard<'_, Pending> {
    // Nothing that holds this lock can panic half way through a change.
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}

impl HelperRuntime {
    /// Takes over this server's end of a socket to the helper. Must be called inside a tokio runtime.
    pub fn connect(socket: OwnedFd) -> io::Result<Self> {
        let socket = Arc::new(AsyncSocket::new(socket)?);
        let pending = Arc::new(Mutex::new(Some(HashMap::new())));
        let reader = tokio::task::spawn(read_answers(Arc::clone(&socket), Arc::clone(&pending)));
        let turns = Semaphore::new(IN_FLIGHT_MAX);
        Ok(Self { shared: Arc::new(Shared { socket, next_id: AtomicU64::new(1), pending, turns, reader }) })
    }

    async fn ask(&self, request: Request, fds: &[BorrowedFd<'_>], bound: Duration) -> Answered {
        let turn = self.shared.turns.acquire().await;
        let _turn = turn.map_err(|_| RuntimeError::HelperGone)?;
        let what = request.name();
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let body = serde_json::to_vec(&Asked { id, request });
        let body = body.map_err(|error| RuntimeError::Refused(error.to_string()))?;
        let (sender, receiver) = oneshot::channel();
        match lock(&self.shared.pending).as_mut() {
            Some(pending) => pending.insert(id, sender),
            None => return Err(RuntimeError::HelperGone),
        };
        let _forget = Forget { pending: &self.shared.pending, id };
        let exchange = async {
            match self.shared.socket.send(&body, fds).await {
                Ok(()) => receiver.await.unwrap_or(Err(RuntimeError::HelperGone)),
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(RuntimeError::HelperGone),
                Err(error) => Err(RuntimeError::step("talking to the privileged helper", error)),
            }
        };
        let timed_out = || Err(RuntimeError::TimedOut(format!("{what} (bound: {} s)", bound.as_secs())));
        tokio::time::timeout(bound, exchange).await.unwrap_or_else(|_| timed_out())
    }
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

async fn read_answers(socket: Arc<AsyncSocket>, pending: Arc<Mutex<Pending>>) {
    loop {
        let Packet { body, fds } = match socket.recv().await {
            Ok(Some(packet)) => packet,
            Ok(None) => break,
            Err(error) => {
                tracing::error!(%error, "the socket to the privileged helper failed");
                break;
            }
        };
        match serde_json::from_slice(&body) {
            Ok(Answer { id, result }) => {
                if let Some(waiting) = lock(&pending).as_mut().and_then(|p| p.remove(&id)) {
                    // An asker that gave up drops the descriptors with the answer, which ends the container.
                    let _ = waiting.send(result.map(|reply| (reply, fds)));
                }
            }
            Err(error) => tracing::error!(%error, "the privileged helper sent what is not an answer"),
        }
    }
    *lock(&pending) = None;
}

fn unexpected(reply: &Reply) -> RuntimeError {
    RuntimeError::Step {
        step: "understanding the privileged helper".to_owned(),
        detail: format!("{reply:?}"),
    }
}

#[async_trait]
impl Runtime for HelperRuntime {
    async fn start(&self, spec: ContainerSpec) -> Result<Started, StartError> {
        // The one clock of this crate's client: how long its own starts took.
        #[allow(clippy::disallowed_methods)]
        let began = Instant::now();
        let id = spec.id.clone();
        let (reply, fds) = self.ask(Request::Start(Box::new(spec)), &[], SHORT_TIMEOUT).await?;
        let Reply::Started { mut timings, env, root, address } = reply else {
            return Err(unexpected(&reply));
        };
        let mut fds = fds.into_iter();
        let (Some(pidfd), Some(control)) = (fds.next(), fds.next()) else {
            return Err(unexpected(&Reply::Started { timings, env, root, address }));
        };
        let served = fds.collect();
        match wait_until_ready(control, &mut timings).await {
            Ok((control, listeners)) => {
                timings.total_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
                Ok(Started { pidfd, control, listeners, served, root, address, env, timings })
            }
            Err(error) => {
                if let Err(cleanup) = self.destroy(&id).await {
                    tracing::warn!(container = %id, error = %cleanup, "a failed start could not be cleaned up yet");
                }
                Err(error)
            }
        }
    }

    async fn destroy(&self, id: &str) -> Result<Ended, RuntimeError> {
        match self.ask(Request::Destroy { id: id.to_owned() }, &[], SHORT_TIMEOUT).await?.0 {
            Reply::Ended(ended) => Ok(ended),
            other => Err(unexpected(&other)),
        }
    }

    async fn list(&self) -> Result<Vec<String>, RuntimeError> {
        match self.ask(Request::List, &[], SHORT_TIMEOUT).await?.0 {
            Reply::Ids(ids) => Ok(ids),
            other => Err(unexpected(&other)),
        }
    }

    async fn usage(&self, id: &str) -> Result<Usage, RuntimeError> {
        match self.ask(Request::Usage { id: id.to_owned() }, &[], SHORT_TIMEOUT).await?.0 {
            Reply::Usage(usage) => Ok(usage),
            other => Err(unexpected(&other)),
        }
    }

    async fn commit_layer(&self, id: &str, layer: &Path) -> Result<LayerStats, RuntimeError> {
        let request = Request::CommitLayer { id: id.to_owned(), layer: layer.to_owned() };
        match self.ask(request, &[], LONG_TIMEOUT).await?.0 {
            Reply::Layer(stats) => Ok(stats),
            other => Err(unexpected(&other)),
        }
    }

    async fn unpack_layer(
        &self,
        layer: &Path,
        lower: &[Layer],
        archive: OwnedFd,
    ) -> Result<LayerStats, RuntimeError> {
        let request = Request::UnpackLayer { layer: layer.to_owned(), lower: lower.to_vec() };
        match self.ask(request, &[archive.as_fd()], LONG_TIMEOUT).await?.0 {
            Reply::Layer(stats) => Ok(stats),
            other => Err(unexpected(&other)),
        }
    }

    async fn mount_volume(&self, id: &str, volume: Volume) -> Result<OwnedFd, RuntimeError> {
        let request = Request::MountVolume { id: id.to_owned(), volume: Box::new(volume) };
        let (reply, mut fds) = self.ask(request, &[], SHORT_TIMEOUT).await?;
        match (&reply, fds.pop()) {
            (Reply::Done, Some(mount)) => Ok(mount),
            _ => Err(unexpected(&reply)),
        }
    }

    async fn collect_volume(
        &self,
        id: &str,
        (volume, slot): (&str, u32),
        known: OwnedFd,
        listing: OwnedFd,
        staging: OwnedFd,
    ) -> Result<Collected, RuntimeError> {
        let request = Request::CollectVolume { id: id.to_owned(), volume: volume.to_owned(), slot };
        let fds = [known.as_fd(), listing.as_fd(), staging.as_fd()];
        match self.ask(request, &fds, LONG_TIMEOUT).await?.0 {
            Reply::Collected(collected) => Ok(collected),
            other => Err(unexpected(&other)),
        }
    }

    async fn drop_volume(&self, id: &str, volume: &str, slot: u32) -> Result<(), RuntimeError> {
        let request = Request::DropVolume { id: id.to_owned(), volume: volume.to_owned(), slot };
        match self.ask(request, &[], SHORT_TIMEOUT).await?.0 {
            Reply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    async fn remove_tree(&self, path: &Path) -> Result<(), RuntimeError> {
        match self.ask(Request::RemoveTree { path: path.to_owned() }, &[], LONG_TIMEOUT).await?.0 {
            Reply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    async fn probe(&self) -> Result<Vec<Finding>, RuntimeError> {
        match self.ask(Request::Probe, &[], SHORT_TIMEOUT).await?.0 {
            Reply::Findings(findings) => Ok(findings),
            other => Err(unexpected(&other)),
        }
    }
}

/// Waits for the guest's word that its root is made. Done here and not in the helper, which waits for nobody.
async fn wait_until_ready(
    control: OwnedFd,
    timings: &mut StartTimings,
) -> Result<(OwnedFd, Vec<OwnedFd>), StartError> {
    const STEP: &str = "waiting for the container's init";
    let control = AsyncSocket::new(control).map_err(|error| RuntimeError::step(STEP, error))?;
    let packet = tokio::time::timeout(READY_TIMEOUT, control.recv());
    let packet = packet.await.map_err(|_| RuntimeError::TimedOut("the container's init".to_owned()))?;
    let packet = packet.map_err(|error| RuntimeError::step(STEP, error))?;
    let ended = || RuntimeError::Step { step: STEP.to_owned(), detail: "it ended".to_owned() };
    let packet = packet.ok_or_else(ended)?;
    match serde_json::from_slice(&packet.body) {
        Ok(FromGuest::Ready { setup_us }) => {
            timings.guest_us = setup_us;
            for listener in &packet.fds {
                let set = rustix::io::ioctl_fionbio(listener, true);
                set.map_err(|error| RuntimeError::step("preparing a listener", error))?;
            }
            Ok((control.into_inner(), packet.fds))
        }
        Ok(FromGuest::Failed { step, detail, .. }) => Err(RuntimeError::Step { step, detail }),
        Ok(other) => Err(RuntimeError::Step { step: STEP.to_owned(), detail: format!("{other:?}") }),
        Err(error) => Err(RuntimeError::Step { step: STEP.to_owned(), detail: error.to_string() }),
    }
}
