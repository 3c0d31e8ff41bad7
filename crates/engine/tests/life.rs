//! Lives of calls through the public interface, with the writes applied to a real store in memory.
// Helpers of tests may fail a test as well as the tests themselves.
#![allow(clippy::unwrap_used)]

mod support;

use bytes::Bytes;
use evoke_core::{AppId, FunctionId, Gpus, InputId, Resources, SeededEntropy, TaskId, UnixMs};
use evoke_engine::{
    CallType, Claim, ContainerEvent, ContainerExit, Direction, Effect, Engine, EngineConf, ExitCause,
    FunctionConf, Gpu, Grade, Invocation, MapReply, MapRequest, NewInput, NewOutput, OutputFate, PollRequest,
    ResultStatus, RetryPolicy, Step, StopHow, WorkerCapacity, WorkerId,
};
use evoke_store::calls::{self, AttemptEnd, OutputRow, OutputsQuery, ResultBody};
use evoke_store::{Db, Write};
use support::{APP, function};

struct Shell {
    engine: Engine,
    db: Db,
    now: UnixMs,
    effects: Vec<Effect>,
    grade: Grade,
    gpus: Vec<Gpu>,
}

fn new_engine() -> Engine {
    Engine::new(EngineConf::default(), Box::new(SeededEntropy::new(5)))
}

fn machine() -> WorkerCapacity {
    WorkerCapacity::of(WorkerId(0), Resources { milli_cpu: 2_000, memory_mib: 4_096, gpus: Gpus::NONE })
}

impl Shell {
    fn new(functions: &[FunctionConf]) -> Self {
        let mut shell = Shell {
            engine: new_engine(),
            db: Db::open_in_memory().unwrap(),
            now: UnixMs(1_000_000),
            effects: Vec::new(),
            grade: Grade::Written,
            gpus: Vec::new(),
        };
        shell.boot(functions, &[]);
        shell
    }

    fn boot(&mut self, functions: &[FunctionConf], alive: &[TaskId]) {
        let now = self.now;
        let step = self.engine.put_worker(machine(), self.gpus.clone(), now);
        self.take(step);
        for conf in functions {
            let step = self.engine.put_function(conf.clone(), now);
            self.take(step);
        }
        let recovered = calls::recover(self.db.connection()).unwrap();
        let step = self.engine.recover(recovered, now);
        self.take(step);
        let step = self.engine.adopt(alive, now);
        self.take(step);
    }

    fn restart(&mut self, functions: &[FunctionConf], alive: &[TaskId]) {
        self.engine = new_engine();
        self.effects.clear();
        self.boot(functions, alive);
    }

    fn take<T>(&mut self, step: Step<T>) -> T {
        let writes: Vec<Write> = step.writes.into_iter().map(Write::from).collect();
        for result in self.db.commit(&[&writes]) {
            result.unwrap();
        }
        self.grade = step.grade;
        self.effects.extend(step.effects);
        step.reply
    }

    fn call(&mut self, function: u128, invocation: Invocation, inputs: i32) -> MapReply {
        let call_type = if inputs == 1 { CallType::Unary } else { CallType::Map };
        self.call_of(call_type, function, invocation, inputs)
    }

    fn call_of(
        &mut self,
        call_type: CallType,
        function: u128,
        invocation: Invocation,
        inputs: i32,
    ) -> MapReply {
        let request = MapRequest {
            function_id: FunctionId::from_bits(function),
            call_type,
            invocation,
            parent_input: None,
            inputs: (0..inputs)
                .map(|idx| NewInput { idx, group: 0, input: Bytes::from(format!("in {idx}")) })
                .collect(),
            return_exceptions: false,
        };
        let step = self.engine.map(request, self.now).unwrap();
        self.take(step)
    }

    /// The containers that were asked for since the last time.
    fn started(&mut self) -> Vec<TaskId> {
        let mut tasks = Vec::new();
        self.effects.retain(|effect| match effect {
            Effect::StartContainer { task, .. } => {
                tasks.push(*task);
                false
            }
            _ => true,
        });
        tasks
    }

