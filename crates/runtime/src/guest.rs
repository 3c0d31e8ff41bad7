//! The server's side of a container's control socket.

use crate::fds::AsyncSocket;
use evoke_core::{Entropy, SystemEntropy};
use evoke_guest::wire::{FromGuest, Reply, Request, Spawn, ToGuest, Way};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

pub use evoke_guest::wire::{
    Copy as CopySpec, Event as GuestEvent, Exit, LayerFacts, Package as LayerPackage, ProcId, ProcStatus,
    Program, Survey as SurveySpec,
};

/// Events that may wait for [`Guest::next_event`] before the guest is left to queue them itself.
const EVENTS_MAX: usize = 256;
/// Requests that may wait for the guest's answer.
const PENDING_MAX: usize = 256;
/// How long the guest may take to answer; it does nothing that blocks.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);

/// Why the guest did not do something.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The container has ended.
    #[error("the container has ended")]
    Gone,
    /// The guest tried and failed, or refused; the text says which step.
    #[error("{0}")]
    Refused(String),
    /// No answer in time.
    #[error("the container's init did not answer within {} s", REPLY_TIMEOUT.as_secs())]
    TimedOut,
    /// Too many requests are in flight.
    #[error("too many requests to one container's init are in flight")]
    Busy,
    /// The socket failed.
    #[error("the container's control socket failed")]
    Socket(#[from] io::Error),
}

/// A program to start in a container.
#[derive(Debug)]
pub struct ProcessSpec {
    /// Free text that [`ProcStatus`] repeats, so that a restarted server recognises its processes.
    pub name: String,
    /// What runs.
    pub program: Program,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// The working directory; `/` if empty. Made if it does not exist.
    pub cwd: String,
    /// Whom it runs as: empty for root, else `name|uid[:group|gid]`.
    pub user: String,
    /// Its standard input; `/dev/null` if absent.
    pub stdin: Option<OwnedFd>,
    /// Its standard output.
    pub stdout: OwnedFd,
    /// Its standard error.
    pub stderr: OwnedFd,
}

impl ProcessSpec {
    /// `argv` as root in `/` with standard input empty.
    pub fn new(argv: Vec<String>, stdout: OwnedFd, stderr: OwnedFd) -> Self {
        Self {
            name: String::new(),
            program: Program::Exec { argv },
            env: Vec::new(),
            cwd: String::new(),
            user: String::new(),
            stdin: None,
            stdout,
            stderr,
        }
    }
}

/// A container's init, as the server sees it. Cheap to clone; any number of requests may be in flight.
#[derive(Debug, Clone)]
pub struct Guest {
    shared: Arc<Shared>,
    events: Arc<tokio::sync::Mutex<mpsc::Receiver<GuestEvent>>>,
    _reader: Arc<ReaderHandle>,
}

#[derive(Debug)]
struct Shared {
    socket: AsyncSocket,
    next_id: AtomicU64,
    pending: Mutex<Pending>,
}

#[derive(Debug, Default)]
struct Pending {
    replies: HashMap<u64, oneshot::Sender<Result<Reply, String>>>,
    gone: bool,
}

/// Ends the reading task with the last handle.
#[derive(Debug)]
struct ReaderHandle(tokio::task::JoinHandle<()>);

