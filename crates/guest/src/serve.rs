//! The guest's life: its first message, then the loop that answers requests and reaps what ends.

use crate::packet::{self, Packet};
use crate::root::{self, SetupFds};
use crate::seccomp::Filter;
use crate::step::{Step, StepError, invalid};
use crate::wire::{Event, Exit, FromGuest, ProcId, ProcStatus, Reply, Request, Setup, Spawn, ToGuest, Way};
use crate::{CONTROL_FD, fork, listeners, process, unpack};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// Processes remembered after they ended.
const REMEMBERED_MAX: usize = 1024;
/// Processes running at once that were started by request.
const RUNNING_MAX: usize = 1024;
/// Messages that may wait for a server that does not read. Beyond it requests are no longer taken, and exits
/// are told by [`Request::Status`] alone.
const OUTGOING_MAX: usize = 1024;
/// Requests taken before children are reaped again.
const REQUESTS_PER_TURN: usize = 64;

/// Runs the program; returns its exit code.
pub fn run() -> i32 {
    // Its memory, descriptors and executable are nobody's business inside the container.
    // SAFETY: changes one attribute of this process.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) };
    let Ok(control) = process::take_descriptor(CONTROL_FD) else {
        eprintln!("evoke-guest is the init of Evoke's containers and is started by Evoke alone.");
        return 2;
    };
    match first_message(&control) {
        Ok(()) => 0,
        Err(error) => {
            let errno = error.cause.raw_os_error();
            let failed = FromGuest::Failed { step: error.step, detail: error.cause.to_string(), errno };
            // If nobody listens, the exit code says the same.
            let _ = tell(&control, &failed, &[]);
            1
        }
    }
}

fn first_message(control: &OwnedFd) -> Result<(), StepError> {
    let Some(Packet { body, fds }) = packet::recv(control.as_fd(), false).step("waiting for orders")? else {
        return Ok(());
    };
    match serde_json::from_slice(&body).step("reading the orders")? {
        ToGuest::Setup(setup) => serve_container(control, &setup, fds),
        ToGuest::Unpack => {
            root::become_root()?;
            // A one-shot serves its helper alone and must not outlive it; changing the user cleared this.
            // SAFETY: changes one attribute of this process.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            let [tree, archive] = <[OwnedFd; 2]>::try_from(fds)
                .map_err(|_| invalid("two descriptors"))
                .step("reading the orders")?;
            let stats = unpack::unpack(tree, archive)?;
            tell(control, &FromGuest::Unpacked(stats), &[]).step("reporting")
        }
        ToGuest::Request { .. } => Err(invalid("a request before the setup")).step("reading the orders"),
    }
}

