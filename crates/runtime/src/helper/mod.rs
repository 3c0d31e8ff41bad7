//! The privileged helper: the only process that keeps root.
//!
//! It is small, has one thread, and waits for nothing but its poll: what takes long runs in children, and what a
//! container's init does is waited for by whoever asked. Requests come from servers that have no privileges and
//! may be in the hands of an attacker, so each is checked by [`validate`], paths are resolved by [`folders`], and
//! everything else is chosen here: ids, addresses, names of groups and interfaces.
//!
//! What one request can bring about at worst is a container with the trees that the service user may see anyway.

mod cgroup;
mod config;
mod container;
mod devices;
mod disk;
mod folders;
mod ids;
mod jobs;
mod layers;
mod nest;
mod net;
mod probe;
mod record;
pub(crate) mod request;
mod rootfs;
mod served;
mod start;
mod stubs;
mod sys;
mod validate;
mod volumes;

pub use config::{GuestBinary, HelperConfig};

use crate::{RuntimeError, fds};
use cgroup::Cgroups;
use container::Container;
use folders::Folders;
use ids::Ids;
use jobs::{Asker, Jobs, Outcome};
use layers::Unpacking;
use net::Networks;
use request::{Answer, Asked, Reply, Request};
use rootfs::Stage;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, Mode, OFlags};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use sys::Step;

/// Servers connected at once: the current one, and former ones whose end has not been noticed.
const CLIENTS_MAX: usize = 16;
/// Answers that may wait for one server; beyond it the server is dropped.
const OUTGOING_MAX: usize = 1024;
/// Requests of one server that are served before others get their turn.
const REQUESTS_PER_TURN: usize = 16;
/// How long containers may take to end by themselves once the holder is gone.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a failed refill of the network pool is not tried again.
const REFILL_PAUSE: Duration = Duration::from_secs(5);

/// The helper's state.
struct Helper {
    folders: Folders,
    ids: Ids,
    cgroups: Cgroups,
    gpus: crate::gpus::GpuConfig,
    networks: Networks,
    stage: Stage,
    guest: OwnedFd,
    null: OwnedFd,
    containers: BTreeMap<String, Container>,
    unpacking: Vec<Unpacking>,
    jobs: Jobs,
    clients: BTreeMap<u64, Client>,
    /// Numbers for clients, folders and the like.
    sequence: u64,
    refill_after: Instant,
    /// Set once the holder is gone: when the last containers are ended.
    drain_until: Option<Instant>,
    /// Whether that time has come and passed.
    drained_once: bool,
    /// Held for as long as this helper lives.
    _lock: OwnedFd,
}

struct Client {
    socket: OwnedFd,
    outgoing: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
}

/// The helper's one clock.
#[allow(clippy::disallowed_methods)]
fn now() -> Instant {
    Instant::now()
}

/// Runs the helper until `control` closes; never returns. Must be called as root from a process with a single
/// thread. Each packet on `control` brings one descriptor: the helper's end of a fresh socket to a server.
///
/// When `control` closes, containers get the time to end by themselves, for their control sockets close as
/// well; then everything is taken away.
pub fn main(control: OwnedFd, config: HelperConfig) -> ! {
    let code = match Helper::open(&config).and_then(|helper| helper.run(&control)) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("evoke: the privileged helper cannot work: {error}");
            1
        }
    };
    std::process::exit(code)
}

/// A short name for an installation, the same at every start: of its groups, its bridge, its rules.
fn tag(data: &Path) -> String {
    let hash = data
        .as_os_str()
        .as_bytes()
        .iter()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    format!("{hash:08x}")
}