impl Drop for ReaderHandle {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Shared {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        // Nothing that holds this lock can panic half way through a change.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Guest {
    /// Takes over the control socket of a container that is ready. Must be called inside a tokio runtime.
    /// Dropping the last clone closes this descriptor; if nobody else holds a duplicate, the container ends.
    pub fn new(control: OwnedFd) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            socket: AsyncSocket::new(control)?,
            // Answers to a server that died may still arrive; a random start keeps them from being taken
            // for answers to this one.
            next_id: AtomicU64::new(SystemEntropy::default().next_u64()),
            pending: Mutex::default(),
        });
        let (sender, receiver) = mpsc::channel(EVENTS_MAX);
        let reader = tokio::task::spawn(read_packets(Arc::clone(&shared), sender));
        Ok(Self {
            shared,
            events: Arc::new(tokio::sync::Mutex::new(receiver)),
            _reader: Arc::new(ReaderHandle(reader)),
        })
    }

    /// Starts a program and returns its number once it is executed.
    pub async fn spawn(&self, spec: ProcessSpec) -> Result<ProcId, GuestError> {
        self.start(spec, Way::Execute, None).await.map(|(proc, _)| proc)
    }

    /// Starts a program that forks others, for containers in the namespaces of this one.
    pub async fn spawn_template(&self, spec: ProcessSpec) -> Result<ProcId, GuestError> {
        self.start(spec, Way::Template, None).await.map(|(proc, _)| proc)
    }

    /// Has a program forked by a template, which was given the other end of `line`; where that fails the program is
    /// executed, and why is said.
    pub async fn spawn_forked(
        &self,
        spec: ProcessSpec,
        line: OwnedFd,
    ) -> Result<(ProcId, Option<String>), GuestError> {
        self.start(spec, Way::Fork, Some(line)).await
    }

    async fn start(
        &self,
        spec: ProcessSpec,
        way: Way,
        line: Option<OwnedFd>,
    ) -> Result<(ProcId, Option<String>), GuestError> {
        let ProcessSpec { name, program, env, cwd, user, stdin, stdout, stderr } = spec;
        let stdin = match stdin {
            Some(stdin) => stdin,
            None => open_null()?,
        };
        let request = Request::Spawn(Box::new(Spawn { name, program, env, cwd, user, way }));
        let mut fds = vec![stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
        fds.extend(line.as_ref().map(AsFd::as_fd));
        match self.ask(request, &fds).await? {
            Reply::Spawned { proc, not_forked, .. } => Ok((proc, not_forked)),
            other => Err(GuestError::Refused(format!("unexpected answer {other:?}"))),
        }
    }

    /// Sends a signal to one process, or to its whole group.
    pub async fn signal(&self, proc: ProcId, signal: i32, group: bool) -> Result<(), GuestError> {
        self.ask(Request::Signal { proc, signal, group }, &[]).await.map(drop)
    }

    /// What runs and how what ended did, in order of start. A server that was restarted learns here what
    /// ended while there was none.
    pub async fn status(&self) -> Result<Vec<ProcStatus>, GuestError> {
        match self.ask(Request::Status, &[]).await? {
            Reply::Status { processes } => Ok(processes),
            other => Err(GuestError::Refused(format!("unexpected answer {other:?}"))),
        }
    }

    /// Shows another state of a volume. `false` where something of it is open: then nothing was done.
    pub async fn replace_volume(&self, volume: &str, mount: BorrowedFd<'_>) -> Result<bool, GuestError> {
        let request = Request::ReplaceVolume { volume: volume.to_owned() };
        match self.ask(request, &[mount]).await? {
            Reply::Done => Ok(true),
            Reply::VolumeBusy => Ok(false),
            other => Err(GuestError::Refused(format!("unexpected answer {other:?}"))),
        }
    }

    /// Ends the container: SIGINT to its programs now, SIGKILL after `grace`. Returns at once; the pidfd
    /// tells when it is over.
    pub async fn shutdown(&self, grace: Duration) -> Result<(), GuestError> {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        self.ask(Request::Shutdown { grace_ms }, &[]).await.map(drop)
    }

    /// The next event; `None` once the container has ended. Safe to cancel.
    pub async fn next_event(&self) -> Option<GuestEvent> {
        self.events.lock().await.recv().await
    }

    /// The control socket, for putting a duplicate into the descriptor store.
    pub fn control(&self) -> BorrowedFd<'_> {
        self.shared.socket.as_fd()
    }

    async fn ask(&self, request: Request, fds: &[BorrowedFd<'_>]) -> Result<Reply, GuestError> {
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        {
            let mut pending = self.shared.pending();
            if pending.gone {
                return Err(GuestError::Gone);
            }
            if pending.replies.len() >= PENDING_MAX {
                return Err(GuestError::Busy);
            }
            pending.replies.insert(id, sender);
        }
        let _forget = Forget { shared: &self.shared, id };
        let body = serde_json::to_vec(&ToGuest::Request { id, request }).map_err(io::Error::other)?;
        let exchange = async {
            match self.shared.socket.send(&body, fds).await {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Err(GuestError::Gone),
                Err(error) => return Err(error.into()),
            }
            receiver.await.map_err(|_| GuestError::Gone)?.map_err(GuestError::Refused)
        };
        tokio::time::timeout(REPLY_TIMEOUT, exchange).await.unwrap_or(Err(GuestError::TimedOut))
    }
}

/// Drops the entry of a request that was answered or given up.
struct Forget<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.shared.pending().replies.remove(&self.id);
    }
}

fn open_null() -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    Ok(rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

async fn read_packets(shared: Arc<Shared>, events: mpsc::Sender<GuestEvent>) {
    loop {
        let packet = match shared.socket.recv().await {
            Ok(Some(packet)) => packet,
            Ok(None) => break,
            Err(error) => {
                tracing::warn!(%error, "a container's control socket failed");
                break;
            }
        };
        match serde_json::from_slice(&packet.body) {
            Ok(FromGuest::Reply { id, result }) => {
                if let Some(waiting) = shared.pending().replies.remove(&id) {
                    // The asker may have given up; then nobody wants the answer.
                    let _ = waiting.send(result);
                }
            }
            Ok(FromGuest::Event(event)) => {
                if events.send(event).await.is_err() {
                    break;
                }
            }
            Ok(other) => tracing::debug!(?other, "a message that this server does not expect"),
            Err(error) => tracing::warn!(%error, "a container's init sent what is not a message"),
        }
    }
    let mut pending = shared.pending();
    pending.gone = true;
    pending.replies.clear();
}