fn tell(control: &OwnedFd, message: &FromGuest, fds: &[std::os::fd::BorrowedFd<'_>]) -> io::Result<()> {
    packet::send(control.as_fd(), &serde_json::to_vec(message)?, fds, false)
}

#[allow(clippy::disallowed_methods)] // The guest's one clock: its own deadlines and timings.
fn now() -> Instant {
    Instant::now()
}

fn serve_container(control: &OwnedFd, setup: &Setup, fds: Vec<OwnedFd>) -> Result<(), StepError> {
    let began = now();
    let mut fds = SetupFds::sort(setup, fds)?;
    let groups = std::mem::take(&mut fds.groups);
    root::become_root()?;
    // Changing the user clears it.
    // SAFETY: changes one attribute of this process.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) };
    let children = watch_children().step("watching children")?;
    root::assemble(setup, fds)?;
    let listeners = setup.listeners.iter().map(listeners::open).collect::<Result<Vec<_>, _>>()?;
    let setup_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    let borrowed: Vec<_> = listeners.iter().map(AsFd::as_fd).collect();
    tell(control, &FromGuest::Ready { setup_us }, &borrowed).step("reporting")?;
    drop(listeners);
    let mut init = Init {
        processes: BTreeMap::new(),
        by_pid: BTreeMap::new(),
        next: 1,
        outgoing: VecDeque::new(),
        deadline: None,
        filter: Filter::new(),
        groups,
        nests: setup.nests,
        grace: Duration::from_millis(setup.grace_ms),
    };
    init.serve(control, &children).step("serving")
}

/// A descriptor that is readable when a child ended.
fn watch_children() -> io::Result<OwnedFd> {
    // SAFETY: a signal set of this function's own; the descriptor that comes back is owned by nobody else.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

struct Init {
    processes: BTreeMap<ProcId, ProcStatus>,
    by_pid: BTreeMap<i32, ProcId>,
    next: ProcId,
    outgoing: VecDeque<Vec<u8>>,
    /// When everything is killed, once the end was asked for.
    deadline: Option<Instant>,
    filter: Filter,
    /// The files of the container's control groups.
    groups: Vec<OwnedFd>,
    /// Whether other containers live in this one's namespaces, and would end with it.
    nests: bool,
    grace: Duration,
}

impl Init {
    /// Returns when the container is to end; the kernel then ends whatever still runs in it.
    fn serve(&mut self, control: &OwnedFd, children: &OwnedFd) -> io::Result<()> {
        let mut connected = true;
        loop {
            let idle = self.by_pid.is_empty() && !self.nests;
            if self.deadline.is_some_and(|deadline| idle || now() >= deadline) {
                // What it still has to tell, if anybody takes it.
                let _ = self.flush(control);
                return Ok(());
            }
            self.wait(control, children, connected)?;
            drain_signals(children);
            self.reap();
            if !connected {
                continue;
            }
            if !self.exchange(control)? {
                connected = false;
                self.outgoing.clear();
                self.end(self.grace);
            }
        }
    }

    fn wait(&self, control: &OwnedFd, children: &OwnedFd, connected: bool) -> io::Result<()> {
        let mut wanted = if self.outgoing.len() < OUTGOING_MAX { PollFlags::IN } else { PollFlags::empty() };
        if !self.outgoing.is_empty() {
            wanted |= PollFlags::OUT;
        }
        let mut fds = vec![PollFd::new(children, PollFlags::IN)];
        if connected {
            fds.push(PollFd::new(control, wanted));
        }
        let timeout = self.deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(now());
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) }
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends and receives what can be without waiting. `false` once nobody holds the other end.
    fn exchange(&mut self, control: &OwnedFd) -> io::Result<bool> {
        if !self.flush(control)? {
            return Ok(false);
        }
        for _ in 0..REQUESTS_PER_TURN {
            if self.outgoing.len() >= OUTGOING_MAX {
                break;
            }
            match packet::recv(control.as_fd(), true) {
                Ok(Some(packet)) => self.handle(packet),
                Ok(None) => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // One bad packet of a server does not end its container.
                Err(error) if error.kind() == io::ErrorKind::InvalidData => continue,
                Err(error) => return Err(error),
            }
        }
        self.flush(control)
    }

    fn flush(&mut self, control: &OwnedFd) -> io::Result<bool> {
        while let Some(body) = self.outgoing.front() {
            match packet::send(control.as_fd(), body, &[], true) {
                Ok(()) => drop(self.outgoing.pop_front()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn say(&mut self, message: &FromGuest) {
        // These messages are plain data whose serialisation cannot fail.
        if let Ok(body) = serde_json::to_vec(message) {
            self.outgoing.push_back(body);
        }
    }

    fn handle(&mut self, packet: Packet) {
        let Ok(ToGuest::Request { id, request }) = serde_json::from_slice(&packet.body) else { return };
        let result = match request {
            Request::Spawn(spawn) => self.spawn(&spawn, packet.fds),
            Request::Signal { proc, signal, group } => self.signal(proc, signal, group),
            Request::ReplaceVolume { volume } => replace_volume(&volume, &packet.fds),
            Request::Status => Ok(Reply::Status { processes: self.processes.values().cloned().collect() }),
            Request::Shutdown { grace_ms } => {
                self.end(Duration::from_millis(grace_ms));
                Ok(Reply::Done)
            }
        };
        self.say(&FromGuest::Reply { id, result });
    }

    fn spawn(&mut self, spawn: &Spawn, mut fds: Vec<OwnedFd>) -> Result<Reply, String> {
        if self.deadline.is_some() {
            return Err("the container is ending".to_owned());
        }
        if self.by_pid.len() >= RUNNING_MAX {
            return Err(format!("{RUNNING_MAX} processes run already"));
        }
        let line = if spawn.way == Way::Fork { fds.pop() } else { None };
        let stdio =
            <[OwnedFd; 3]>::try_from(fds).map_err(|_| "a program needs three descriptors".to_owned())?;
        let (forked, not_forked) = match line.map(|line| fork::adopt(spawn, line, &self.groups, &stdio)) {
            Some(Ok(pid)) => (Some(pid), None),
            Some(Err(why)) => {
                self.clear_away();
                (None, Some(why))
            }
            None => (None, None),
        };
        let pid = match forked {
            Some(pid) => pid,
            None if spawn.way == Way::Template => process::spawn(spawn, stdio, &Filter::of_templates())?,
            None => process::spawn(spawn, stdio, &self.filter)?,
        };
        let proc = self.next;
        self.next += 1;
        self.processes.insert(proc, ProcStatus { proc, name: spawn.name.clone(), pid, exit: None });
        self.by_pid.insert(pid, proc);
        Ok(Reply::Spawned { proc, pid, not_forked })
    }

    /// Ends what a fork that failed may have left. What else runs in the container is left alone.
    fn clear_away(&self) {
        if self.by_pid.is_empty() {
            // Everything in this namespace but its init. Nobody there is as good.
            let _ = kill(-1, libc::SIGKILL);
        }
    }

    fn signal(&self, proc: ProcId, signal: i32, group: bool) -> Result<Reply, String> {
        let status = self.processes.get(&proc).ok_or_else(|| format!("there is no process {proc}"))?;
        if status.exit.is_some() {
            return Ok(Reply::Done);
        }
        // Not reaped yet, so the number is still this process's; it leads its own group.
        match kill(if group { -status.pid } else { status.pid }, signal) {
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) => Err(error.to_string()),
            _ => Ok(Reply::Done),
        }
    }

    /// Asks the programs to end and sets the time at which they have no choice.
    fn end(&mut self, grace: Duration) {
        let deadline = now() + grace;
        if self.deadline.is_some_and(|earlier| earlier <= deadline) {
            return;
        }
        if self.deadline.is_none() {
            for pid in self.by_pid.keys() {
                // One that has ended meanwhile is reaped in the next turn.
                let _ = kill(*pid, libc::SIGINT);
            }
        }
        self.deadline = Some(deadline);
    }

    fn reap(&mut self) {
        loop {
            let mut status = 0;
            // SAFETY: writes one integer of this function's own.
            let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
            if pid <= 0 {
                return;
            }
            // Others are orphans of the container's that the kernel gave to its init.
            let Some(proc) = self.by_pid.remove(&pid) else { continue };
            let exit = if libc::WIFSIGNALED(status) {
                Exit { code: None, signal: Some(libc::WTERMSIG(status)) }
            } else {
                Exit { code: Some(libc::WEXITSTATUS(status)), signal: None }
            };
            if let Some(known) = self.processes.get_mut(&proc) {
                known.exit = Some(exit);
            }
            self.forget_oldest();
            if self.outgoing.len() < OUTGOING_MAX {
                self.say(&FromGuest::Event(Event::Exited { proc, exit }));
            }
        }
    }

    fn forget_oldest(&mut self) {
        while self.processes.len() > REMEMBERED_MAX + self.by_pid.len() {
            let Some(proc) = self.processes.values().find(|p| p.exit.is_some()).map(|p| p.proc) else {
                return;
            };
            self.processes.remove(&proc);
        }
    }
}

fn replace_volume(volume: &str, fds: &[OwnedFd]) -> Result<Reply, String> {
    let plain = !volume.is_empty() && volume.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let [mount] = fds else { return Err("a volume needs one descriptor".to_owned()) };
    if !plain {
        return Err("not a volume's id".to_owned());
    }
    match crate::volumes::replace(volume, mount.as_fd()) {
        Ok(true) => Ok(Reply::Done),
        Ok(false) => Ok(Reply::VolumeBusy),
        Err(error) => Err(format!("showing the volume {volume} anew: {error}")),
    }
}

fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: a plain system call.
    if unsafe { libc::kill(pid, signal) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn drain_signals(children: &OwnedFd) {
    let mut buffer = [0u8; size_of::<libc::signalfd_siginfo>() * 8];
    loop {
        // SAFETY: writes at most the stated bytes into a buffer of this function's own.
        let read = unsafe { libc::read(children.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
        if read <= 0 {
            return;
        }
    }
}
