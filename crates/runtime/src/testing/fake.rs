//! A runtime whose containers are scripts: what a "program" does is a future given by the test. Control
//! sockets, listeners, output pipes and pidfds are real descriptors, so that everything above is tested as it is.

use crate::fds::{self, AsyncSocket};
use crate::{ContainerSpec, Ended, Finding, Layer, LayerStats, Network, Runtime, RuntimeError, StartError};
use crate::{FindingState, ListenerSpec, StartTimings, Started, Usage};
use async_trait::async_trait;
use evoke_guest::wire::{Event, Exit, FromGuest, ProcId, ProcStatus, Reply, Request, Spawn, ToGuest, Way};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;

/// Signals that may wait for a scripted program.
const SIGNALS_MAX: usize = 16;

type Script = dyn Fn(FakeProcess) -> Pin<Box<dyn Future<Output = Exit> + Send>> + Send + Sync;

/// One "program" that a script plays.
#[derive(Debug)]
pub struct FakeProcess {
    /// The container it runs in.
    pub container: ContainerSpec,
    /// What was asked for.
    pub spawn: Spawn,
    /// Its standard input.
    pub stdin: OwnedFd,
    /// Its standard output.
    pub stdout: OwnedFd,
    /// Its standard error.
    pub stderr: OwnedFd,
    /// Signals it was sent, except SIGKILL, which ends it without asking.
    pub signals: mpsc::Receiver<i32>,
    /// For each TCP listener of the spec, the port on this machine's loopback that it really has.
    pub ports: Vec<u16>,
}

/// A runtime that runs nothing. Cheap to clone; clones share their containers.
#[derive(Clone)]
pub struct FakeRuntime {
    script: Arc<Script>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    containers: BTreeMap<String, Container>,
    layers: BTreeSet<PathBuf>,
    fail_next_start: Option<RuntimeError>,
    usage: Usage,
}

struct Container {
    guest: tokio::task::JoinHandle<()>,
}

impl FakeRuntime {
    /// A runtime whose programs are played by `script`.
    pub fn new<F, Fut>(script: F) -> Self
    where
        F: Fn(FakeProcess) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Exit> + Send + 'static,
    {
        Self { script: Arc::new(move |process| Box::pin(script(process))), state: Arc::default() }
    }

    /// A runtime whose programs end at once with code 0.
    pub fn idle() -> Self {
        Self::new(|_| async { Exit { code: Some(0), signal: None } })
    }

    /// Makes the next start fail.
    pub fn fail_next_start(&self, error: RuntimeError) {
        self.state().fail_next_start = Some(error);
    }

    /// What usage and the end of containers report from now on.
    pub fn set_usage(&self, usage: Usage) {
        self.state().usage = usage;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn step(error: impl Into<std::io::Error>) -> RuntimeError {
    RuntimeError::step("faking a container", error)
}

fn open_listener(spec: &ListenerSpec) -> Result<(OwnedFd, Option<u16>), RuntimeError> {
    match spec {
        ListenerSpec::Tcp { .. } => {
            let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).map_err(step)?;
            let port = listener.local_addr().map_err(step)?.port();
            listener.set_nonblocking(true).map_err(step)?;
            Ok((listener.into(), Some(port)))
        }
        // Where no root exists the path cannot be made; a socket without a name still behaves as a listener.
        ListenerSpec::Unix { .. } => {
            use rustix::net::{
                AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
            };
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(step)?;
            bind(&socket, &SocketAddrUnix::new_unnamed()).map_err(step)?;
            listen(&socket, 16).map_err(step)?;
            Ok((socket, None))
        }
    }
}

#[async_trait]
impl Runtime for FakeRuntime {
    async fn start(&self, spec: ContainerSpec) -> Result<Started, StartError> {
        if let Some(error) = self.state().fail_next_start.take() {
            return Err(error);
        }
        if spec.layers.is_empty() {
            return Err(RuntimeError::Refused("a container has at least one layer".to_owned()));
        }
        if self.state().containers.contains_key(&spec.id) {
            return Err(RuntimeError::Exists(format!("container {}", spec.id)));
        }
        let (control, theirs) = fds::pair().map_err(step)?;
        let (pidfd, alive) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(step)?;
        let mut listeners = Vec::new();
        let mut ports = Vec::new();
        for listener in &spec.listeners {
            let (listener, port) = open_listener(listener)?;
            listeners.push(listener);
            ports.extend(port);
        }
        let id = spec.id.clone();
        let guest = FakeGuest { spec, ports, script: Arc::clone(&self.script), processes: Vec::new() };
        let socket = AsyncSocket::new(theirs).map_err(step)?;
        let guest = tokio::task::spawn(guest.serve(socket, alive));
        self.state().containers.insert(id, Container { guest });
        Ok(Started {
            pidfd,
            control,
            listeners,
            served: Vec::new(),
            root: 0,
            address: None,
            env: Vec::new(),
            timings: StartTimings::default(),
        })
    }

