//! Requests that go to containers' own servers.
// Helpers of tests may fail a test as well as the tests themselves.
#![allow(clippy::unwrap_used)]

mod support;

use bytes::Bytes;
use evoke_core::{FunctionId, Gpus, Resources, SeededEntropy, TaskId, UnixMs};
use evoke_engine::{
    CallType, Claim, ContainerEvent, ContainerExit, Effect, Engine, EngineConf, ExitCause, FunctionConf,
    Invocation, LeaseEnd, LeaseId, MapRequest, NewInput, PollRequest, Step, StopHow, WorkerCapacity,
    WorkerId,
};
use support::function;

fn served() -> FunctionId {
    FunctionId::from_bits(1)
}

struct Machine {
    engine: Engine,
    now: UnixMs,
    started: Vec<TaskId>,
    stopped: Vec<(TaskId, StopHow)>,
    leased: Vec<(LeaseId, Result<TaskId, String>)>,
    woken: Vec<TaskId>,
}

impl Machine {
    fn new(conf: FunctionConf) -> Self {
        let engine = Engine::new(EngineConf::default(), Box::new(SeededEntropy::new(3)));
        let now = UnixMs(1_000_000);
        let mut machine =
            Self { engine, now, started: vec![], stopped: vec![], leased: vec![], woken: vec![] };
        let resources = Resources { milli_cpu: 4_000, memory_mib: 8_192, gpus: Gpus::NONE };
        let step = machine.engine.put_worker(WorkerCapacity::of(WorkerId(0), resources), vec![], now);
        machine.take(step);
        let step = machine.engine.put_function(conf, now);
        machine.take(step);
        let step = machine.engine.adopt(&[], now);
        machine.take(step);
        machine
    }

    fn take<T>(&mut self, step: Step<T>) -> T {
        for effect in step.effects {
            match effect {
                Effect::StartContainer { task, .. } => self.started.push(task),
                Effect::StopContainer { task, how, .. } => self.stopped.push((task, how)),
                Effect::Leased { lease, to } => self.leased.push((lease, to)),
                Effect::WakeTask(task) => self.woken.push(task),
                _ => {}
            }
        }
        step.reply
    }

    fn lease(&mut self) -> (LeaseId, Option<TaskId>) {
        let step = self.engine.lease(served(), self.now).unwrap();
        self.take(step)
    }

    fn end(&mut self, lease: LeaseId) {
        let step = self.engine.end_lease(lease, self.now);
        self.take(step);
    }

    fn ready(&mut self, task: TaskId) {
        let step = self.engine.server_ready(task, self.now);
        self.take(step);
    }

    fn poll(&mut self, task: TaskId) -> Claim {
        let step = self.engine.poll_inputs(PollRequest { task, key: 0, max: 1 }, self.now).unwrap();
        self.take(step)
    }

    fn pass(&mut self, ms: u64) {
        self.now = self.now.plus_ms(ms);
        while self.engine.next_deadline().is_some_and(|at| at <= self.now) {
            let step = self.engine.tick(self.now);
            self.take(step);
        }
    }

    fn exit(&mut self, task: TaskId) {
        let exit = ContainerExit {
            oom: false,
            code: Some(1),
            signal: None,
            cause: ExitCause::Program,
            text: String::new(),
        };
        let step = self.engine.container_event(task, ContainerEvent::Exited(exit), self.now);
        self.take(step);
    }
}

fn server(slots: u32) -> FunctionConf {
    FunctionConf {
        is_server: true,
        max_concurrent_inputs: slots,
        target_concurrent_inputs: slots,
        ..function(1)
    }
}

#[test]
fn a_request_waits_for_its_container_and_the_container_for_its_requests() {
    let mut m = Machine::new(server(2));
    let (first, none) = m.lease();
    assert_eq!(none, None);
    let task = m.started[0];
    m.ready(task);
    assert_eq!(m.leased, [(first, Ok(task))]);
    let (second, at_once) = m.lease();
    assert_eq!(at_once, Some(task), "a free slot is given with the answer");
    assert_eq!(m.leased.len(), 1);
    let info = m.engine.pool_info(served()).unwrap();
    assert_eq!((info.running_inputs, info.headroom), (2, 0));
    m.pass(200_000);
    assert_eq!(m.stopped, [], "what works is not idle, however long it works");
    m.end(first);
    m.end(second);
    m.pass(61_000);
    assert_eq!(m.stopped.len(), 1, "an idle server ends by an interrupt, because it asks for nothing");
    assert!(matches!(m.stopped[0], (stopped, StopHow::Interrupt { .. }) if stopped == task));
}

