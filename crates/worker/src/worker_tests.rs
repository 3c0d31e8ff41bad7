//! Whole containers, with a scripted runtime and a control plane that keeps what it is told. Descriptors,
//! pipes, spools and control sockets are real.

use super::*;
use crate::fd_keeper::Part;
use crate::testing::{FakeControl, FakeIngress, FakeKeeper, PATIENCE, TestClock, ids};
use bytes::Bytes;
use evoke_core::{Phase, Principal};
use evoke_proto::worker::{LayerOwner, LayerRef, Limits, NetworkMode, OutputFd};
use evoke_proto::{CallContext, Peer, Reply, Service};
use evoke_runtime::testing::{FakeProcess, FakeRuntime};
use evoke_runtime::{Exit as GuestExit, RuntimeError};
use std::fs::File;
use std::io::Write;

/// The grace that is long enough to never pass in a test.
const LONG_MS: u64 = 600_000;

struct Rig {
    control: Arc<FakeControl>,
    ingress: Arc<FakeIngress>,
    keeper: Arc<FakeKeeper>,
    runtime: FakeRuntime,
    data: tempfile::TempDir,
    worker: WorkerHandle,
}

impl Rig {
    fn new<F, Fut>(script: F) -> Self
    where
        F: Fn(FakeProcess) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = GuestExit> + Send + 'static,
    {
        let (control, ingress, keeper) = Default::default();
        let (runtime, data) = (FakeRuntime::new(script), tempfile::tempdir().unwrap());
        let worker = start(&control, &ingress, &keeper, &runtime, data.path());
        Self { control, ingress, keeper, runtime, data, worker }
    }

    async fn nothing_left(&self) {
        let left = || async {
            let folders =
                ["tasks", "spool"].map(|f| std::fs::read_dir(self.data.path().join(f)).unwrap().count());
            (self.runtime.list().await.unwrap(), self.keeper.names(), folders, self.worker.running().await)
        };
        let mut count = self.worker.shared.registry.count();
        tokio::time::timeout(PATIENCE, count.wait_for(|n| *n == 0))
            .await
            .expect("all containers go")
            .unwrap();
        assert_eq!(left().await, (vec![], vec![], [0, 0], vec![]));
    }

    fn phases(&self, wanted: TaskId) -> Vec<Phase> {
        let events = self.control.events.borrow();
        let phases = events.iter().filter_map(|event| match event {
            WorkerEvent::Phase { task, phase, .. } if *task == wanted => Some(*phase),
            _ => None,
        });
        phases.collect()
    }

    async fn phase(&self, wanted: TaskId, phase: Phase) {
        let seen = |event: &WorkerEvent| matches!(event, WorkerEvent::Phase { task, phase: p, .. } if *task == wanted && *p == phase);
        self.control.event(seen).await;
    }

    async fn exited(&self, wanted: TaskId) -> WorkerEvent {
        self.control.event(|e| matches!(e, WorkerEvent::Exited { task, .. } if *task == wanted)).await
    }

    async fn call(&self, task: TaskId, name: &str) -> Result<Reply, evoke_proto::Status> {
        let service = self.ingress.service(task).await;
        let rpc = evoke_proto::rpc::TABLE.iter().find(|rpc| rpc.name == name).unwrap();
        // A principal that lies: only the listener counts.
        let context = CallContext::new(
            rpc,
            Principal::Anonymous,
            Default::default(),
            Peer::Local,
            Arc::from("http://x"),
        );
        service.call(context, Bytes::new()).await
    }
}

fn start(
    control: &Arc<FakeControl>,
    ingress: &Arc<FakeIngress>,
    keeper: &Arc<FakeKeeper>,
    runtime: &FakeRuntime,
    data: &std::path::Path,
) -> WorkerHandle {
    let deps = WorkerDeps {
        runtime: Arc::new(runtime.clone()),
        fd_keeper: keeper.clone(),
        control: control.clone(),
        ingress: ingress.clone(),
        clock: Arc::new(TestClock),
    };
    Worker::start(WorkerConfig::new(data, 1000, 1000), deps).unwrap()
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
        argv: vec!["python".into(), "-m".into(), "program".into()],
        env: vec![("SECRET".into(), "s3cret".into()), ("MODAL_SERVER_URL".into(), "http://wrong".into())],
        cwd: "/root".into(),
        container_arguments: Bytes::from_static(b"arguments"),
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
        grace_ms: LONG_MS,
        startup_timeout_ms: LONG_MS,
        commit_on_exit: None,
        ends_by_sigterm: false,
    }
}