impl Helper {
    fn open(config: &HelperConfig) -> Result<Self, RuntimeError> {
        if !rustix::process::geteuid().is_root() {
            return Err(RuntimeError::Refused("it has to be started as root".to_owned()));
        }
        sys::ignore_signals();
        rootfs::set_umask();
        rustix::process::chdir("/").step("entering /")?;
        // First of all, since trees are cloned from this namespace alone.
        sys::own_mount_namespace().step("making the helper's mount namespace")?;
        let folders = Folders::open(config)?;
        let lock = lock(folders.containers.as_fd())?;
        let guest = match &config.guest {
            GuestBinary::Embedded(bytes) => sys::sealed_program(bytes),
            GuestBinary::File(path) => std::fs::read(path).and_then(|bytes| sys::sealed_program(&bytes)),
        };
        let guest = guest.step("preparing the containers' init")?;
        let tag = tag(&config.data);
        let former = read_parents(folders.containers.as_fd());
        let cgroups = Cgroups::open(&tag, former)?;
        write_parents(folders.containers.as_fd(), &cgroups.parents()).step("noting the control groups")?;
        let networks = Networks::open(&tag, config.network)?;
        let ids = Ids::new(folders.path());
        let mut helper = Self {
            stage: Stage::open(folders.containers.as_fd())?,
            folders,
            ids,
            cgroups,
            networks,
            gpus: config.gpus.clone(),
            guest,
            null: folders::open_null()?,
            containers: BTreeMap::new(),
            unpacking: Vec::new(),
            jobs: Jobs::default(),
            clients: BTreeMap::new(),
            sequence: 0,
            refill_after: now(),
            drain_until: None,
            drained_once: false,
            _lock: lock,
        };
        helper.adopt()?;
        helper.remove_leftovers()?;
        Ok(helper)
    }

    fn run(mut self, control: &OwnedFd) -> Result<(), RuntimeError> {
        loop {
            if self.drain() {
                self.close();
                return Ok(());
            }
            for (asker, outcome) in self.jobs.start() {
                self.answer(asker, outcome, Vec::new());
            }
            let ready = self.wait(control)?;
            self.handle(control, &ready);
            self.advance_all();
            if ready.is_empty() {
                self.refill();
            }
        }
    }

