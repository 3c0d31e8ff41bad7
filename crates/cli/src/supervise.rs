//! The holder's loop: keeps one server running, serves the descriptor store, and ends everything in order.
//!
//! One `poll` over the signals' pipe, the server's pidfd, its connection to the store, its readiness pipe and
//! the helper's pidfd. A server that dies is started again at once, later with a growing delay; connections
//! wait in the listeners meanwhile. What happens next depends on [`Phase`] alone.

use crate::helper::Helper;
use crate::launch::{HELPER_SOCKET, LOCAL_LISTENER, Launch, PUBLIC_LISTENER, READY_LINE};
use crate::names;
use anyhow::{Context, Result};
use evoke_runtime::fdstore::FdStore;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// First delay before a server that died again is started; the very first restart has none.
const DELAY_FIRST: Duration = Duration::from_millis(50);
/// The longest delay.
const DELAY_MAX: Duration = Duration::from_secs(2);
/// A server that was ready for so long counts as healthy: the next restart has no delay.
const HEALTHY_AFTER: Duration = Duration::from_secs(10);
/// With no ready server for so long the listeners are closed: clients are refused instead of kept waiting.
const NO_SERVER_MAX: Duration = Duration::from_secs(60);
/// How long a server may take to stop its containers and end; then it is killed.
const STOP_MAX: Duration = Duration::from_secs(90);
/// How long the helper may take to give everything back.
const HELPER_STOP_MAX: Duration = Duration::from_secs(30);

/// Where the holder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// A server runs or is to be started.
    Serving,
    /// The server was told to stop; killed at the instant.
    Stopping(Instant),
}

/// A running server.
struct Server {
    child: Child,
    pidfd: OwnedFd,
    /// Readable when it says that it is ready; gone once it did.
    ready_pipe: Option<ChildStdout>,
    ready_at: Option<Instant>,
}

/// The holder's state.
pub(crate) struct Supervisor {
    program: std::fs::File,
    launch: Launch,
    store: FdStore,
    helper: Helper,
    signals: UnixStream,
    phase: Phase,
    /// Delay before the next start.
    delay: Duration,
    start_at: Option<Instant>,
    without_server_since: Instant,
    announced: bool,
}

/// What a turn of the loop saw.
#[derive(Default)]
struct Seen {
    signal: bool,
    server_ended: bool,
    store: bool,
    ready: bool,
    helper_ended: bool,
}

