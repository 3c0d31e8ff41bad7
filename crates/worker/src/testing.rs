//! Stand-ins for the tests of this crate: a control plane that keeps what it is told, a descriptor store, an
//! ingress, and a clock.

use crate::FdKeeper;
use bytes::Bytes;
use evoke_core::{
    AppId, CallId, Clock, Error, ErrorCode, FunctionId, InputId, Principal, SeededEntropy, TaskId, UnixMs,
    VolumeId,
};
use evoke_proto::worker::{
    ContainerIngress, ContainerListener, Control, LogChunk, OutputFd, VolumeChange, VolumeView, WorkerEvent,
};
use evoke_proto::{CallContext, Reply, Service, Status};
use std::collections::{BTreeMap, HashMap};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Semaphore, watch};

/// Longest wait of a test for something that must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The machine's clock, as the tests need no other.
#[derive(Debug, Default)]
pub(crate) struct TestClock;

impl Clock for TestClock {
    fn now(&self) -> UnixMs {
        evoke_core::SystemClock.now()
    }
}

/// Ids for container number `n`.
pub(crate) fn ids(n: u64) -> (TaskId, AppId, FunctionId) {
    let mut entropy = SeededEntropy::new(n);
    let at = UnixMs(1_700_000_000_000 + n);
    (TaskId::new(at, &mut entropy), AppId::new(at, &mut entropy), FunctionId::new(at, &mut entropy))
}

/// The call and input number `n`.
pub(crate) fn input(n: u64) -> (CallId, InputId) {
    let mut entropy = SeededEntropy::new(n);
    (CallId::new(UnixMs(n), &mut entropy), InputId::new(UnixMs(n), &mut entropy))
}

/// A control plane that keeps everything it is told.
pub(crate) struct FakeControl {
    /// Output taken over.
    pub logs: Mutex<Vec<LogChunk>>,
    /// What happened, in order: output, calls and events, as short words.
    pub order: Mutex<Vec<String>>,
    /// Who called.
    pub callers: Mutex<Vec<Principal>>,
    /// Events reported.
    pub events: watch::Sender<Vec<WorkerEvent>>,
    /// So many of the next appends are refused.
    pub refuse: AtomicU32,
    /// Bytes of output under way and taken over.
    pub taken: AtomicUsize,
    /// One permit lets one append through, where closed to others; see [`FakeControl::stall`].
    gate: Semaphore,
    changed: watch::Sender<u64>,
}

const OPEN: usize = 1 << 20;

impl Default for FakeControl {
    fn default() -> Self {
        Self {
            logs: Mutex::default(),
            order: Mutex::default(),
            callers: Mutex::default(),
            events: watch::channel(Vec::new()).0,
            refuse: AtomicU32::new(0),
            taken: AtomicUsize::new(0),
            gate: Semaphore::new(OPEN),
            changed: watch::channel(0).0,
        }
    }
}

impl FakeControl {
    /// Makes appends wait until [`FakeControl::resume`].
    pub(crate) async fn stall(&self) {
        self.gate.acquire_many(OPEN as u32).await.unwrap().forget();
    }

    /// Lets appends through again.
    pub(crate) fn resume(&self) {
        self.gate.add_permits(OPEN);
    }

    /// What was taken over of one stream.
    pub(crate) fn output(&self, task: TaskId, fd: OutputFd) -> Vec<u8> {
        let logs = self.logs.lock().unwrap();
        logs.iter().filter(|c| c.task == task && c.fd == fd).flat_map(|c| c.data.to_vec()).collect()
    }

    /// Waits until `done` holds; it is asked again whenever output or a call came in.
    pub(crate) async fn until(&self, done: impl Fn(&Self) -> bool) {
        let mut changed = self.changed.subscribe();
        let waited = tokio::time::timeout(PATIENCE, changed.wait_for(|_| done(self))).await;
        waited.expect("within the test's patience").unwrap();
    }

    /// Waits until an event satisfies `wanted`.
    pub(crate) async fn event(&self, wanted: impl Fn(&WorkerEvent) -> bool) -> WorkerEvent {
        let mut events = self.events.subscribe();
        let seen = tokio::time::timeout(PATIENCE, events.wait_for(|all| all.iter().any(&wanted))).await;
        let all =
            seen.unwrap_or_else(|_| panic!("never reported; so far: {:?}", self.events.borrow())).unwrap();
        all.iter().find(|event| wanted(event)).unwrap().clone()
    }

    fn note(&self, what: String) {
        self.order.lock().unwrap().push(what);
        self.changed.send_modify(|n| *n += 1);
    }
}

#[async_trait::async_trait]
impl Service for FakeControl {
    async fn call(&self, context: CallContext, body: Bytes) -> Result<Reply, Status> {
        self.callers.lock().unwrap().push(context.principal.clone());
        self.note(format!("call {}", context.rpc.name));
        Ok(Reply::Unary(body))
    }
}