    fn stopped(&mut self) -> Vec<(TaskId, StopHow)> {
        let mut tasks = Vec::new();
        self.effects.retain(|effect| match effect {
            Effect::StopContainer { task, how, .. } => {
                tasks.push((*task, *how));
                false
            }
            _ => true,
        });
        tasks
    }

    fn poll(&mut self, task: TaskId, key: u64) -> Claim {
        let step = self.engine.poll_inputs(PollRequest { task, key, max: 10 }, self.now).unwrap();
        self.take(step)
    }

    fn claim(&mut self, task: TaskId, key: u64) -> Vec<(InputId, u32)> {
        match self.poll(task, key) {
            Claim::Inputs(inputs) => inputs.iter().map(|i| (i.input_id, i.retry_count)).collect(),
            other => panic!("{other:?}"),
        }
    }

    fn put(&mut self, task: TaskId, input: (InputId, u32), status: ResultStatus) -> OutputFate {
        let output = NewOutput {
            input_id: input.0,
            status,
            result: Bytes::from_static(b"result"),
            retry_count: input.1,
            started: None,
        };
        let step = self.engine.put_outputs(task, vec![output], self.now).unwrap();
        self.take(step)[0]
    }

    fn exit(&mut self, task: TaskId, oom: bool) {
        let exit = ContainerExit {
            oom,
            code: Some(1),
            signal: None,
            cause: ExitCause::Program,
            text: String::new(),
        };
        let step = self.engine.container_event(task, ContainerEvent::Exited(exit), self.now);
        self.take(step);
    }

    fn pass(&mut self, ms: u64) {
        let end = self.now.plus_ms(ms);
        while let Some(at) = self.engine.next_deadline().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            let step = self.engine.tick(self.now);
            self.take(step);
        }
        self.now = end;
    }

    fn outputs(&self, reply: &MapReply) -> Vec<OutputRow> {
        let call = calls::keys::split(&reply.call_id).key;
        calls::outputs(self.db.connection(), &OutputsQuery { call, after: 0, range: None, max: 100 }).unwrap()
    }

    fn statuses(&self, reply: &MapReply) -> Vec<ResultStatus> {
        self.outputs(reply).iter().map(|row| row.status).collect()
    }
}

#[test]
fn a_call_from_zero_to_its_result() {
    let mut s = Shell::new(&[function(1)]);
    let call = s.call(1, Invocation::Sync, 1);
    assert_eq!(s.grade, Grade::Written);
    let task = s.started()[0];
    let input = s.claim(task, 1)[0];
    assert!(s.effects.contains(&Effect::CurrentInput { task, current: Some((call.call_id, input.0)) }));
    assert_eq!(s.put(task, input, ResultStatus::Success), OutputFate::Published);
    assert!(s.effects.contains(&Effect::WakeCall(call.call_id)));
    assert_eq!(s.put(task, input, ResultStatus::Success), OutputFate::Stale);
    let poll = s.engine.poll_outputs(call.call_id, 0, Some((0, 0)), 10, s.now).unwrap();
    assert_eq!((poll.outputs.len(), poll.unfinished, poll.load), (1, 0, None));
    assert!(poll.outputs[0].row.is_some());
    assert!(
        s.engine.poll_outputs(call.call_id, poll.last_entry, None, 10, s.now).unwrap().outputs.is_empty()
    );
    let step = s.engine.clear_outputs(call.call_id, s.now);
    s.take(step);
    assert!(s.engine.poll_outputs(call.call_id, 0, None, 10, s.now).is_none());
    let view = calls::call_by_id(s.db.connection(), &call.call_id).unwrap().unwrap();
    assert_eq!((view.inputs, view.unfinished), (1, 0));
}

#[test]
fn what_nobody_waits_for_is_synced() {
    let mut s = Shell::new(&[function(1)]);
    s.call(1, Invocation::Async, 1);
    assert_eq!(s.grade, Grade::Synced);
    let task = s.started()[0];
    let input = s.claim(task, 1)[0];
    s.put(task, input, ResultStatus::Success);
    assert_eq!(s.grade, Grade::Synced);
}

