//! The containers of this machine, and the handle to each.

use crate::lifecycle::{Event, Stop};
use crate::output::Capture;
use crate::volumes::Volumes;
use evoke_core::{CallId, InputId, TaskId};
use evoke_proto::worker::Usage;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Messages that may wait for one container's task. Only stop requests repeat, and each waits for room.
const MAILBOX_MAX: usize = 32;
/// Longest time for which a result waits for its output to be taken over. A log store that takes longer is
/// in trouble, and then the result counts more.
pub(crate) const DRAIN_WAIT_MAX: Duration = Duration::from_secs(30);

/// The handle to one container.
pub(crate) struct Entry {
    pub task: TaskId,
    pub generation: u64,
    mailbox: mpsc::Sender<Event>,
    captures: OnceLock<[Capture; 2]>,
    address: OnceLock<Ipv4Addr>,
    hello: AtomicBool,
    ready: AtomicBool,
    usage: Mutex<Usage>,
    volumes: Mutex<Option<Arc<Volumes>>>,
}

impl Entry {
    /// A container, and what its task receives.
    pub(crate) fn new(task: TaskId, generation: u64, ready: bool) -> (Arc<Self>, mpsc::Receiver<Event>) {
        let (mailbox, receiver) = mpsc::channel(MAILBOX_MAX);
        let entry = Self {
            task,
            generation,
            mailbox,
            captures: OnceLock::new(),
            address: OnceLock::new(),
            hello: AtomicBool::new(ready),
            ready: AtomicBool::new(ready),
            usage: Mutex::default(),
            volumes: Mutex::default(),
        };
        (Arc::new(entry), receiver)
    }

    /// Where this machine reaches what the container listens on.
    pub(crate) fn address(&self) -> Option<IpAddr> {
        self.address.get().copied().map(IpAddr::V4)
    }

    pub(crate) fn set_address(&self, address: Option<Ipv4Addr>) {
        if let Some(address) = address {
            // A container is started once.
            let _ = self.address.set(address);
        }
    }

    pub(crate) fn note_hello(&self) {
        self.note_once(&self.hello, Event::Hello);
    }

    pub(crate) fn note_ready(&self) {
        self.note_once(&self.ready, Event::Ready);
    }

    fn note_once(&self, flag: &AtomicBool, event: Event) {
        if !flag.load(Ordering::Relaxed)
            && !flag.swap(true, Ordering::Relaxed)
            && self.mailbox.try_send(event).is_err()
        {
            // Full of stop requests, or gone: the next call of the kind notes it.
            flag.store(false, Ordering::Relaxed);
        }
    }

    /// Asks the container's task to stop it; a task that is gone has done so.
    pub(crate) async fn stop(&self, how: Stop) {
        let _ = self.mailbox.send(Event::Stop(how)).await;
    }

    pub(crate) fn set_captures(&self, captures: [Capture; 2]) {
        // A container's output is captured once.
        let _ = self.captures.set(captures);
    }

    /// Has everything that the container has written so far taken over.
    pub(crate) async fn drain(&self) {
        let Some([stdout, stderr]) = self.captures.get() else { return };
        let both = async { tokio::join!(stdout.drain(), stderr.drain()) };
        if tokio::time::timeout(DRAIN_WAIT_MAX, both).await.is_err() {
            tracing::warn!(task = %self.task, "what was written last is not waited for any longer: control does not take it");
        }
    }

    /// What the container writes from now on belongs to `current`.
    pub(crate) fn set_current_input(&self, current: Option<(CallId, InputId)>) {
        if let Some(captures) = self.captures.get() {
            captures.iter().for_each(|capture| capture.set_tag(current));
        }
    }

    /// The container's volumes, while it has any.
    pub(crate) fn volumes(&self) -> Option<Arc<Volumes>> {
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The same, for the last time.
    pub(crate) fn take_volumes(&self) -> Option<Arc<Volumes>> {
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(crate) fn set_volumes(&self, volumes: Option<Arc<Volumes>>) {
        *self.volumes.lock().unwrap_or_else(PoisonError::into_inner) = volumes;
    }

    pub(crate) fn usage(&self) -> Usage {
        *self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_usage(&self, usage: Usage) {
        *self.usage.lock().unwrap_or_else(PoisonError::into_inner) = usage;
    }
}

/// All containers of this machine that are not gone.
#[derive(Default)]
pub(crate) struct Registry {
    entries: Mutex<HashMap<TaskId, Arc<Entry>>>,
    count: watch::Sender<usize>,
}

/// Why a container was not added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It is there, under this generation.
    There(u64),
    /// There are as many as there may be.
    Full,
}

impl Registry {
    fn entries(&self) -> MutexGuard<'_, HashMap<TaskId, Arc<Entry>>> {
        // Every change under this lock is one call of the map.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, entry: Arc<Entry>, max: usize) -> Result<(), Refusal> {
        let mut entries = self.entries();
        if let Some(there) = entries.get(&entry.task) {
            return Err(Refusal::There(there.generation));
        }
        if entries.len() >= max {
            return Err(Refusal::Full);
        }
        entries.insert(entry.task, entry);
        self.count.send_replace(entries.len());
        Ok(())
    }

    pub(crate) fn remove(&self, task: TaskId) {
        let mut entries = self.entries();
        entries.remove(&task);
        self.count.send_replace(entries.len());
    }

    pub(crate) fn get(&self, task: TaskId) -> Option<Arc<Entry>> {
        self.entries().get(&task).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Entry>> {
        self.entries().values().cloned().collect()
    }

    /// How many there are, now and from now on.
    pub(crate) fn count(&self) -> watch::Receiver<usize> {
        self.count.subscribe()
    }
}
