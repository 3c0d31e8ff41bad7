//! What the helper knows of a container, and the way back: destroying one gives back all it held, in steps that
//! can be repeated, whatever was made and whoever made it.

use super::folders;
use super::ids::Range;
use super::jobs::Asker;
use super::nest::Room;
use super::record::Record;
use super::request::Reply;
use super::sys::{self, Step};
use super::{Helper, now};
use crate::gpus::Edits;
use crate::{Ended, RuntimeError, Usage};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long the kernel may take to end a container's processes and to let go of its groups.
const END_TIMEOUT: Duration = Duration::from_secs(20);
/// The kernel announces a group's last exit in version 2 only, so removal is tried again after this, and then
/// after ever longer, up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(1);
const RETRY_MAX: Duration = Duration::from_millis(50);
/// Requests that may wait for the end of one container.
const WAITERS_MAX: usize = 64;

/// One container. The default is one of which nothing is known or made yet.
#[derive(Debug, Default)]
pub(super) struct Container {
    pub(super) range: Option<Range>,
    pub(super) address: Option<u32>,
    /// Where its volumes' links are, which are no part of a layer made of it.
    pub(super) links: Vec<String>,
    /// Stubs of mounts, likewise.
    pub(super) stubs: Vec<String>,
    /// The names of the GPUs that are its own.
    pub(super) gpus: Vec<String>,
    /// Their locks, which keep other installations from them.
    pub(super) gpu_locks: Vec<OwnedFd>,
    /// The project that counts what it writes, where that is bounded.
    pub(super) project: Option<u32>,
    /// What its root has of them.
    pub(super) devices: Edits,
    /// What there is for containers in its namespaces, where there may be some.
    pub(super) room: Option<Room>,
    /// The container in whose namespaces it is.
    pub(super) around: Option<String>,
    pub(super) process: Option<Process>,
    pub(super) ending: Option<Ending>,
}

/// The init of a container.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
    pub(super) ended: bool,
}

/// A container that is being destroyed.
#[derive(Debug)]
pub(super) struct Ending {
    waiters: Vec<(u64, u64)>,
    deadline: Instant,
    retry_at: Instant,
    retry: Duration,
    usage: Option<Usage>,
}

impl Ending {
    /// Lets the next look happen now.
    pub(super) fn hurry(&mut self) {
        self.retry_at = now();
    }
}

impl Process {
    /// Looks whether it has ended, and reaps it if it is a child of ours.
    pub(super) fn look(&mut self) -> bool {
        if !self.ended {
            let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
            let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
            if poll(&mut fds, Some(&at_once)).is_ok_and(|ready| ready > 0) {
                // A container of an earlier helper has another parent by now, which reaps it.
                sys::reap(self.pid);
                self.ended = true;
            }
        }
        self.ended
    }
}

impl Helper {
    /// Learns of the containers that earlier helpers left, from their folders and groups.
    pub(super) fn adopt(&mut self) -> Result<(), RuntimeError> {
        let names = folders::plain_names(self.folders.containers.as_fd()).step("listing the containers")?;
        for id in names.into_iter().chain(self.cgroups.list()) {
            self.adopt_one(&id);
        }
        Ok(())
    }

    fn adopt_one(&mut self, id: &str) {
        if self.containers.contains_key(id) {
            return;
        }
        let mut container = Container::default();
        // A folder without a record is of a container that never had a process.
        if let Some(record) = self.read_record(id) {
            self.ids.adopt(record.range());
            container.range = Some(record.range());
            // Another installation cannot have them while this one's container lives, unless it took them in the
            // moment in which there was no helper; then that one's lock stays its own.
            container.gpu_locks = super::devices::lock(&record.gpus).unwrap_or_default();
            container.gpus = record.gpus;
            container.project = record.project;
            container.devices = record.devices;
            if let Some(number) = record.address {
                self.networks.adopt(number);
                container.address = Some(number);
            }
            let found = record.process.and_then(|process| process.open());
            container.process = found.map(|(pid, pidfd)| Process { pid, pidfd, ended: false });
        }
        self.containers.insert(id.to_owned(), container);
    }

    fn read_record(&self, id: &str) -> Option<Record> {
        use rustix::fs::{Mode, OFlags};
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = rustix::fs::openat(&self.folders.containers, id, flags, Mode::empty()).ok()?;
        Record::read(folder.as_fd()).ok().flatten()
    }

    /// Whether anything of the id exists on this machine.
    fn is_known(&mut self, id: &str) -> bool {
        let left = folders::exists(self.folders.containers.as_fd(), id) || self.cgroups.list().contains(id);
        if left {
            self.adopt_one(id);
        }
        self.containers.contains_key(id)
    }