#[test]
fn a_repeated_question_gets_the_same_answer_across_a_restart() {
    let conf = [function(1)];
    let mut s = Shell::new(&conf);
    let call = s.call(1, Invocation::Sync, 2);
    let task = s.started()[0];
    let first = s.claim(task, 11);
    assert_eq!(s.claim(task, 11), first);
    s.restart(&conf, &[task]);
    assert_eq!(s.claim(task, 11), first);
    s.put(task, first[0], ResultStatus::Success);
    assert_ne!(s.claim(task, 12), first);
    assert_eq!(s.engine.call_info(call.call_id).unwrap().running, 1);
}

#[test]
fn a_container_whose_slots_are_taken_is_given_again_what_it_missed() {
    let mut s = Shell::new(&[function(1)]);
    s.call(1, Invocation::Sync, 2);
    let task = s.started()[0];
    let first = s.claim(task, 1);
    assert!(matches!(s.poll(task, 2), Claim::Wait { until: Some(_) }));
    s.pass(1_000);
    assert_eq!(s.claim(task, 2), first);
}

#[test]
fn failures_are_retried_with_growing_delays_and_only_the_last_is_published() {
    let mut conf = function(1);
    conf.retry =
        RetryPolicy { retries: 2, backoff_coefficient: 2.0, initial_delay_ms: 1_000, max_delay_ms: 60_000 };
    let conf = [conf];
    let mut s = Shell::new(&conf);
    let call = s.call(1, Invocation::Sync, 1);
    let task = s.started()[0];
    let input = s.claim(task, 1)[0];
    assert_eq!(s.put(task, input, ResultStatus::Failure), OutputFate::Retried);
    assert!(matches!(s.poll(task, 2), Claim::Wait { .. }));
    s.pass(999);
    assert!(matches!(s.poll(task, 2), Claim::Wait { .. }));
    s.pass(1);
    let second = s.claim(task, 2)[0];
    assert_eq!(second, (input.0, 1));
    assert_eq!(s.put(task, input, ResultStatus::Success), OutputFate::Stale);
    assert_eq!(s.put(task, second, ResultStatus::Failure), OutputFate::Retried);
    s.restart(&conf, &[task]);
    assert!(matches!(s.poll(task, 3), Claim::Wait { .. }));
    s.pass(2_000);
    let third = s.claim(task, 3)[0];
    assert_eq!(s.put(task, third, ResultStatus::Failure), OutputFate::Published);
    assert_eq!(s.statuses(&call), [ResultStatus::Failure]);
    let view = calls::input_view(s.db.connection(), &input.0).unwrap().unwrap();
    let ends: Vec<_> = view.attempts.iter().map(|a| a.ended.map(|(_, end)| end)).collect();
    assert_eq!(ends, [Some(AttemptEnd::Retried), Some(AttemptEnd::Retried), None]);
}

#[test]
fn a_container_that_dies_is_replaced_without_counting_up_to_a_bound() {
    let mut s = Shell::new(&[function(1)]);
    let call = s.call(1, Invocation::Sync, 1);
    for n in 0..4 {
        let task = s.started()[0];
        assert_eq!(s.claim(task, n + 1)[0].1, 0);
        s.exit(task, false);
    }
    assert_eq!(s.statuses(&call), [ResultStatus::InternalFailure]);
    assert!(s.started().is_empty());
}

