//! Restarts: a worker is frozen in the middle, and another one goes on from what the first left in the
//! descriptor store and on disk.

use crate::testing::{FakeControl, FakeIngress, FakeKeeper, PATIENCE, TestClock, ids};
use crate::{Worker, WorkerConfig, WorkerDeps, WorkerHandle};
use bytes::Bytes;
use evoke_core::{ErrorCode, Phase, TaskId};
use evoke_proto::worker::{
    Assignment, LayerOwner, LayerRef, Limits, NetworkMode, OutputFd, Worker as _, WorkerEvent,
};
use evoke_runtime::testing::{FakeProcess, FakeRuntime};
use evoke_runtime::{
    ContainerSpec, Ended, Exit as GuestExit, Finding, Layer, LayerStats, Runtime, RuntimeError, StartError,
    Started, Usage,
};
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// What outlives a server process: containers, the holder's descriptors, the disk, and control's store.
struct Machine {
    control: Arc<FakeControl>,
    keeper: Arc<FakeKeeper>,
    runtime: FakeRuntime,
    data: tempfile::TempDir,
    /// Tells programs what to do.
    say: watch::Sender<&'static str>,
}

/// One server process: a tokio runtime of its own, dropped without a word as SIGKILL would.
struct Process {
    tokio: Option<tokio::runtime::Runtime>,
    worker: WorkerHandle,
    ingress: Arc<FakeIngress>,
}

/// A runtime whose containers belong to the machine and not to the process that started them.
struct OnMachine {
    containers: FakeRuntime,
    machine: tokio::runtime::Handle,
}

#[async_trait::async_trait]
impl Runtime for OnMachine {
    async fn start(&self, spec: ContainerSpec) -> Result<Started, StartError> {
        let containers = self.containers.clone();
        self.machine.spawn(async move { containers.start(spec).await }).await.unwrap()
    }
    async fn destroy(&self, id: &str) -> Result<Ended, RuntimeError> {
        self.containers.destroy(id).await
    }
    async fn list(&self) -> Result<Vec<String>, RuntimeError> {
        self.containers.list().await
    }
    async fn usage(&self, id: &str) -> Result<Usage, RuntimeError> {
        self.containers.usage(id).await
    }
    async fn commit_layer(&self, id: &str, layer: &Path) -> Result<LayerStats, RuntimeError> {
        self.containers.commit_layer(id, layer).await
    }
    async fn unpack_layer(&self, _: &Path, _: &[Layer], _: OwnedFd) -> Result<LayerStats, RuntimeError> {
        unreachable!("no image is built here")
    }
    async fn remove_tree(&self, path: &Path) -> Result<(), RuntimeError> {
        self.containers.remove_tree(path).await
    }
    async fn probe(&self) -> Result<Vec<Finding>, RuntimeError> {
        self.containers.probe().await
    }
}

impl Machine {
    /// Programs write each word that is said, and end with 5 when it is "end".
    fn new() -> Self {
        let (say, said) = watch::channel("");
        let runtime = FakeRuntime::new(move |process: FakeProcess| {
            let mut said = said.clone();
            async move {
                let mut out = File::from(process.stdout.try_clone().unwrap());
                let mut process = process;
                said.mark_changed();
                loop {
                    tokio::select! {
                        changed = said.changed() => {
                            if changed.is_err() { return GuestExit { code: Some(6), signal: None } }
                            let word = *said.borrow_and_update();
                            out.write_all(word.as_bytes()).unwrap();
                            if word == "end" { return GuestExit { code: Some(5), signal: None } }
                        }
                        signal = process.signals.recv() => {
                            if signal == Some(2) { return GuestExit { code: Some(0), signal: None } }
                        }
                    }
                }
            }
        });
        let (control, keeper) = Default::default();
        Self { control, keeper, runtime, data: tempfile::tempdir().unwrap(), say }
    }

    fn process(&self) -> Process {
        let tokio =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let ingress = Arc::<FakeIngress>::default();
        let deps = WorkerDeps {
            runtime: Arc::new(OnMachine {
                containers: self.runtime.clone(),
                machine: tokio::runtime::Handle::current(),
            }),
            fd_keeper: self.keeper.clone(),
            control: self.control.clone(),
            ingress: ingress.clone(),
            clock: Arc::new(TestClock),
        };
        let guard = tokio.enter();
        let worker = Worker::start(WorkerConfig::new(self.data.path(), 1000, 1000), deps).unwrap();
        drop(guard);
        Process { tokio: Some(tokio), worker, ingress }
    }

    fn spool(&self, task: TaskId) -> std::path::PathBuf {
        self.data.path().join(format!("spool/{task}.1"))
    }