#[test]
fn requests_beyond_the_slots_start_more_containers() {
    let mut m = Machine::new(server(1));
    let leases: Vec<LeaseId> = (0..3).map(|_| m.lease().0).collect();
    m.pass(20);
    assert_eq!(m.started.len(), 3);
    for task in m.started.clone() {
        m.ready(task);
    }
    let mut tasks: Vec<TaskId> = m.leased.iter().map(|(_, to)| to.clone().unwrap()).collect();
    tasks.dedup();
    assert_eq!(tasks.len(), 3, "each has one of its own");
    assert_eq!(m.leased.iter().map(|(lease, _)| *lease).collect::<Vec<_>>(), leases, "in their order");
}

#[test]
fn a_replaced_container_finishes_its_requests_first() {
    let mut m = Machine::new(FunctionConf { is_server: false, ..server(10) });
    let (lease, _) = m.lease();
    let task = m.started[0];
    assert!(matches!(m.poll(task), Claim::Wait { .. }), "its requests are not for its own loop");
    assert_eq!(m.leased, [(lease, Ok(task))]);
    let newer = FunctionConf { is_server: false, generation: 2, ..server(10) };
    let step = m.engine.put_function(newer, m.now);
    m.take(step);
    assert!(matches!(m.poll(task), Claim::Wait { .. }), "it goes on until they are over");
    let (next, waits) = m.lease();
    assert_eq!(waits, None, "new requests go to new code");
    m.end(lease);
    assert!(m.woken.contains(&task));
    assert!(matches!(m.poll(task), Claim::KillSwitch));
    m.end(next);
}

#[test]
fn those_who_wait_learn_that_there_is_no_hope() {
    let mut m = Machine::new(server(1));
    let (lease, _) = m.lease();
    for n in 0..3 {
        m.pass(40_000);
        m.exit(m.started[n]);
    }
    assert!(matches!(&m.leased[..], [(refused, Err(_))] if *refused == lease), "{:?}", m.leased);
    let (lease, _) = m.lease();
    let step = m.engine.stop_app(evoke_core::AppId::from_bits(support::APP), m.now);
    m.take(step);
    assert!(m.leased.iter().any(|(refused, to)| *refused == lease && to.is_err()));
}

#[test]
fn inputs_and_requests_share_the_slots_of_a_container() {
    let mut m = Machine::new(FunctionConf {
        is_server: false,
        autoscaler: evoke_engine::Autoscaler { max: Some(1), ..function(1).autoscaler },
        ..server(1)
    });
    let put = |m: &mut Machine| {
        let map = MapRequest {
            function_id: served(),
            call_type: CallType::Web,
            invocation: Invocation::SyncLegacy,
            parent_input: None,
            inputs: vec![NewInput { idx: 0, group: 0, input: Bytes::from_static(b"in") }],
            return_exceptions: false,
        };
        let step = m.engine.map(map, m.now).unwrap();
        m.take(step).call_id
    };
    let call = put(&mut m);
    let task = m.started[0];
    let Claim::Inputs(inputs) = m.poll(task) else { panic!("the input was not given out") };
    assert_eq!(inputs.len(), 1);
    let (lease, at_once) = m.lease();
    assert_eq!(at_once, None, "the input has the slot");
    let step = m.engine.cancel(call, true, m.now).unwrap();
    m.take(step);
    m.exit(task);
    m.pass(10);
    let task = *m.started.last().unwrap();
    assert!(matches!(m.poll(task), Claim::Wait { .. }));
    assert_eq!(m.leased.last(), Some(&(lease, Ok(task))));
    put(&mut m);
    assert!(matches!(m.poll(task), Claim::Wait { .. }), "the request has the slot");
    m.woken.clear();
    m.end(lease);
    assert!(m.woken.contains(&task));
    assert!(matches!(m.poll(task), Claim::Inputs(_)));
}

#[test]
fn a_request_that_does_not_end_takes_its_container_along() {
    let mut m = Machine::new(server(2));
    let (lease, _) = m.lease();
    let task = m.started[0];
    m.ready(task);
    let step = m.engine.stop_leased(lease, LeaseEnd::TimedOut, m.now);
    m.take(step);
    assert!(matches!(m.stopped[..], [(stopped, StopHow::Interrupt { .. })] if stopped == task));
    assert_eq!(m.lease().1, None, "nothing more is given to it");
}

#[test]
fn a_container_that_cannot_be_reached_gets_no_more_requests() {
    let mut m = Machine::new(server(2));
    let (lease, _) = m.lease();
    let task = m.started[0];
    m.ready(task);
    let step = m.engine.shun_leased(lease, m.now);
    m.take(step);
    m.end(lease);
    let (_, at_once) = m.lease();
    assert_eq!(at_once, None);
}