fn code(code: i32) -> GuestExit {
    GuestExit { code: Some(code), signal: None }
}

/// A program that ends well when it is interrupted.
async fn obedient(mut process: FakeProcess) -> GuestExit {
    while process.signals.recv().await != Some(2) {}
    code(0)
}

/// A program that nothing but SIGKILL ends.
async fn stubborn(process: FakeProcess) -> GuestExit {
    let _keep = process;
    std::future::pending().await
}

#[tokio::test]
async fn a_container_from_assignment_to_its_last_trace() {
    let rig = Rig::new(|process: FakeProcess| async move {
        let env = &process.spawn.env;
        let get = |name: &str| {
            let all: Vec<_> = env.iter().filter(|(key, _)| key == name).map(|(_, v)| v.clone()).collect();
            all.join("|")
        };
        let bind = &process.container.binds[0];
        let arguments = std::fs::read_to_string(bind.source.join("arguments")).unwrap();
        let mut out = File::from(process.stdout.try_clone().unwrap());
        let path = get("MODAL_CONTAINER_ARGUMENTS_PATH");
        writeln!(out, "{} {path} {arguments} {}", get("MODAL_SERVER_URL"), process.spawn.cwd).unwrap();
        let mut err = File::from(process.stderr.try_clone().unwrap());
        write!(err, "unfinished").unwrap();
        code(3)
    });
    let task = assignment(1).task_id;
    rig.runtime.set_usage(evoke_runtime::Usage { cpu_ns: 7, memory_peak_bytes: 9, ..Default::default() });
    rig.worker.assign(assignment(1)).await.unwrap();
    let WorkerEvent::Exited { exit, usage, committed, .. } = rig.exited(task).await else { panic!() };
    assert_eq!(exit, Exit { code: Some(3), ..Exit::default() });
    assert_eq!((usage.cpu_ns, usage.memory_peak_bytes, committed), (7, 9, None));
    let expected = "http://127.0.0.1:64087 /__evoke/arguments arguments /root\n";
    assert_eq!(String::from_utf8(rig.control.output(task, OutputFd::Stdout)).unwrap(), expected);
    assert_eq!(rig.control.output(task, OutputFd::Stderr), b"unfinished");
    assert_eq!(rig.phases(task), [Phase::Slot, Phase::Exec, Phase::Exited, Phase::Removed]);
    rig.nothing_left().await;
}

#[tokio::test]
async fn its_calls_are_forwarded_as_its_own_and_tell_how_far_it_is() {
    let rig = Rig::new(obedient);
    let task = assignment(1).task_id;
    rig.worker.assign(assignment(1)).await.unwrap();
    rig.phase(task, Phase::Exec).await;
    for name in ["ContainerHello", "FunctionGetInputs", "FunctionGetInputs"] {
        rig.call(task, name).await.unwrap();
    }
    rig.phase(task, Phase::Ready).await;
    assert_eq!(rig.phases(task), [Phase::Slot, Phase::Exec, Phase::Hello, Phase::Ready]);
    assert_eq!(*rig.control.callers.lock().unwrap(), vec![Principal::Container(task); 3]);
    // The secrets of the environment are in no file.
    let record = std::fs::read_to_string(rig.data.path().join(format!("tasks/{task}/record.json"))).unwrap();
    assert!(!record.contains("s3cret"));
    assert!(rig.worker.shutdown(Duration::from_secs(60)).await.is_empty());
    rig.nothing_left().await;
}