    /// Waits until something is to be done; says what.
    fn wait(&self, control: &OwnedFd) -> Result<Vec<Ready>, RuntimeError> {
        let mut sources = Vec::new();
        let mut fds = Vec::new();
        if self.drain_until.is_none() {
            sources.push(Ready::Control);
            fds.push(PollFd::new(control, PollFlags::IN));
        }
        for (number, client) in &self.clients {
            let wanted =
                if client.outgoing.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
            sources.push(Ready::Client(*number));
            fds.push(PollFd::new(&client.socket, wanted));
        }
        for (id, container) in &self.containers {
            if let Some(process) = container.process.as_ref().filter(|process| !process.ended) {
                sources.push(Ready::Container(id.clone()));
                fds.push(PollFd::new(&process.pidfd, PollFlags::IN));
            }
        }
        for (index, unpacking) in self.unpacking.iter().enumerate() {
            sources.push(Ready::Unpacked(index));
            fds.push(PollFd::new(&unpacking.control, PollFlags::IN));
        }
        for (index, job) in self.jobs.poll_fds().enumerate() {
            sources.push(Ready::Job(index));
            fds.push(PollFd::from_borrowed_fd(job, PollFlags::IN));
        }
        match poll(&mut fds, self.timeout().as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(Vec::new()),
            Err(error) => return Err(RuntimeError::step("waiting", error)),
        }
        let ready = sources.into_iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty());
        Ok(ready.map(|(source, _)| source).collect())
    }

    fn timeout(&self) -> Option<Timespec> {
        let refill = if self.wants_refill() { Some(self.refill_after) } else { None };
        let next = [self.next_advance(), self.drain_until, refill].into_iter().flatten().min()?;
        let left = next.saturating_duration_since(now());
        Some(Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) })
    }

    fn handle(&mut self, control: &OwnedFd, ready: &[Ready]) {
        // From the highest index down, so that removing one leaves the others in place.
        for source in ready.iter().rev() {
            match source {
                Ready::Control => self.accept(control),
                Ready::Client(number) => self.serve(*number),
                Ready::Container(id) => self.container_ended(id),
                Ready::Unpacked(index) => self.finish_unpack(*index),
                Ready::Job(index) => {
                    let (asker, outcome) = self.jobs.finish(*index);
                    self.answer(asker, outcome, Vec::new());
                }
            }
        }
    }

    /// Takes a new server's socket, or notices that the holder is gone.
    fn accept(&mut self, control: &OwnedFd) {
        match fds::recv(control.as_fd(), true) {
            Ok(Some(packet)) => {
                let Ok([socket]) = <[OwnedFd; 1]>::try_from(packet.fds) else { return };
                while self.clients.len() >= CLIENTS_MAX {
                    // The oldest server is surely gone.
                    self.clients.pop_first();
                }
                self.sequence += 1;
                self.clients.insert(self.sequence, Client { socket, outgoing: VecDeque::new() });
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
            Ok(None) | Err(_) => self.drain_until = Some(now() + DRAIN_TIMEOUT),
        }
    }

    fn serve(&mut self, number: u64) {
        for _ in 0..REQUESTS_PER_TURN {
            let Some(client) = self.clients.get(&number) else { return };
            match fds::recv(client.socket.as_fd(), true) {
                Ok(Some(packet)) => {
                    let Ok(asked) = serde_json::from_slice::<Asked>(&packet.body) else {
                        self.clients.remove(&number);
                        return;
                    };
                    self.obey(number, asked, packet.fds);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // A server that is gone, or that breaks the framing.
                Ok(None) | Err(_) => {
                    self.clients.remove(&number);
                    return;
                }
            }
        }
        self.flush(number);
    }

    fn obey(&mut self, client: u64, Asked { id, request }: Asked, mut fds: Vec<OwnedFd>) {
        let asker = Some((client, id));
        let outcome = match request {
            Request::Start(spec) => {
                let started = if self.drain_until.is_some() { Err(ending()) } else { self.start(&spec) };
                match started {
                    Ok((reply, fds)) => return self.answer(asker, Ok(reply), fds),
                    Err(error) => Err(error),
                }
            }
            Request::Destroy { id } => validate::id(&id).map(|()| {
                self.begin_destroy(&id, asker);
                None
            }),
            Request::List => Ok(Some(Reply::Ids(self.list()))),
            Request::Usage { id } => match self.containers.get(&id) {
                Some(_) => Ok(Some(Reply::Usage(self.cgroups.usage(&id)))),
                None => Err(RuntimeError::NotFound(format!("container {}", id.escape_debug()))),
            },
            Request::CommitLayer { id, layer } => self.begin_commit(asker, &id, &layer).map(|()| None),
            Request::UnpackLayer { layer, lower } => match (fds.pop(), fds.is_empty()) {
                (Some(archive), true) => self.begin_unpack(asker, &layer, &lower, archive).map(|()| None),
                _ => Err(RuntimeError::Refused("unpacking needs one descriptor".to_owned())),
            },
            Request::RemoveTree { path } => self.begin_remove(asker, &path).map(|()| None),
            Request::MountVolume { id, volume } => match self.mount_volume(&id, &volume) {
                Ok(mount) => return self.answer(asker, Ok(Reply::Done), vec![mount]),
                Err(error) => Err(error),
            },
            Request::CollectVolume { id, volume, slot } => {
                self.begin_collect(asker, (&id, &volume, slot), fds).map(|()| None)
            }
            Request::DropVolume { id, volume, slot } => self.begin_drop(&id, &volume, slot).map(Some),
            Request::Probe => Ok(Some(Reply::Findings(self.probe()))),
        };
        match outcome {
            // Answered when it is done.
            Ok(None) => {}
            Ok(Some(reply)) => self.answer(asker, Ok(reply), Vec::new()),
            Err(error) => self.answer(asker, Err(error), Vec::new()),
        }
    }

    fn list(&self) -> Vec<String> {
        let mut ids: BTreeSet<_> = self.containers.keys().cloned().collect();
        ids.extend(self.cgroups.list());
        ids.into_iter().collect()
    }

    /// Sends an answer, as far as its asker still takes it. Descriptors that cannot be delivered are closed,
    /// which ends the container they belong to.
    fn answer(&mut self, asker: Asker, result: Outcome, fds: Vec<OwnedFd>) {
        let Some((number, id)) = asker else { return };
        let Some(client) = self.clients.get_mut(&number) else { return };
        let Ok(body) = serde_json::to_vec(&Answer { id, result }) else { return };
        if client.outgoing.len() >= OUTGOING_MAX {
            self.clients.remove(&number);
            return;
        }
        client.outgoing.push_back((body, fds));
        self.flush(number);
    }

    fn flush(&mut self, number: u64) {
        let Some(client) = self.clients.get_mut(&number) else { return };
        while let Some((body, fds)) = client.outgoing.front() {
            let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            match fds::send(client.socket.as_fd(), body, &borrowed, true) {
                Ok(()) => drop(client.outgoing.pop_front()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.clients.remove(&number);
                    return;
                }
            }
        }
    }

    /// A container's processes have ended. It keeps everything else until it is destroyed, for what it wrote
    /// may be wanted.
    fn container_ended(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if container.process.as_mut().is_some_and(container::Process::look) {
            if let Some(ending) = &mut container.ending {
                ending.hurry();
            }
        }
    }

    fn wants_refill(&self) -> bool {
        self.drain_until.is_none() && (self.networks.wants_refill() || self.wanting_nest().is_some())
    }

    fn refill(&mut self) {
        if !self.wants_refill() || now() < self.refill_after {
            return;
        }
        let refilled = match self.wanting_nest() {
            Some(id) => self.refill_nest(&id),
            None => self.networks.refill(),
        };
        if refilled.is_err() {
            self.refill_after = now() + REFILL_PAUSE;
        }
    }

    /// Once the holder is gone: whether everything has ended. After the bound, what has not is destroyed.
    fn drain(&mut self) -> bool {
        let Some(until) = self.drain_until else { return false };
        if now() >= until {
            self.drain_until = Some(now() + DRAIN_TIMEOUT);
            let given_up = self.drained_once;
            self.drained_once = true;
            if given_up {
                return true;
            }
        }
        let ended =
            |container: &mut Container| container.process.as_mut().is_none_or(container::Process::look);
        let force = self.drained_once;
        let around = self.inhabited();
        let ids: Vec<_> = self
            .containers
            .iter_mut()
            .filter_map(|(id, container)| {
                // What others are made in waits for them, and then for nothing.
                let is_left = container.room.is_some() && !around.contains(id);
                let is_over = force || is_left || ended(container);
                (container.ending.is_none() && is_over).then(|| id.clone())
            })
            .collect();
        for id in ids {
            self.begin_destroy(&id, None);
        }
        self.containers.is_empty() && self.unpacking.is_empty() && self.jobs.is_idle()
    }

    /// Takes away what is left of this installation on the machine.
    fn close(&mut self) {
        self.networks.close();
        self.cgroups.remove_parents();
    }
}

fn ending() -> RuntimeError {
    RuntimeError::Refused("the helper is ending".to_owned())
}

/// What a poll found.
#[derive(Debug)]
enum Ready {
    Control,
    Client(u64),
    Container(String),
    Unpacked(usize),
    Job(usize),
}

/// Waits until no other helper works on the data folder; one that is ending does so within its bound.
fn lock(containers: BorrowedFd<'_>) -> Result<OwnedFd, RuntimeError> {
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(containers, ".lock", flags, Mode::from_raw_mode(0o600))
        .step("opening the lock")?;
    loop {
        match rustix::fs::flock(&file, FlockOperation::LockExclusive) {
            Err(rustix::io::Errno::INTR) => continue,
            other => return other.step("locking the data folder").map(|()| file),
        }
    }
}

/// Where earlier helpers' parent groups are noted.
const PARENTS: &str = ".cgroups";
/// Bytes of that note at most.
const PARENTS_MAX: u64 = 64 * 1024;

fn read_parents(containers: BorrowedFd<'_>) -> BTreeSet<PathBuf> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // Absent at the first start; a damaged one only makes leftovers of another group invisible.
    let Ok(file) = rustix::fs::openat(containers, PARENTS, flags, Mode::empty()) else {
        return BTreeSet::new();
    };
    let limited = io::Read::take(std::fs::File::from(file), PARENTS_MAX);
    let all: BTreeSet<PathBuf> = serde_json::from_reader(limited).unwrap_or_default();
    all.into_iter().filter(|parent| parent.is_dir()).collect()
}

fn write_parents(containers: BorrowedFd<'_>, parents: &BTreeSet<PathBuf>) -> io::Result<()> {
    let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(containers, PARENTS, flags, Mode::from_raw_mode(0o600))?;
    Ok(serde_json::to_writer(std::fs::File::from(file), parents)?)
}