    async fn destroy(&self, id: &str) -> Result<Ended, RuntimeError> {
        let container = self.state().containers.remove(id);
        let Some(container) = container else { return Ok(Ended::default()) };
        container.guest.abort();
        // Its only other outcome is the cancellation just asked for.
        let _ = container.guest.await;
        Ok(Ended { usage: self.state().usage })
    }

    async fn list(&self) -> Result<Vec<String>, RuntimeError> {
        Ok(self.state().containers.keys().cloned().collect())
    }

    async fn usage(&self, id: &str) -> Result<Usage, RuntimeError> {
        let state = self.state();
        let found = state.containers.contains_key(id);
        found.then_some(state.usage).ok_or_else(|| RuntimeError::NotFound(format!("container {id}")))
    }

    async fn commit_layer(&self, id: &str, layer: &Path) -> Result<LayerStats, RuntimeError> {
        let mut state = self.state();
        let container = state.containers.get(id);
        let container = container.ok_or_else(|| RuntimeError::NotFound(format!("container {id}")))?;
        if !container.guest.is_finished() {
            return Err(RuntimeError::StillRunning(id.to_owned()));
        }
        if !state.layers.insert(layer.to_owned()) {
            return Err(RuntimeError::Exists(format!("layer {}", layer.display())));
        }
        Ok(LayerStats::default())
    }

    async fn unpack_layer(
        &self,
        layer: &Path,
        _lower: &[Layer],
        archive: OwnedFd,
    ) -> Result<LayerStats, RuntimeError> {
        let read = move || std::io::copy(&mut std::fs::File::from(archive), &mut std::io::sink());
        let bytes = tokio::task::spawn_blocking(read).await;
        let bytes = bytes.map_err(|e| step(std::io::Error::other(e)))?.map_err(step)?;
        if !self.state().layers.insert(layer.to_owned()) {
            return Err(RuntimeError::Exists(format!("layer {}", layer.display())));
        }
        Ok(LayerStats { entries: 1, bytes, warnings: Vec::new() })
    }

    async fn remove_tree(&self, path: &Path) -> Result<(), RuntimeError> {
        self.state().layers.remove(path);
        Ok(())
    }