#[tokio::test]
async fn output_is_taken_over_before_the_result_it_led_to() {
    let rig = Rig::new(|mut process: FakeProcess| async move {
        let mut out = File::from(process.stdout.try_clone().unwrap());
        while let Some(signal) = process.signals.recv().await {
            if signal == 2 {
                return code(0);
            }
            write!(out, "working").unwrap();
        }
        code(1)
    });
    let (task, current) = (assignment(1).task_id, crate::testing::input(1));
    rig.worker.assign(assignment(1)).await.unwrap();
    rig.phase(task, Phase::Exec).await;
    rig.worker.set_current_input(task, Some(current));
    let entry = rig.worker.shared.registry.get(task).unwrap();
    // Written to the pipe, wherever it is by then.
    rig.runtime_signal(10).await;
    rig.control.stall().await;
    let result = tokio::spawn({
        let service = rig.ingress.service(task).await;
        let rpc = evoke_proto::rpc::TABLE.iter().find(|rpc| rpc.name == "FunctionPutOutputs").unwrap();
        let context =
            CallContext::new(rpc, Principal::Anonymous, Default::default(), Peer::Local, Arc::from(""));
        async move { service.call(context, Bytes::new()).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!rig.control.order.lock().unwrap().iter().any(|what| what.contains("PutOutputs")));
    rig.control.resume();
    result.await.unwrap().unwrap();
    assert_eq!(*rig.control.order.lock().unwrap(), ["logs", "call FunctionPutOutputs"]);
    let logs = rig.control.logs.lock().unwrap().clone();
    assert_eq!(
        (&logs[0].data[..], logs[0].call, logs[0].input),
        (&b"working"[..], Some(current.0), Some(current.1))
    );
    drop(entry);
}

impl Rig {
    /// Sends a signal to the program of the only container, as nobody but a test does.
    async fn runtime_signal(&self, signal: i32) {
        let control = self.keeper.duplicate(&Part::Control.name(assignment(1).task_id));
        let packet = serde_json::json!({"Request": {"id": 1, "request":
            {"Signal": {"proc": 1, "signal": signal, "group": false}}}});
        let socket = evoke_runtime::fds::AsyncSocket::new(control).unwrap();
        socket.send(packet.to_string().as_bytes(), &[]).await.unwrap();
        // The program's words are in the pipe once they are in the spool.
        let spool = self.data.path().join(format!("spool/{}.1", assignment(1).task_id));
        for _ in 0..400 {
            if std::fs::metadata(&spool).is_ok_and(|m| m.len() > 0) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("the program did not write");
    }
}

#[tokio::test]
async fn every_failure_of_a_start_is_told_and_leaves_nothing() {
    // The runtime refuses.
    let rig = Rig::new(stubborn);
    let task = assignment(1).task_id;
    let failed = |event: &WorkerEvent| matches!(event, WorkerEvent::StartFailed { .. });
    rig.runtime.fail_next_start(RuntimeError::DiskFull("making the root".into()));
    rig.worker.assign(assignment(1)).await.unwrap();
    let WorkerEvent::StartFailed { error, .. } = rig.control.event(failed).await else { panic!() };
    assert_eq!(error.code, ErrorCode::ResourceExhausted);
    assert!(error.hint.is_some());
    rig.nothing_left().await;

    // The descriptor store refuses.
    let rig = Rig::new(stubborn);
    rig.keeper.refuse(true);
    rig.worker.assign(assignment(1)).await.unwrap();
    let WorkerEvent::StartFailed { error, .. } = rig.control.event(failed).await else { panic!() };
    assert_eq!(error.code, ErrorCode::Unavailable);
    rig.keeper.refuse(false);
    rig.nothing_left().await;

    // The folder cannot be made.
    let rig = Rig::new(stubborn);
    std::fs::write(rig.data.path().join(format!("tasks/{task}")), b"in the way").unwrap();
    rig.worker.assign(assignment(1)).await.unwrap();
    rig.control.event(failed).await;
    assert!(rig.runtime.list().await.unwrap().is_empty());
    assert_eq!(rig.phases(task), [Phase::Removed]);
}

#[tokio::test]
async fn not_ready_in_time_is_a_failed_start() {
    let rig = Rig::new(stubborn);
    rig.worker.assign(Assignment { startup_timeout_ms: 80, ..assignment(1) }).await.unwrap();
    let failed = |event: &WorkerEvent| matches!(event, WorkerEvent::StartFailed { .. });
    let WorkerEvent::StartFailed { error, .. } = rig.control.event(failed).await else { panic!() };
    assert_eq!(error.code, ErrorCode::DeadlineExceeded);
    assert!(error.message.contains("startup timeout of 1 s"), "{error}");
    rig.nothing_left().await;
}

#[tokio::test]
async fn a_stop_interrupts_and_then_kills() {
    let kill = StopMode::Kill;
    let long = StopMode::Interrupt { grace_ms: LONG_MS };
    let short = StopMode::Interrupt { grace_ms: 60 };
    for (obeys, how, signal) in
        [(true, long, None), (false, short, Some(9)), (true, kill, Some(9)), (false, kill, Some(9))]
    {
        let rig = if obeys { Rig::new(obedient) } else { Rig::new(stubborn) };
        let task = assignment(1).task_id;
        rig.worker.assign(assignment(1)).await.unwrap();
        rig.phase(task, Phase::Exec).await;
        rig.call(task, "ContainerHello").await.unwrap();
        rig.phase(task, Phase::Hello).await;
        // Twice at once is once.
        tokio::join!(rig.worker.stop(task, how), rig.worker.stop(task, how));
        let WorkerEvent::Exited { exit, .. } = rig.exited(task).await else { panic!() };
        let code = if signal.is_none() { Some(0) } else { None };
        assert_eq!(exit, Exit { code, signal, oom: false, killed_by_us: true }, "{obeys} {how:?}");
        rig.nothing_left().await;
        rig.worker.stop(task, how).await;
    }
}

#[tokio::test]
async fn stops_that_race_with_the_start_leave_nothing() {
    for round in 0..40 {
        let rig = Rig::new(stubborn);
        let task = assignment(1).task_id;
        rig.worker.assign(assignment(1)).await.unwrap();
        for _ in 0..round {
            tokio::task::yield_now().await;
        }
        rig.worker.stop(task, StopMode::Interrupt { grace_ms: 1 }).await;
        let WorkerEvent::Exited { exit, .. } = rig.exited(task).await else { panic!() };
        assert!(exit.killed_by_us);
        rig.nothing_left().await;
    }
}

#[tokio::test]
async fn the_kernels_kill_for_memory_is_told_apart_from_ours() {
    let usage = evoke_runtime::Usage { oom_kills: 1, ..Default::default() };
    let rig = Rig::new(|_| async { GuestExit { code: None, signal: Some(9) } });
    rig.runtime.set_usage(usage);
    rig.worker.assign(assignment(1)).await.unwrap();
    let WorkerEvent::Exited { exit, .. } = rig.exited(assignment(1).task_id).await else { panic!() };
    assert_eq!(exit, Exit { code: None, signal: Some(9), oom: true, killed_by_us: false });

    // A child that was killed, in a program that coped.
    let rig = Rig::new(|_| async { code(0) });
    rig.runtime.set_usage(usage);
    rig.worker.assign(assignment(1)).await.unwrap();
    let WorkerEvent::Exited { exit, .. } = rig.exited(assignment(1).task_id).await else { panic!() };
    assert!(!exit.oom);
}

#[tokio::test]
async fn a_build_is_committed_if_it_ended_well() {
    for (exit_code, success) in [(0, true), (1, false)] {
        let rig = Rig::new(move |_| async move { code(exit_code) });
        let build = Assignment { commit_on_exit: Some("/layers/new".into()), ..assignment(1) };
        rig.worker.assign(build).await.unwrap();
        let WorkerEvent::Exited { committed, .. } = rig.exited(assignment(1).task_id).await else { panic!() };
        assert_eq!(committed.unwrap().is_ok(), success);
        rig.nothing_left().await;
    }
}

#[tokio::test]
async fn assignments_are_fenced_and_bounded() {
    let rig = Rig::new(obedient);
    rig.worker.assign(assignment(1)).await.unwrap();
    rig.worker.assign(assignment(1)).await.expect("the same again is fine");
    let other = rig.worker.assign(Assignment { generation: 2, ..assignment(1) }).await.unwrap_err();
    assert_eq!(other.code, ErrorCode::FailedPrecondition);
    assert!(rig.worker.shutdown(Duration::from_secs(60)).await.is_empty());
    assert_eq!(rig.worker.assign(assignment(2)).await.unwrap_err().code, ErrorCode::Unavailable);
}

#[tokio::test]
async fn a_stop_of_the_machine_ends_all_containers_at_once() {
    let rig = Rig::new(|process: FakeProcess| async move {
        if process.container.id == assignment(3).task_id.to_string() {
            return stubborn(process).await;
        }
        obedient(process).await
    });
    for n in 1..=8 {
        rig.worker.assign(assignment(n)).await.unwrap();
        rig.phase(assignment(n).task_id, Phase::Exec).await;
    }
    assert!(rig.worker.shutdown(Duration::from_millis(200)).await.is_empty());
    rig.nothing_left().await;
    let WorkerEvent::Exited { exit, .. } = rig.exited(assignment(3).task_id).await else { panic!() };
    assert_eq!(exit.signal, Some(9));
}