    async fn phase(&self, task: TaskId, phase: Phase) {
        let seen = |event: &WorkerEvent| matches!(event, WorkerEvent::Phase { task: t, phase: p, .. } if *t == task && *p == phase);
        self.control.event(seen).await;
    }

    async fn until_output(&self, task: TaskId, wanted: &str) {
        self.control.until(|c| c.output(task, OutputFd::Stdout) == wanted.as_bytes()).await;
    }

    async fn exited(&self, task: TaskId) -> evoke_proto::worker::Exit {
        let event =
            self.control.event(|e| matches!(e, WorkerEvent::Exited { task: t, .. } if *t == task)).await;
        let WorkerEvent::Exited { exit, .. } = event else { unreachable!() };
        exit
    }
}

impl Process {
    /// As SIGKILL does: nothing of it runs any more, its descriptors are closed.
    async fn kill(mut self) {
        let tokio = self.tokio.take().unwrap();
        let ended = tokio::task::spawn_blocking(move || tokio.shutdown_timeout(Duration::from_secs(5)));
        ended.await.unwrap();
    }

    /// Runs `work` in this process.
    async fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        tokio::time::timeout(PATIENCE, self.tokio.as_ref().unwrap().spawn(work))
            .await
            .expect("in time")
            .unwrap()
    }

    async fn assign(&self, n: u64) -> TaskId {
        let worker = self.worker.clone();
        self.run(async move { worker.assign(assignment(n)).await.unwrap() }).await;
        assignment(n).task_id
    }

    async fn adopt(&self, machine: &Machine) -> Vec<TaskId> {
        let (worker, kept) = (self.worker.clone(), machine.keeper.hand_over());
        self.run(async move { worker.adopt(kept).await.unwrap() }).await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(tokio) = self.tokio.take() {
            tokio.shutdown_background();
        }
    }
}

fn assignment(n: u64) -> Assignment {
    let (task_id, app_id, function_id) = ids(n);
    Assignment {
        task_id,
        app_id,
        function_id,
        generation: 1,
        layers: vec![LayerRef { path: "/layers/base".into(), owner: LayerOwner::Canonical }],
        template_layers: Vec::new(),
        binds: Vec::new(),
        shared: Vec::new(),
        volumes: Vec::new(),
        argv: vec!["program".into()],
        env: Vec::new(),
        cwd: "/".into(),
        container_arguments: Bytes::new(),
        limits: Limits {
            cpu_shares_milli: 125,
            cpu_max_milli: None,
            memory_low_bytes: 0,
            memory_max_bytes: None,
            pids_max: 100,
            shm_bytes: 1 << 20,
            disk_max_bytes: None,
        },
        buckets: Vec::new(),
        gpus: Vec::new(),
        network: NetworkMode::Loopback,
        grace_ms: 60_000,
        startup_timeout_ms: 600_000,
        commit_on_exit: None,
        ends_by_sigterm: false,
    }
}