#[test]
fn a_web_request_is_never_tried_again_and_ends_with_its_server() {
    let mut conf = function(1);
    conf.retry = RetryPolicy { retries: 3, ..RetryPolicy::NEVER };
    let conf = [conf];
    let mut s = Shell::new(&conf);
    let web = |s: &mut Shell| s.call_of(CallType::Web, 1, Invocation::SyncLegacy, 1);

    let dies = web(&mut s);
    let task = s.started()[0];
    s.claim(task, 1);
    s.exit(task, false);
    assert_eq!(s.outputs(&dies)[0].status, ResultStatus::InternalFailure);

    let fails = web(&mut s);
    let task = s.started()[0];
    let input = s.claim(task, 1)[0];
    assert_eq!(s.put(task, input, ResultStatus::Failure), OutputFate::Published);
    assert_eq!(s.outputs(&fails)[0].status, ResultStatus::Failure);

    let (running, waiting) = (web(&mut s), web(&mut s));
    let input = s.claim(task, 2)[0];
    s.restart(&conf, &[task]);
    assert_eq!(s.outputs(&waiting)[0].status, ResultStatus::Terminated);
    assert_eq!(s.engine.cancelled_inputs(task), [input.0], "its container is told");
    s.put(task, input, ResultStatus::Success);
    assert_eq!(s.outputs(&running)[0].status, ResultStatus::Terminated);
}

#[test]
fn out_of_memory_has_its_own_result() {
    let mut s = Shell::new(&[function(1)]);
    let call = s.call(1, Invocation::Sync, 1);
    let task = s.started()[0];
    s.claim(task, 1);
    s.exit(task, true);
    assert_eq!(s.statuses(&call), [ResultStatus::Oom]);
}

#[test]
fn a_crash_loop_fails_what_waits_with_the_containers_own_result() {
    let mut s = Shell::new(&[function(1)]);
    let call = s.call(1, Invocation::Sync, 1);
    for _ in 0..3 {
        let task = s.started()[0];
        let step =
            s.engine.task_result(task, ResultStatus::Failure, Bytes::from_static(b"ImportError"), s.now);
        s.take(step);
        s.exit(task, false);
        s.pass(1_000);
    }
    let rows = s.outputs(&call);
    assert_eq!(rows[0].status, ResultStatus::Failure);
    assert_eq!(rows[0].body, ResultBody::Container(Bytes::from_static(b"ImportError")));
    assert!(s.started().is_empty());
    s.call(1, Invocation::Sync, 1);
    s.pass(30_000);
    assert_eq!(s.started().len(), 1);
}

#[test]
fn a_container_that_becomes_ready_and_dies_before_any_input_is_a_crash_loop_too() {
    let mut conf = function(1);
    conf.batch_max_size = 10;
    conf.batch_linger_ms = 600_000;
    let mut s = Shell::new(&[conf]);
    let call = s.call(1, Invocation::Sync, 1);
    for n in 0..3 {
        let task = s.started()[0];
        assert!(matches!(s.poll(task, n + 1), Claim::Wait { .. }));
        s.exit(task, false);
        s.pass(2_000);
    }
    assert_eq!(s.statuses(&call), [ResultStatus::InitFailure]);
}

#[test]
fn a_timeout_publishes_stops_and_fences() {
    let mut conf = function(1);
    conf.timeout_ms = 5_000;
    conf.max_concurrent_inputs = 2;
    let mut s = Shell::new(&[conf]);
    let call = s.call(1, Invocation::Sync, 2);
    let [task, second] = s.started()[..] else { panic!() };
    let slow = s.claim(task, 1)[0];
    s.pass(3_000);
    let other = s.claim(task, 2)[0];
    s.pass(2_000);
    assert_eq!(s.statuses(&call), [ResultStatus::Timeout]);
    assert!(matches!(s.stopped()[..], [(t, StopHow::Interrupt { .. })] if t == task));
    assert_eq!(s.put(task, slow, ResultStatus::Success), OutputFate::Stale);
    assert_eq!(s.put(task, other, ResultStatus::Success), OutputFate::Stale);
    assert!(matches!(s.poll(task, 3), Claim::KillSwitch));
    assert_eq!(s.claim(second, 1), [other]);
}