    /// Begins to destroy a container; `asker` is answered when it is gone. Repeating it adds an asker.
    pub(super) fn begin_destroy(&mut self, id: &str, asker: Asker) {
        if !self.is_known(id) {
            self.answer(asker, Ok(Reply::Ended(Ended::default())), Vec::new());
            return;
        }
        let at = now();
        let Some(container) = self.containers.get_mut(id) else { return };
        let ending = container.ending.get_or_insert_with(|| Ending {
            waiters: Vec::new(),
            deadline: at + END_TIMEOUT,
            retry_at: at,
            retry: RETRY_MIN,
            usage: None,
        });
        if ending.waiters.len() < WAITERS_MAX {
            ending.waiters.extend(asker);
        } else {
            self.answer(
                asker,
                Err(RuntimeError::Exhausted("too many wait for one container".to_owned())),
                Vec::new(),
            );
            return;
        }
        ending.retry_at = at;
        if let Some(process) = self.containers.get(id).and_then(|container| container.process.as_ref()) {
            sys::kill(process.pidfd.as_fd());
        }
        self.cgroups.kill(id);
        self.advance(id);
    }

    /// Takes every container that is being destroyed as far as it gets now.
    pub(super) fn advance_all(&mut self) {
        let at = now();
        let due = |container: &Container| {
            let ending = container.ending.as_ref();
            ending.is_some_and(|ending| ending.retry_at <= at)
        };
        let ids: Vec<_> = self.containers.iter().filter(|(_, c)| due(c)).map(|(id, _)| id.clone()).collect();
        for id in ids {
            self.advance(&id);
        }
    }

    /// When [`Self::advance_all`] has something to do next.
    pub(super) fn next_advance(&self) -> Option<Instant> {
        self.containers.values().filter_map(|container| container.ending.as_ref()).map(|e| e.retry_at).min()
    }

    fn advance(&mut self, id: &str) {
        match self.try_remove(id) {
            Ok(None) => self.try_later(id),
            Ok(Some(usage)) => self.gone(id, usage),
            Err(error) => self.give_up(id, &error),
        }
    }

    /// Final usage once processes and groups are gone; `None` while they still end.
    fn try_remove(&mut self, id: &str) -> Result<Option<Usage>, RuntimeError> {
        let Some(container) = self.containers.get_mut(id) else { return Ok(None) };
        if let Some(process) = &mut container.process {
            if !process.look() {
                return Ok(None);
            }
        }
        let Some(ending) = &mut container.ending else { return Ok(None) };
        let usage = *ending.usage.get_or_insert_with(|| self.cgroups.usage(id));
        if self.cgroups.remove(id).step("removing control groups")? {
            return Ok(Some(usage));
        }
        self.cgroups.kill(id);
        Ok(None)
    }

    fn try_later(&mut self, id: &str) {
        let at = now();
        let Some(ending) = self.containers.get_mut(id).and_then(|c| c.ending.as_mut()) else { return };
        if at >= ending.deadline {
            let what = format!("ending the processes of container {id}");
            self.give_up(id, &RuntimeError::TimedOut(what));
            return;
        }
        ending.retry_at = at + ending.retry;
        ending.retry = (ending.retry * 2).min(RETRY_MAX);
    }

    fn give_up(&mut self, id: &str, error: &RuntimeError) {
        let ending = self.containers.get_mut(id).and_then(|container| container.ending.take());
        for waiter in ending.map(|ending| ending.waiters).unwrap_or_default() {
            self.answer(Some(waiter), Err(error.clone()), Vec::new());
        }
    }

    /// Nothing runs any more: gives back what is left and answers.
    fn gone(&mut self, id: &str, usage: Usage) {
        let discarded = self.folders.discard(self.folders.containers.as_fd(), id);
        match discarded {
            Ok(Some(name)) => self.empty_trash(name),
            Ok(None) => {}
            Err(error) => {
                let error = RuntimeError::step("discarding the container's folder", error);
                return self.give_up(id, &error);
            }
        }
        let Some(container) = self.containers.remove(id) else { return };
        if let Some(number) = container.address {
            self.networks.release(number);
        }
        if let Some(range) = container.range {
            self.release_range(container.around.as_deref(), range);
        }
        if let Some(room) = container.room {
            self.close_room(room);
        }
        if let Some(project) = container.project {
            super::disk::release(self.folders.trash.as_fd(), project);
        }
        for waiter in container.ending.map(|ending| ending.waiters).unwrap_or_default() {
            self.answer(Some(waiter), Ok(Reply::Ended(Ended { usage })), Vec::new());
        }
    }
}