    async fn probe(&self) -> Result<Vec<Finding>, RuntimeError> {
        let detail = format!("nothing is isolated; networks such as {:?} are not made", Network::Bridged);
        Ok(vec![Finding { subject: "runtime".to_owned(), state: FindingState::Degraded, detail, mend: None }])
    }
}

struct FakeGuest {
    spec: ContainerSpec,
    ports: Vec<u16>,
    script: Arc<Script>,
    processes: Vec<Process>,
}

struct Process {
    status: ProcStatus,
    signals: mpsc::Sender<i32>,
    program: tokio::task::AbortHandle,
}

impl FakeGuest {
    /// Plays PID 1; `_alive` is the write end of the pipe that stands for the pidfd.
    async fn serve(mut self, socket: AsyncSocket, _alive: OwnedFd) {
        let mut running = tokio::task::JoinSet::new();
        let mut deadline = None;
        loop {
            let killed = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                packet = socket.recv() => {
                    let Ok(Some(packet)) = packet else { return };
                    let Ok(ToGuest::Request { id, request }) = serde_json::from_slice(&packet.body) else { return };
                    if let Request::Shutdown { grace_ms } = &request {
                        self.signal_all(2);
                        deadline = Some(tokio::time::Instant::now() + Duration::from_millis(*grace_ms));
                        if self.processes.iter().all(|p| p.status.exit.is_some()) {
                            return;
                        }
                    }
                    let result = self.answer(request, packet.fds, &mut running);
                    if !say(&socket, &FromGuest::Reply { id, result }).await {
                        return;
                    }
                }
                Some(ended) = running.join_next_with_id(), if !running.is_empty() => {
                    let (task, exit) = match ended {
                        Ok((task, exit)) => (task, exit),
                        Err(error) => (error.id(), Exit { code: None, signal: Some(9) }),
                    };
                    let Some(process) = self.processes.iter_mut().find(|p| p.program.id() == task) else { continue };
                    process.status.exit = Some(exit);
                    let proc = process.status.proc;
                    if !say(&socket, &FromGuest::Event(Event::Exited { proc, exit })).await {
                        return;
                    }
                    if deadline.is_some() && running.is_empty() {
                        return;
                    }
                }
                () = killed => return,
            }
        }
    }

    fn signal_all(&self, signal: i32) {
        for process in &self.processes {
            // A program that does not listen to signals, or has ended, misses them as a real one would.
            let _ = process.signals.try_send(signal);
        }
    }

    fn answer(
        &mut self,
        request: Request,
        fds: Vec<OwnedFd>,
        running: &mut tokio::task::JoinSet<Exit>,
    ) -> Result<Reply, String> {
        match request {
            Request::Spawn(spawn) => self.spawn(*spawn, fds, running),
            Request::Signal { proc, signal, .. } => {
                let process = self.processes.iter().find(|p| p.status.proc == proc);
                let process = process.ok_or("no such process")?;
                match signal {
                    9 => process.program.abort(),
                    // As in signal_all.
                    _ => drop(process.signals.try_send(signal)),
                }
                Ok(Reply::Done)
            }
            Request::ReplaceVolume { .. } => Err("a scripted container has no volumes".to_owned()),
            Request::Status => {
                Ok(Reply::Status { processes: self.processes.iter().map(|p| p.status.clone()).collect() })
            }
            Request::Shutdown { .. } => Ok(Reply::Done),
        }
    }

    fn spawn(
        &mut self,
        spawn: Spawn,
        mut fds: Vec<OwnedFd>,
        running: &mut tokio::task::JoinSet<Exit>,
    ) -> Result<Reply, String> {
        let not_forked = (spawn.way == Way::Fork).then(|| {
            fds.truncate(3);
            "nothing forks here".to_owned()
        });
        let [stdin, stdout, stderr] =
            <[OwnedFd; 3]>::try_from(fds).map_err(|_| "three descriptors".to_owned())?;
        let proc = self.processes.len() as ProcId + 1;
        let (signals, receiver) = mpsc::channel(SIGNALS_MAX);
        let status = ProcStatus { proc, name: spawn.name.clone(), pid: proc as i32 + 1, exit: None };
        let program = running.spawn((self.script)(FakeProcess {
            container: self.spec.clone(),
            spawn,
            stdin,
            stdout,
            stderr,
            signals: receiver,
            ports: self.ports.clone(),
        }));
        self.processes.push(Process { status, signals, program });
        Ok(Reply::Spawned { proc, pid: proc as i32 + 1, not_forked })
    }
}

async fn say(socket: &AsyncSocket, message: &FromGuest) -> bool {
    match serde_json::to_vec(message) {
        Ok(body) => socket.send(&body, &[]).await.is_ok(),
        Err(_) => false,
    }
}
