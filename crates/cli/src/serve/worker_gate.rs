//! Between control and the worker while the server stops: what control still wants to start waits for the next
//! server instead of failing, so that no call is failed by a restart.

use async_trait::async_trait;
use evoke_core::{CallId, Error, InputId, TaskId, VolumeId};
use evoke_proto::worker::{Assignment, StopMode, Worker};
use evoke_worker::WorkerHandle;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};

/// The worker, as control sees it.
pub(super) struct WorkerGate {
    worker: WorkerHandle,
    closed: AtomicBool,
}

impl WorkerGate {
    pub(super) fn new(worker: WorkerHandle) -> Self {
        Self { worker, closed: AtomicBool::new(false) }
    }

    /// From here on nothing is started any more.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }
}

#[async_trait]
impl Worker for WorkerGate {
    async fn assign(&self, assignment: Assignment) -> Result<(), Error> {
        if self.closed.load(Ordering::SeqCst) {
            // Ends with this process; the next server sees that the container is not there.
            std::future::pending::<()>().await;
        }
        self.worker.assign(assignment).await
    }
    async fn stop(&self, task: TaskId, how: StopMode) {
        self.worker.stop(task, how).await;
    }
    async fn running(&self) -> Vec<TaskId> {
        self.worker.running().await
    }
    async fn commit_volume(&self, task: TaskId, volume: VolumeId) -> Result<(), Error> {
        self.worker.commit_volume(task, volume).await
    }
    async fn reload_volume(&self, task: TaskId, volume: VolumeId) -> Result<(), Error> {
        self.worker.reload_volume(task, volume).await
    }
    fn address(&self, task: TaskId) -> Option<IpAddr> {
        self.worker.address(task)
    }
    fn set_current_input(&self, task: TaskId, current: Option<(CallId, InputId)>) {
        self.worker.set_current_input(task, current);
    }
}
