//! The worker itself: takes assignments, keeps its containers, and stops them when the machine stops.

use crate::adopt;
use crate::config::WorkerConfig;
use crate::container::{Container, disk_error, remove};
use crate::fd_keeper::FdKeeper;
use crate::lifecycle::{Action, Known, Lifecycle, Stop};
use crate::record::Record;
use crate::registry::{Entry, Refusal, Registry};
use crate::tasks::{self, TaskKind};
use crate::templates::Pool;
use crate::usage;
use crate::volumes::{VolumeRecord, Volumes, not_mounted};
use evoke_core::{CallId, Clock, Error, ErrorCode, InputId, TaskId, VolumeId};
use evoke_proto::worker::{
    Assignment, ContainerIngress, Control, Exit, StopMode, Usage, Worker as WorkerApi, WorkerEvent,
};
use evoke_runtime::Runtime;
use futures::future::join_all;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::task::JoinHandle;

/// How long, beyond the grace, a clean stop waits for containers to be removed and their output shipped.
const SHUTDOWN_EXTRA: Duration = Duration::from_secs(30);

/// What a worker works with.
#[derive(Clone)]
pub struct WorkerDeps {
    /// Runs the containers.
    pub runtime: Arc<dyn Runtime>,
    /// Keeps descriptors beyond the life of this process.
    pub fd_keeper: Arc<dyn FdKeeper>,
    /// Is told what happens, takes output, serves the containers' RPCs.
    pub control: Arc<dyn Control>,
    /// Serves the containers' listeners.
    pub ingress: Arc<dyn ContainerIngress>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
}

/// Config, dependencies and containers of one worker.
pub(crate) struct Shared {
    pub config: WorkerConfig,
    pub deps: WorkerDeps,
    pub registry: Arc<Registry>,
    pub templates: Arc<Pool>,
    /// Containers of an earlier process that are being cleared away.
    burials: Mutex<Vec<JoinHandle<()>>>,
    closing: AtomicBool,
}

/// The machine's agent.
pub struct Worker;

impl Worker {
    /// Starts a worker that has no containers yet. Must be called inside a tokio runtime. After a restart
    /// [`WorkerHandle::adopt`] is to follow, before control decides anything.
    pub fn start(config: WorkerConfig, deps: WorkerDeps) -> Result<WorkerHandle, Error> {
        for folder in [&config.tasks_folder, &config.spool_folder] {
            std::fs::create_dir_all(folder)
                // What containers are told and what they wrote is for no other user of the machine.
                .and_then(|()| std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700)))
                .map_err(|error| disk_error(&format!("making {}", folder.display()), &error))?;
        }
        let registry = Arc::new(Registry::default());
        let sampling = usage::sample(deps.runtime.clone(), registry.clone(), config.usage_interval);
        let sampler = tasks::spawn(TaskKind::Usage, "all", sampling);
        let burials = Mutex::default();
        let templates = Arc::new(Pool::new(config.templates, deps.clone()));
        let closing = AtomicBool::new(false);
        let shared = Shared { config, deps, registry, templates, burials, closing };
        Ok(WorkerHandle { shared: Arc::new(shared), sampler: Arc::new(Sampler(sampler)) })
    }
}

/// A running worker. Cheap to clone.
#[derive(Clone)]
pub struct WorkerHandle {
    shared: Arc<Shared>,
    #[allow(dead_code)] // Ends the sampling when the last handle goes.
    sampler: Arc<Sampler>,
}

struct Sampler(JoinHandle<()>);

impl Drop for Sampler {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl WorkerHandle {
    /// Goes on with the containers that an earlier process left running, whose descriptors are among `kept`
    /// (names of other kinds are ignored), then destroys containers that nobody drives. Which live on. To
    /// be called at every start, also with nothing kept.
    pub async fn adopt(&self, kept: Vec<(String, OwnedFd)>) -> Result<Vec<TaskId>, Error> {
        let around = self.shared.templates.adopt(&kept);
        let adopted = adopt::adopt_all(&self.shared, kept).await;
        // Those that no container is in end here.
        drop(around);
        adopt::sweep(&self.shared).await?;
        Ok(adopted)
    }

    /// What a container was last seen to use; none where it is gone or was not looked at yet.
    pub fn last_usage(&self, task: TaskId) -> Option<Usage> {
        self.shared.registry.get(task).map(|entry| entry.usage())
    }