#[test]
fn cancelling_ends_what_waits_at_once_and_kills_what_does_not_listen() {
    let conf = [function(1)];
    let mut s = Shell::new(&conf);
    let call = s.call(1, Invocation::Sync, 3);
    let task = s.started()[0];
    let running = s.claim(task, 1)[0];
    let step = s.engine.cancel(call.call_id, false, s.now).unwrap();
    s.take(step);
    assert_eq!(s.statuses(&call), [ResultStatus::Terminated; 2]);
    assert!(s.effects.contains(&Effect::WakeHeartbeat(task)));
    assert_eq!(s.engine.cancelled_inputs(task), [running.0]);
    s.restart(&conf, &[task]);
    assert_eq!(s.engine.cancelled_inputs(task), [running.0]);
    s.pass(EngineConf::default().cancel_grace_ms);
    assert_eq!(s.stopped(), [(task, StopHow::Kill)]);
    assert_eq!(s.statuses(&call), [ResultStatus::Terminated; 3]);
    s.exit(task, false);
    assert_eq!(s.engine.sizes().1, 0);
}

#[test]
fn a_result_that_races_a_cancellation_loses() {
    let mut s = Shell::new(&[function(1)]);
    let call = s.call(1, Invocation::Sync, 1);
    let task = s.started()[0];
    let input = s.claim(task, 1)[0];
    let step = s.engine.cancel(call.call_id, false, s.now).unwrap();
    s.take(step);
    assert_eq!(s.put(task, input, ResultStatus::Success), OutputFate::Published);
    assert_eq!(s.statuses(&call), [ResultStatus::Terminated]);
    assert!(matches!(s.poll(task, 2), Claim::Wait { .. }));
}

#[test]
fn a_batch_lingers_and_takes_one_slot() {
    let mut conf = function(1);
    conf.batch_max_size = 3;
    conf.batch_linger_ms = 100;
    let mut s = Shell::new(&[conf]);
    let call = s.call(1, Invocation::Sync, 2);
    let task = s.started()[0];
    assert!(matches!(s.poll(task, 1), Claim::Wait { until: Some(_) }));
    s.effects.clear();
    s.pass(100);
    assert!(s.effects.contains(&Effect::WakeTask(task)));
    let batch = s.claim(task, 1);
    assert_eq!(batch.len(), 2);
    for input in batch {
        s.put(task, input, ResultStatus::Success);
    }
    assert_eq!(s.statuses(&call).len(), 2);
}

#[test]
fn idle_containers_go_after_the_window_and_an_app_becomes_idle() {
    let mut s = Shell::new(&[function(1)]);
    s.call(1, Invocation::Sync, 1);
    let task = s.started()[0];
    let input = s.claim(task, 1)[0];
    s.put(task, input, ResultStatus::Success);
    assert!(matches!(s.poll(task, 2), Claim::Wait { .. }));
    s.effects.clear();
    s.pass(59_000);
    assert!(!s.effects.contains(&Effect::WakeTask(task)));
    s.pass(2_000);
    assert!(s.effects.contains(&Effect::WakeTask(task)));
    assert!(matches!(s.poll(task, 2), Claim::KillSwitch));
    s.exit(task, false);
    assert!(s.effects.contains(&Effect::AppIdle(AppId::from_bits(APP))));
    assert!(s.engine.app_is_idle(AppId::from_bits(APP)));
}

#[test]
fn stopping_an_app_ends_its_calls_and_refuses_more() {
    let mut s = Shell::new(&[function(1)]);
    let call = s.call(1, Invocation::Sync, 2);
    let [task, starting] = s.started()[..] else { panic!() };
    s.claim(task, 1);
    let step = s.engine.stop_app(AppId::from_bits(APP), s.now);
    s.take(step);
    assert_eq!(s.statuses(&call), [ResultStatus::Terminated; 2]);
    let stopped = s.stopped();
    assert!(
        matches!(stopped[..], [(a, StopHow::Interrupt { .. }), (b, StopHow::Kill)] if (a, b) == (task, starting))
    );
    s.exit(starting, false);
    assert!(!s.engine.app_is_idle(AppId::from_bits(APP)));
    let request = MapRequest {
        function_id: FunctionId::from_bits(1),
        call_type: CallType::Unary,
        invocation: Invocation::Sync,
        parent_input: None,
        inputs: Vec::new(),
        return_exceptions: false,
    };
    assert!(s.engine.map(request, s.now).is_err());
    s.exit(task, false);
    assert!(s.effects.contains(&Effect::AppIdle(AppId::from_bits(APP))));
}