#[async_trait::async_trait]
impl Control for FakeControl {
    async fn report(&self, event: WorkerEvent) {
        self.events.send_modify(|all| all.push(event));
    }

    async fn append_logs(&self, chunks: Vec<LogChunk>) -> Result<(), Error> {
        drop(self.gate.acquire().await.unwrap());
        if self.refuse.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() {
            return Err(Error::new(ErrorCode::ResourceExhausted, "the disk is full"));
        }
        let mut logs = self.logs.lock().unwrap();
        for chunk in chunks {
            self.taken.fetch_add(chunk.data.len(), Ordering::SeqCst);
            let from = logs.iter().rev().find(|c| c.task == chunk.task && c.fd == chunk.fd);
            let expected = from.map(|c| c.spool_offset + c.data.len() as u64);
            assert!(expected.is_none_or(|at| at == chunk.spool_offset), "a gap or a repeat");
            logs.push(chunk);
        }
        drop(logs);
        self.note("logs".into());
        Ok(())
    }

    async fn merge_volume(
        &self,
        _: VolumeId,
        base: u64,
        _: Vec<VolumeChange>,
        _: String,
    ) -> Result<u64, Error> {
        Ok(base)
    }

    async fn volume_view(&self, volume: VolumeId) -> Result<VolumeView, Error> {
        Err(Error::not_found(format!("no volume {volume}")))
    }

    async fn log_offsets(&self, task: TaskId) -> (u64, u64) {
        let logs = self.logs.lock().unwrap();
        let end = |fd| {
            let last = logs.iter().rev().find(|c| c.task == task && c.fd == fd);
            last.map_or(0, |c| c.spool_offset + c.data.len() as u64)
        };
        (end(OutputFd::Stdout), end(OutputFd::Stderr))
    }
}

/// A descriptor store.
#[derive(Default)]
pub(crate) struct FakeKeeper {
    kept: Mutex<BTreeMap<String, OwnedFd>>,
    refuses: AtomicBool,
}

impl FakeKeeper {
    /// Whether further descriptors are refused.
    pub(crate) fn refuse(&self, refuses: bool) {
        self.refuses.store(refuses, Ordering::SeqCst);
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.kept.lock().unwrap().keys().cloned().collect()
    }

    pub(crate) fn keep(&self, name: &str, fd: OwnedFd) {
        self.kept.lock().unwrap().insert(name.to_owned(), fd);
    }

    pub(crate) fn forget(&self, name: &str) {
        self.kept.lock().unwrap().remove(name);
    }

    pub(crate) fn clear(&self) {
        self.kept.lock().unwrap().clear();
    }

    pub(crate) fn duplicate(&self, name: &str) -> OwnedFd {
        self.kept.lock().unwrap()[name].try_clone().unwrap()
    }

    /// What a new process gets.
    pub(crate) fn hand_over(&self) -> Vec<(String, OwnedFd)> {
        let kept = self.kept.lock().unwrap();
        kept.iter().map(|(name, fd)| (name.clone(), fd.try_clone().unwrap())).collect()
    }
}

#[async_trait::async_trait]
impl FdKeeper for FakeKeeper {
    async fn put(&self, name: &str, fd: BorrowedFd<'_>) -> Result<(), Error> {
        if self.refuses.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorCode::Unavailable, "the holder is gone"));
        }
        self.keep(name, fd.try_clone_to_owned().unwrap());
        Ok(())
    }
    async fn remove(&self, name: &str) -> Result<(), Error> {
        self.forget(name);
        Ok(())
    }
}

/// An ingress that serves nothing, but lets tests call what it was given.
#[derive(Default)]
pub(crate) struct FakeIngress {
    services: Mutex<HashMap<TaskId, Arc<dyn Service>>>,
    served: watch::Sender<u64>,
}

impl FakeIngress {
    /// What a container's listeners serve.
    pub(crate) async fn service(&self, task: TaskId) -> Arc<dyn Service> {
        let mut served = self.served.subscribe();
        let there = || self.services.lock().unwrap().get(&task).cloned();
        let waited = tokio::time::timeout(PATIENCE, served.wait_for(|_| there().is_some())).await;
        waited.expect("it is served").unwrap();
        there().unwrap()
    }
}

#[async_trait::async_trait]
impl ContainerIngress for FakeIngress {
    async fn serve_container(
        &self,
        task: TaskId,
        listener: ContainerListener,
        _origin: Arc<str>,
        service: Arc<dyn Service>,
        mut stop: watch::Receiver<bool>,
    ) -> Result<(), Error> {
        self.services.lock().unwrap().insert(task, service);
        self.served.send_modify(|n| *n += 1);
        // An error means that the container is gone.
        let _ = stop.wait_for(|stop| *stop).await;
        drop(listener);
        self.services.lock().unwrap().remove(&task);
        Ok(())
    }
}