    /// Stops the machine's containers, all at once: SIGINT now, SIGKILL after `grace`. Takes no assignment
    /// any more. The containers that were not gone in time: the next start removes them.
    pub async fn shutdown(&self, grace: Duration) -> Vec<TaskId> {
        self.shared.closing.store(true, Ordering::SeqCst);
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let all = self.shared.registry.all();
        join_all(all.iter().map(|entry| entry.stop(Stop::Interrupt { grace_ms }))).await;
        let mut count = self.shared.registry.count();
        let burials = std::mem::take(&mut *self.shared.burials());
        let gone = async {
            // How a burial went is in the log; the count is there for as long as anyone waits for it.
            join_all(burials).await;
            let _ = count.wait_for(|n| *n == 0).await;
        };
        // Whether it was in time or not: what is left is what counts.
        let _ = tokio::time::timeout(grace.saturating_add(SHUTDOWN_EXTRA), gone).await;
        self.shared.templates.close().await;
        self.shared.registry.all().iter().map(|entry| entry.task).collect()
    }
}

impl WorkerHandle {
    fn volumes_of(&self, task: TaskId, volume: VolumeId) -> Result<Arc<Volumes>, Error> {
        let entry = self.shared.registry.get(task);
        entry.and_then(|entry| entry.volumes()).ok_or_else(|| not_mounted(task, volume))
    }
}

#[cfg(test)]
impl WorkerHandle {
    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }
}

impl Shared {
    /// The tasks that clear away containers of an earlier process.
    pub(crate) fn burials(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.burials.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Spawns the task that drives a container.
    pub(crate) fn drive(self: &Arc<Self>, container: Container, task: TaskId, first: Vec<Action>) {
        let shared = self.clone();
        tasks::spawn(TaskKind::Container, task, async move {
            if tasks::guard(TaskKind::Container, container.run(first)).await.is_err() {
                shared.rescue(task).await;
            }
        });
    }

    /// A container whose task failed by a defect of ours is taken down, and control told that it is lost.
    async fn rescue(&self, task: TaskId) {
        // Logged there; the next start tries again.
        let ended = remove(self, &task.to_string()).await.unwrap_or_default();
        let (usage, at) = (usage::convert(ended.usage), self.deps.clock.now());
        let exit = Exit::default();
        self.deps.control.report(WorkerEvent::Exited { task, exit, usage, committed: None, at }).await;
        self.forget(task, false).await;
    }
}

#[async_trait::async_trait]
impl WorkerApi for WorkerHandle {
    async fn assign(&self, assignment: Assignment) -> Result<(), Error> {
        let (shared, task) = (&self.shared, assignment.task_id);
        if shared.closing.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorCode::Unavailable, "this machine is stopping"));
        }
        let (entry, mailbox) = Entry::new(task, assignment.generation, false);
        match shared.registry.add(entry.clone(), shared.config.containers_max) {
            Ok(()) => {}
            // The same assignment again: its first answer was lost.
            Err(Refusal::There(generation)) if generation == assignment.generation => return Ok(()),
            Err(Refusal::There(generation)) => {
                return Err(Error::precondition(format!(
                    "container {task} is here under generation {generation}, not {}",
                    assignment.generation
                )));
            }
            Err(Refusal::Full) => {
                let max = shared.config.containers_max;
                return Err(Error::new(
                    ErrorCode::ResourceExhausted,
                    format!("this machine has {max} containers, as many as it may have"),
                ));
            }
        }
        let record = record_of(&assignment, shared.deps.clock.now());
        let (life, first) =
            Lifecycle::accept(record.accepted_at, record.startup_timeout_ms, record.commit_on_exit.is_some());
        let container = Container::new(shared.clone(), entry, life, record, mailbox, Some(assignment), None);
        shared.drive(container, task, first);
        Ok(())
    }

    async fn stop(&self, task: TaskId, how: StopMode) {
        let Some(entry) = self.shared.registry.get(task) else { return };
        let how = match how {
            StopMode::Interrupt { grace_ms } => Stop::Interrupt { grace_ms },
            StopMode::Kill => Stop::Kill,
        };
        entry.stop(how).await;
    }

    async fn running(&self) -> Vec<TaskId> {
        self.shared.registry.all().iter().map(|entry| entry.task).collect()
    }

    async fn commit_volume(&self, task: TaskId, volume: VolumeId) -> Result<(), Error> {
        self.volumes_of(task, volume)?.commit(volume).await
    }

    async fn reload_volume(&self, task: TaskId, volume: VolumeId) -> Result<(), Error> {
        self.volumes_of(task, volume)?.reload(volume).await
    }

    fn address(&self, task: TaskId) -> Option<IpAddr> {
        self.shared.registry.get(task).and_then(|entry| entry.address())
    }

    fn set_current_input(&self, task: TaskId, current: Option<(CallId, InputId)>) {
        if let Some(entry) = self.shared.registry.get(task) {
            entry.set_current_input(current);
        }
    }
}

fn record_of(assignment: &Assignment, now: evoke_core::UnixMs) -> Record {
    Record {
        task: assignment.task_id,
        app: assignment.app_id,
        function: assignment.function_id,
        generation: assignment.generation,
        accepted_at: now,
        started_at: None,
        address: None,
        startup_timeout_ms: assignment.startup_timeout_ms,
        commit_on_exit: assignment.commit_on_exit.clone(),
        ends_by_sigterm: assignment.ends_by_sigterm,
        volumes: assignment.volumes.iter().map(VolumeRecord::of).collect(),
        template: None,
        proc: None,
        known: Known::default(),
    }
}

#[cfg(test)]
#[path = "worker_tests.rs"]
mod tests;