#[test]
fn a_new_generation_replaces_containers_when_they_are_done() {
    let mut conf = function(1);
    let mut s = Shell::new(&[conf.clone()]);
    let call = s.call(1, Invocation::Sync, 2);
    let old = s.started()[0];
    let input = s.claim(old, 1)[0];
    conf.generation = 2;
    let step = s.engine.put_function(conf, s.now);
    s.take(step);
    assert_eq!(s.put(old, input, ResultStatus::Success), OutputFate::Published);
    assert!(matches!(s.poll(old, 2), Claim::KillSwitch));
    s.pass(100);
    let new = *s.started().last().unwrap();
    let input = s.claim(new, 1)[0];
    s.put(new, input, ResultStatus::Success);
    assert_eq!(s.statuses(&call), [ResultStatus::Success; 2]);
}

#[test]
fn a_drained_container_that_waits_for_more_beside_its_work_is_told_at_once() {
    let mut conf = function(1);
    conf.max_concurrent_inputs = 5;
    let mut s = Shell::new(&[conf.clone()]);
    s.call(1, Invocation::Sync, 1);
    let task = s.started()[0];
    s.claim(task, 1);
    assert!(matches!(s.poll(task, 2), Claim::Wait { .. }));
    s.effects.clear();
    conf.generation = 2;
    let step = s.engine.put_function(conf, s.now);
    s.take(step);
    assert!(s.effects.contains(&Effect::WakeTask(task)));
    assert!(matches!(s.poll(task, 3), Claim::KillSwitch));
}

#[test]
fn impossible_functions_fail_at_once_and_say_why() {
    let mut large = function(1);
    large.resources.memory_mib = 1 << 20;
    let mut gpu = function(2);
    gpu.unsatisfiable = Some("no H100 here".into());
    let mut s = Shell::new(&[large, gpu]);
    let call = s.call(1, Invocation::Sync, 1);
    let ResultBody::Synthesised(text) = &s.outputs(&call)[0].body else { panic!() };
    assert!(text.contains("1048576 MiB") && text.contains("4096 MiB"), "{text}");
    let call = s.call(2, Invocation::Sync, 1);
    assert_eq!(s.outputs(&call)[0].body, ResultBody::Synthesised("no H100 here".into()));
}

#[test]
fn chunks_are_kept_once_and_in_order() {
    let conf = [function(1)];
    let mut s = Shell::new(&conf);
    let call = s.call(1, Invocation::SyncLegacy, 1);
    let task = s.started()[0];
    s.claim(task, 1);
    let chunk = |n: u64| (n, Bytes::from(format!("item {n}")));
    for chunks in [vec![chunk(1), chunk(2)], vec![chunk(2), chunk(3)]] {
        let step = s.engine.append_data_out(task, call.call_id, chunks, s.now).unwrap();
        s.take(step);
    }
    let poll = s.engine.poll_data(call.call_id, Direction::Out, 1).unwrap();
    assert_eq!(poll.chunks, [chunk(2), chunk(3)]);
    assert!(!poll.ended);
    s.restart(&conf, &[task]);
    let poll = s.engine.poll_data(call.call_id, Direction::Out, 1).unwrap();
    assert_eq!((poll.last_index, poll.chunks.len()), (3, 0));
    let stored = calls::chunks(s.db.connection(), poll.call, Direction::Out, 1, 10).unwrap();
    assert_eq!(stored.iter().map(|c| c.index).collect::<Vec<_>>(), [2, 3]);
}

#[test]
fn a_pool_that_waits_for_its_own_caller_is_not_stuck() {
    let mut outer = function(1);
    outer.resources.memory_mib = 4_096;
    let mut inner = function(2);
    inner.resources.memory_mib = 1_024;
    let mut s = Shell::new(&[outer, inner]);
    s.call(1, Invocation::Sync, 1);
    let task = s.started()[0];
    s.claim(task, 1);
    s.call(2, Invocation::Sync, 1);
    assert!(s.started().is_empty());
    s.pass(5_000);
    assert_eq!(s.started().len(), 1);
}