impl Supervisor {
    /// Ready to [`run`](Self::run). From here on SIGINT, SIGTERM and SIGHUP are handled.
    pub(crate) fn new(
        program: std::fs::File,
        launch: Launch,
        store: FdStore,
        helper: Helper,
    ) -> Result<Self> {
        let (signals, sender) = UnixStream::pair().context("making the signals' pipe")?;
        signals.set_nonblocking(true)?;
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::low_level::pipe::register(signal, sender.try_clone()?)
                .context("handling signals")?;
        }
        let now = Instant::now();
        Ok(Self {
            program,
            launch,
            store,
            helper,
            signals,
            phase: Phase::Serving,
            delay: Duration::ZERO,
            start_at: Some(now),
            without_server_since: now,
            announced: false,
        })
    }

    /// Supervises until told to stop; gives the exit code.
    pub(crate) fn run(mut self) -> Result<ExitCode> {
        let mut server: Option<Server> = None;
        loop {
            let now = Instant::now();
            if self.phase == Phase::Serving && self.start_at.is_some_and(|at| at <= now) {
                self.start_at = None;
                match self.start_server() {
                    Ok(started) => server = Some(started),
                    Err(error) => {
                        eprintln!("evoke: the server could not be started: {error:#}");
                        self.plan_restart(None);
                    }
                }
            }
            if self.phase != Phase::Serving && server.is_none() {
                return self.end(ExitCode::SUCCESS);
            }
            let seen = self.wait(server.as_ref(), now)?;
            if seen.signal {
                self.stop_or_kill(server.as_ref());
            }
            if seen.helper_ended {
                return self.helper_lost(server);
            }
            if seen.store {
                self.store.serve();
            }
            if let Some(running) = server.as_mut() {
                if seen.ready {
                    self.read_ready(running)?;
                }
                if seen.server_ended {
                    let code = running.child.wait().context("reaping the server")?;
                    let ready_at = running.ready_at;
                    server = None;
                    self.server_ended(code, ready_at);
                }
            }
            self.at_deadlines(server.as_ref());
        }
    }

    /// Blocks until something happens or a deadline is reached.
    fn wait(&mut self, server: Option<&Server>, now: Instant) -> Result<Seen> {
        let timeout = self.next_deadline(server).map(|at| {
            let left = at.saturating_duration_since(now);
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) }
        });
        let store = self.store.poll_fd();
        let mut sources: Vec<(u8, BorrowedFd<'_>, PollFlags)> =
            vec![(0, self.signals.as_fd(), PollFlags::IN), (1, self.helper.pidfd(), PollFlags::IN)];
        if let Some((socket, writable)) = store {
            let flags = if writable { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            sources.push((2, socket, flags));
        }
        if let Some(server) = server {
            sources.push((3, server.pidfd.as_fd(), PollFlags::IN));
            if let Some(pipe) = &server.ready_pipe {
                sources.push((4, pipe.as_fd(), PollFlags::IN));
            }
        }
        let mut fds: Vec<PollFd<'_>> =
            sources.iter().map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("waiting for events"),
        }
        let mut seen = Seen::default();
        for ((source, ..), fd) in sources.iter().zip(&fds) {
            let happened = !fd.revents().is_empty();
            match source {
                0 => seen.signal = happened,
                1 => seen.helper_ended = happened,
                2 => seen.store = happened,
                3 => seen.server_ended = happened,
                _ => seen.ready = happened,
            }
        }
        Ok(seen)
    }

    fn next_deadline(&self, server: Option<&Server>) -> Option<Instant> {
        let kill = match self.phase {
            Phase::Stopping(at) => Some(at),
            Phase::Serving => None,
        };
        let waiting = server.is_none_or(|s| s.ready_at.is_none());
        let listening = self.store.get(PUBLIC_LISTENER).is_some();
        let serving = self.phase == Phase::Serving;
        let close = (serving && waiting && listening).then(|| self.without_server_since + NO_SERVER_MAX);
        [kill, close, self.start_at].into_iter().flatten().min()
    }

    /// Starts a server: the store's socket as its stdin, the readiness pipe as its stdout.
    fn start_server(&mut self) -> Result<Server> {
        self.reopen_listeners()?;
        let helper_end = self.helper.attach().context("connecting the helper")?;
        self.store.insert(HELPER_SOCKET, helper_end);
        let socket = self.store.connect().context("connecting the descriptor store");
        // Sent once; were it kept, the helper would never see that this server has gone.
        self.store.remove(HELPER_SOCKET);
        let mut command = Command::new(format!("/proc/self/fd/{}", self.program.as_raw_fd()));
        command.arg0("evoke").arg("__server").env(names::EVOKE_LAUNCH, self.launch.to_variable()?);
        command.envs(names::MALLOC);
        command.stdin(socket?).stdout(Stdio::piped()).process_group(0).current_dir(&self.launch.data);
        let mut child = command.spawn().context("starting the server")?;
        self.launch.generation += 1;
        let pid = Pid::from_child(&child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).context("watching the server")?;
        let ready_pipe = child.stdout.take();
        Ok(Server { child, pidfd, ready_pipe, ready_at: None })
    }

    /// Opens again what was closed for want of a server.
    fn reopen_listeners(&mut self) -> Result<()> {
        if self.store.get(PUBLIC_LISTENER).is_none() {
            let address = self.launch.address.trim_start_matches("http://");
            let listener =
                std::net::TcpListener::bind(address).with_context(|| format!("listening on {address}"))?;
            self.store.insert(PUBLIC_LISTENER, listener.into());
        }
        Ok(())
    }

    fn read_ready(&mut self, server: &mut Server) -> Result<()> {
        let Some(pipe) = server.ready_pipe.as_mut() else { return Ok(()) };
        let mut line = [0u8; READY_LINE.len()];
        let read = pipe.read(&mut line).unwrap_or(0);
        server.ready_pipe = None;
        if &line[..read] != READY_LINE {
            return Ok(());
        }
        server.ready_at = Some(Instant::now());
        if self.announced {
            eprintln!(
                "evoke: the server is back after {} ms",
                self.without_server_since.elapsed().as_millis()
            );
            return Ok(());
        }
        self.announced = true;
        let mut out = std::io::stdout().lock();
        let line = format!(
            "evoke is ready at {} (data folder {})\n",
            self.launch.address,
            self.launch.data.display()
        );
        // Whoever started us may be gone; the server is up all the same.
        let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
        Ok(())
    }

    /// The server's process is gone.
    fn server_ended(&mut self, status: std::process::ExitStatus, ready_at: Option<Instant>) {
        self.store.disconnect();
        if ready_at.is_some() {
            self.without_server_since = Instant::now();
        }
        if self.phase != Phase::Serving {
            return;
        }
        if status.success() {
            // It was asked over the local socket to stop, and did.
            self.phase = Phase::Stopping(Instant::now());
            return;
        }
        if !self.announced {
            eprintln!("evoke: the server could not start ({status})");
        } else {
            eprintln!("evoke: the server ended ({status}); starting another");
        }
        self.plan_restart(ready_at);
        if !self.announced {
            // It has never been ready: there is nothing to keep alive, and whoever waits should know.
            self.phase = Phase::Stopping(Instant::now());
        }
    }

    fn plan_restart(&mut self, ready_at: Option<Instant>) {
        let healthy = ready_at.is_some_and(|at| at.elapsed() >= HEALTHY_AFTER);
        let delay = if healthy { Duration::ZERO } else { self.delay };
        self.start_at = Some(Instant::now() + delay);
        self.delay = if delay.is_zero() { DELAY_FIRST } else { (delay * 2).min(DELAY_MAX) };
    }

    /// First signal: stop in order. Second: at once.
    fn stop_or_kill(&mut self, server: Option<&Server>) {
        let mut drained = [0u8; 64];
        while matches!(self.signals.read(&mut drained), Ok(1..)) {}
        match (self.phase, server) {
            (Phase::Serving, Some(server)) => {
                eprintln!("evoke: stopping (again for at once)");
                self.phase = Phase::Stopping(Instant::now() + STOP_MAX);
                signal(server, Signal::TERM);
            }
            (Phase::Stopping(_), Some(server)) => {
                eprintln!("evoke: stopping at once");
                signal(server, Signal::KILL);
            }
            (_, None) => self.phase = Phase::Stopping(Instant::now()),
        }
    }

    fn at_deadlines(&mut self, server: Option<&Server>) {
        let now = Instant::now();
        if let (Phase::Stopping(at), Some(server)) = (self.phase, server) {
            if at <= now {
                eprintln!("evoke: the server did not stop within {} s; killing it", STOP_MAX.as_secs());
                signal(server, Signal::KILL);
                self.phase = Phase::Stopping(now + STOP_MAX);
            }
        }
        let waiting = server.is_none_or(|s| s.ready_at.is_none());
        let overdue = now.saturating_duration_since(self.without_server_since) >= NO_SERVER_MAX;
        if waiting && overdue && self.phase == Phase::Serving && self.store.remove(PUBLIC_LISTENER).is_some()
        {
            eprintln!(
                "evoke: no server for {} s; clients are refused until one is up",
                NO_SERVER_MAX.as_secs()
            );
        }
    }

    /// Without the helper nothing can be run or given back; the next start sweeps what is left.
    fn helper_lost(self, server: Option<Server>) -> Result<ExitCode> {
        if self.phase == Phase::Serving {
            eprintln!(
                "evoke: the privileged helper ended; stopping. The next `evoke up` cleans up what is left"
            );
        }
        if let Some(mut server) = server {
            signal(&server, Signal::KILL);
            server.child.wait().context("reaping the server")?;
        }
        Ok(ExitCode::FAILURE)
    }

    /// After the server: the local socket, then the helper, which gives back what is left.
    fn end(mut self, code: ExitCode) -> Result<ExitCode> {
        let failed = !self.announced;
        self.store.remove(LOCAL_LISTENER);
        // Best effort: a stale socket is harmless, the next start replaces it.
        let _ = std::fs::remove_file(self.launch.data.join("evoke.sock"));
        drop(self.store);
        self.helper.stop(HELPER_STOP_MAX)?;
        Ok(if failed { ExitCode::FAILURE } else { code })
    }
}

/// A server that has just ended needs no signal.
fn signal(server: &Server, signal: Signal) {
    match pidfd_send_signal(&server.pidfd, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => eprintln!("evoke: the server could not be signalled: {error}"),
    }
}
