//! GPUs through the public interface: who gets which, and that nobody shares one, across restarts too.
#![allow(clippy::unwrap_used)]

mod support;

use bytes::Bytes;
use evoke_core::{EnvironmentId, FunctionId, GpuKind, Gpus, Resources, SeededEntropy, TaskId, UnixMs};
use evoke_engine::{
    CallType, ContainerEvent, ContainerExit, Effect, Engine, EngineConf, ExitCause, FunctionConf, Gpu,
    Invocation, Limited, Limits, MapRequest, NewInput, Reason, Step, WorkerCapacity, WorkerId,
};
use evoke_store::calls;
use evoke_store::{Db, Write};
use proptest::prelude::*;
use std::collections::BTreeMap;

const NOW: UnixMs = UnixMs(1_000_000);

fn function(n: u128, gpus: &[(u8, u32)]) -> FunctionConf {
    FunctionConf {
        resources: Resources { milli_cpu: 10, memory_mib: 1, gpus: Gpus::NONE },
        gpus: gpus.iter().map(|(kind, count)| Gpus { kind: GpuKind(*kind), count: *count }).collect(),
        ..support::function(n)
    }
}

/// Two of kind 0, one of kind 1.
fn inventory() -> Vec<Gpu> {
    let gpu = |name: &str, kind| Gpu { name: name.to_owned(), kind: GpuKind(kind) };
    vec![gpu("a", 0), gpu("b", 1), gpu("c", 0)]
}

struct Machine {
    engine: Engine,
    db: Db,
    functions: Vec<FunctionConf>,
    boots: u64,
    /// What the containers that are not gone were given.
    owned: BTreeMap<TaskId, Vec<String>>,
}

impl Machine {
    fn new(functions: Vec<FunctionConf>) -> Self {
        let mut machine = Machine {
            engine: Engine::new(EngineConf::default(), Box::new(SeededEntropy::new(5))),
            db: Db::open_in_memory().unwrap(),
            functions,
            boots: 0,
            owned: BTreeMap::new(),
        };
        machine.boot();
        machine
    }

    /// A new server; containers live on.
    fn boot(&mut self) {
        self.boots += 1;
        self.engine = Engine::new(EngineConf::default(), Box::new(SeededEntropy::new(self.boots)));
        let total = Resources { milli_cpu: 64_000, memory_mib: 4_096, gpus: Gpus::NONE };
        let capacity = WorkerCapacity::of(WorkerId(0), total);
        let step = self.engine.put_worker(capacity, inventory(), NOW);
        self.take(step);
        for conf in self.functions.clone() {
            let step = self.engine.put_function(conf, NOW);
            self.take(step);
        }
        let recovered = calls::recover(self.db.connection()).unwrap();
        let step = self.engine.recover(recovered, NOW);
        self.take(step);
        let alive: Vec<TaskId> = self.owned.keys().copied().collect();
        let step = self.engine.adopt(&alive, NOW);
        self.take(step);
    }

    fn take<T>(&mut self, step: Step<T>) -> T {
        let writes: Vec<Write> = step.writes.into_iter().map(Write::from).collect();
        for result in self.db.commit(&[&writes]) {
            result.unwrap();
        }
        for effect in step.effects {
            if let Effect::StartContainer { task, gpus, .. } = effect {
                let taken: Vec<_> = self.owned.values().flatten().collect();
                assert!(gpus.iter().all(|gpu| !taken.contains(&gpu)), "{gpus:?} of {taken:?}");
                self.owned.insert(task, gpus);
            }
        }
        step.reply
    }

    fn call(&mut self, function: u128) {
        let request = MapRequest {
            function_id: FunctionId::from_bits(function),
            call_type: CallType::Unary,
            invocation: Invocation::Async,
            parent_input: None,
            inputs: vec![NewInput { idx: 0, group: 0, input: Bytes::from_static(b"in") }],
            return_exceptions: false,
        };
        let step = self.engine.map(request, NOW).unwrap();
        self.take(step);
    }

    /// A container is gone, through no fault of its own.
    fn end(&mut self, task: TaskId) {
        self.owned.remove(&task);
        let exit = ContainerExit {
            oom: false,
            code: None,
            signal: None,
            cause: ExitCause::WorkerLost,
            text: String::new(),
        };
        let step = self.engine.container_event(task, ContainerEvent::Exited(exit), NOW);
        self.take(step);
    }