fn files(folder: &Path) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_lives_through_a_restart_with_all_its_output() {
    let machine = Machine::new();
    let first = machine.process();
    let task = first.assign(1).await;
    machine.phase(task, Phase::Exec).await;
    machine.say.send_replace("before ");
    machine.until_output(task, "before ").await;
    // Spooled, but never acknowledged: the process dies while control has not answered.
    machine.control.stall().await;
    machine.say.send_replace("spooled ");
    let spool = machine.spool(task);
    tokio::time::timeout(PATIENCE, async {
        while std::fs::metadata(&spool).unwrap().len() < 15 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    first.kill().await;
    machine.control.resume();
    // In the pipe, with nobody there to read.
    machine.say.send_replace("alone ");
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(machine.control.output(task, OutputFd::Stdout), b"before ");

    let second = machine.process();
    assert_eq!(second.adopt(&machine).await, [task]);
    machine.until_output(task, "before spooled alone ").await;
    second.ingress.service(task).await;
    machine.say.send_replace("end");
    assert_eq!(machine.exited(task).await.code, Some(5));
    machine.until_output(task, "before spooled alone end").await;
    let mut gone = second.worker.shared().registry.count();
    tokio::time::timeout(PATIENCE, gone.wait_for(|n| *n == 0)).await.unwrap().unwrap();
    assert!(machine.keeper.names().is_empty());
    assert_eq!(
        (files(&machine.data.path().join("spool")), files(&machine.data.path().join("tasks"))),
        (0, 0)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_that_nobody_saw_is_learned_from_the_guest() {
    let machine = Machine::new();
    let first = machine.process();
    let task = first.assign(1).await;
    machine.phase(task, Phase::Exec).await;
    first.kill().await;
    machine.say.send_replace("end");
    tokio::time::sleep(Duration::from_millis(50)).await;
    let second = machine.process();
    assert_eq!(second.adopt(&machine).await, [task]);
    assert_eq!(machine.exited(task).await.code, Some(5));
    machine.until_output(task, "end").await;
    assert!(machine.runtime.list().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_that_was_under_way_goes_on() {
    let machine = Machine::new();
    let first = machine.process();
    let task = first.assign(1).await;
    machine.phase(task, Phase::Exec).await;
    first.kill().await;
    let folder = machine.data.path().join(format!("tasks/{task}"));
    let mut record = crate::record::Record::load(&folder).unwrap();
    record.known.ended_by_us = Some(crate::lifecycle::Ended::Asked);
    record.known.kill_at = Some(evoke_core::UnixMs(1));
    record.save(&folder).unwrap();
    let second = machine.process();
    assert_eq!(second.adopt(&machine).await, [task]);
    let exit = machine.exited(task).await;
    assert_eq!((exit.signal, exit.killed_by_us), (Some(9), true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_was_cut_short_is_cleared_away() {
    let machine = Machine::new();
    let first = machine.process();
    let task = first.assign(1).await;
    machine.phase(task, Phase::Exec).await;
    first.kill().await;
    // As if the process had died while it was storing descriptors.
    machine.keeper.forget(&crate::fd_keeper::Part::Http.name(task));
    let second = machine.process();
    assert!(second.adopt(&machine).await.is_empty());
    assert_eq!(machine.exited(task).await.code, None);
    assert!(machine.runtime.list().await.unwrap().is_empty());
    assert!(machine.keeper.names().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_never_ran_is_a_failed_start() {
    let machine = Machine::new();
    let first = machine.process();
    let task = first.assign(1).await;
    machine.phase(task, Phase::Exec).await;
    // A container of which everything is stored, whose guest has executed nothing.
    let stranger = ids(2).0;
    let spec = {
        let mut spec = evoke_runtime::ContainerSpec::new(
            stranger.to_string(),
            vec![evoke_runtime::Layer { path: "/x".into(), owner: evoke_runtime::Owner::Canonical }],
        );
        spec.listeners = vec![
            evoke_runtime::ListenerSpec::Tcp { port: 1 },
            evoke_runtime::ListenerSpec::Unix { path: "/x".into() },
        ];
        spec
    };
    let started = machine.runtime.start(spec).await.unwrap();
    let (parts, _stdio) = crate::live::Parts::from_started(started, 0).unwrap();
    for (part, fd) in parts.duplicates().unwrap() {
        machine.keeper.keep(&part.name(stranger), fd);
    }
    let tasks = machine.data.path().join("tasks");
    let mut record = crate::record::Record::load(&tasks.join(task.to_string())).unwrap();
    (record.task, record.proc) = (stranger, None);
    std::fs::create_dir(tasks.join(stranger.to_string())).unwrap();
    record.save(&tasks.join(stranger.to_string())).unwrap();
    first.kill().await;
    let second = machine.process();
    second.adopt(&machine).await;
    let failed = |e: &WorkerEvent| matches!(e, WorkerEvent::StartFailed { task, .. } if *task == stranger);
    let WorkerEvent::StartFailed { error, .. } = machine.control.event(failed).await else { panic!() };
    assert_eq!(error.code, ErrorCode::Unavailable);
    let running = second.worker.running().await;
    assert!(running.contains(&task), "the other one lives on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_without_a_holder_are_swept_and_their_last_words_kept() {
    let machine = Machine::new();
    let first = machine.process();
    let task = first.assign(1).await;
    machine.phase(task, Phase::Exec).await;
    machine.control.stall().await;
    machine.say.send_replace("last words");
    let spool = machine.spool(task);
    tokio::time::timeout(PATIENCE, async {
        while std::fs::metadata(&spool).unwrap().len() < 10 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    first.kill().await;
    machine.control.resume();
    machine.keeper.hand_over();
    machine.keeper.clear();
    std::fs::write(machine.data.path().join("spool").join(format!("{}.2", ids(9).0)), b"whose?").unwrap();

    let second = machine.process();
    assert!(second.adopt(&machine).await.is_empty());
    assert!(machine.runtime.list().await.unwrap().is_empty());
    assert_eq!(machine.exited(task).await, evoke_proto::worker::Exit::default());
    assert_eq!(machine.control.output(task, OutputFd::Stdout), b"last words");
    let tasks = machine.data.path().join("tasks");
    tokio::time::timeout(PATIENCE, async {
        while files(&tasks) > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    assert_eq!(files(&machine.data.path().join("spool")), 0);
}