    fn all(&self) -> Vec<String> {
        let mut all: Vec<String> = self.owned.values().flatten().cloned().collect();
        all.sort();
        all
    }
}

#[test]
fn the_most_wanted_kind_that_is_free_is_taken() {
    let mut machine = Machine::new(vec![function(1, &[(1, 1), (0, 1)])]);
    machine.call(1);
    assert_eq!(machine.all(), ["b"]);
}

#[test]
fn a_fallback_is_taken_where_the_wanted_kind_is_not_free() {
    let mut machine = Machine::new(vec![function(1, &[(1, 1)]), function(2, &[(1, 1), (0, 2)])]);
    machine.call(1);
    machine.call(2);
    assert_eq!(machine.all(), ["a", "b", "c"]);
}

#[test]
fn what_is_owned_stays_owned_over_a_restart_and_is_given_back_at_the_end() {
    let mut machine = Machine::new(vec![function(1, &[(0, 2)]), function(2, &[(0, 1)])]);
    machine.call(1);
    assert_eq!(machine.all(), ["a", "c"]);
    machine.boot();
    machine.call(2);
    assert_eq!(machine.owned.len(), 1, "{:?}", machine.owned);
    let first = *machine.owned.keys().next().unwrap();
    machine.end(first);
    assert!(!machine.owned.is_empty(), "what waited has its turn");
}

#[test]
fn an_environment_keeps_to_its_limits() {
    let environment = EnvironmentId::from_bits(9);
    let inside = |n, gpus: &[_]| FunctionConf { environment_id: Some(environment), ..function(n, gpus) };
    let outside = function(5, &[]);
    let functions = vec![inside(1, &[]), inside(2, &[(0, 2), (1, 1)]), inside(3, &[(1, 1)]), outside];
    let mut machine = Machine::new(functions);
    let limit = |machine: &mut Machine, containers_max, gpus_max| {
        let step = machine.engine.put_limits(environment, Limits { containers_max, gpus_max }, NOW);
        machine.take(step);
    };
    limit(&mut machine, Some(2), Some(1));
    // Two of the wanted kind are more than may be had; one of the other is not.
    machine.call(2);
    assert_eq!(machine.all(), ["b"]);
    machine.call(1);
    machine.call(5);
    assert_eq!(machine.owned.len(), 3, "the limit is the environment's own");
    machine.call(3);
    assert_eq!(machine.owned.len(), 3);
    let reasons = machine.engine.reasons(FunctionId::from_bits(3));
    let full = Reason::EnvironmentLimit { of: Limited::Containers, max: 2, taken: 2, waiting: 1 };
    assert_eq!(reasons.last().unwrap().reason, full);
    limit(&mut machine, Some(3), Some(1));
    assert_eq!(machine.owned.len(), 3);
    let reasons = machine.engine.reasons(FunctionId::from_bits(3));
    let gpus = Reason::EnvironmentLimit { of: Limited::Gpus, max: 1, taken: 1, waiting: 1 };
    assert_eq!(reasons.last().unwrap().reason, gpus);
    let first = machine.owned.iter().find(|(_, gpus)| !gpus.is_empty()).map(|(task, _)| *task).unwrap();
    limit(&mut machine, None, None);
    machine.end(first);
    assert!(machine.all().contains(&"b".to_owned()), "what waited has its turn: {:?}", machine.owned);
}

#[derive(Debug, Clone)]
enum Act {
    Call(u128),
    End(usize),
    Restart,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (1u128..=4).prop_map(Act::Call),
        3 => (0usize..4).prop_map(Act::End),
        1 => Just(Act::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// The assertion is in `take`.
    #[test]
    fn no_two_containers_have_one_gpu(acts in proptest::collection::vec(act(), 1..60)) {
        let functions =
            vec![function(1, &[(0, 1)]), function(2, &[(0, 2)]), function(3, &[(1, 1), (0, 1)]), function(4, &[])];
        let mut machine = Machine::new(functions);
        for act in acts {
            match act {
                Act::Call(function) => machine.call(function),
                Act::End(n) => {
                    let task = machine.owned.keys().nth(n).copied();
                    if let Some(task) = task {
                        machine.end(task);
                    }
                }
                Act::Restart => machine.boot(),
            }
        }
    }
}
