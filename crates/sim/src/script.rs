//! What one seed consists of: functions, machines, clients and how bad the world is.

use crate::random::Random;
use evoke_core::{AppId, DefinitionId, EnvironmentId, FunctionId, GpuKind, Gpus, Resources};
use evoke_engine::{
    Autoscaler, EngineConf, FunctionConf, Gpu, Limits, RetryPolicy, WorkerCapacity, WorkerId,
};

/// What an input makes its container do; the first byte of its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Behaviour {
    Succeeds = 0,
    Fails = 1,
    FailsOnce = 2,
    KillsContainer = 3,
    KillsContainerOnce = 4,
    Hangs = 5,
    OutOfMemory = 6,
}

impl Behaviour {
    pub(crate) fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Behaviour::Fails,
            2 => Behaviour::FailsOnce,
            3 => Behaviour::KillsContainer,
            4 => Behaviour::KillsContainerOnce,
            5 => Behaviour::Hangs,
            6 => Behaviour::OutOfMemory,
            _ => Behaviour::Succeeds,
        }
    }
}

/// One step of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    /// Starts the call.
    Map { map: bool, nobody_waits: bool, inputs: u32 },
    /// Adds inputs.
    Put(u32),
    /// Says that there are no more.
    Finish,
    /// Does nothing for so many milliseconds.
    Sleep(u64),
    /// Waits for all outputs.
    PollAll,
    /// Cancels the call.
    Cancel { terminate: bool },
    /// Is done with the call.
    Clear,
}

/// A function and its bad habits.
#[derive(Debug, Clone)]
pub(crate) struct SimFunction {
    pub(crate) conf: FunctionConf,
    /// Of a thousand starts so many fail while there are faults.
    pub(crate) failing_starts: u64,
    /// All starts fail, always.
    pub(crate) broken: bool,
    /// How long a start takes at most.
    pub(crate) start_ms: u64,
    /// How long an input takes at most.
    pub(crate) run_ms: u64,
}

/// One seed's world.
#[derive(Debug)]
pub(crate) struct Script {
    pub(crate) conf: EngineConf,
    pub(crate) functions: Vec<SimFunction>,
    pub(crate) workers: Vec<WorkerCapacity>,
    /// What the environment of all functions may have.
    pub(crate) limits: Limits,
    /// The GPUs of all machines of this world.
    pub(crate) gpus: Vec<Gpu>,
    /// For each client the function it calls, when it starts, and what it does.
    pub(crate) clients: Vec<(usize, u64, Vec<Op>)>,
    /// Until then there are faults.
    pub(crate) faults_end_ms: u64,
    pub(crate) crashes: u64,
    pub(crate) worker_losses: u64,
    pub(crate) jumps: u64,
    pub(crate) redeploys: u64,
    /// Times somebody stops a container.
    pub(crate) task_stops: u64,
    pub(crate) stops_app: bool,
    /// Of a thousand answers so many are lost while there are faults.
    pub(crate) lost_answers: u64,
    /// Of a thousand runs so many end with the container's sudden death while there are faults.
    pub(crate) sudden_deaths: u64,
}

impl Script {
    pub(crate) fn new(random: &mut Random) -> Self {
        let calm = random.permille(150);
        let functions: Vec<_> = (0..random.between(1, 3)).map(|n| function(n, calm, random)).collect();
        let workers = (0..random.between(1, 2)).map(|n| worker(n as u32, random)).collect();
        let clients = (0..random.between(1, 7)).map(|_| client(functions.len(), random)).collect();
        let some = |random: &mut Random, max: u64| if calm { 0 } else { random.between(0, max) };
        let faults_end_ms = random.between(5_000, 60_000);
        Self {
            limits: limits(faults_end_ms),
            conf: EngineConf {
                unfinished_inputs_per_call_max: random.between(4, 40) as usize,
                outputs_window: random.between(1, 8) as usize,
                ended_calls_kept: random.between(0, 3) as usize,
                payload_cache_bytes: random.pick(&[0, 1_000, 1 << 20]),
                idle_map_ms: 60_000,
                placement_timeout_ms: 60_000,
                stop_grace_ms: 5_000,
                ..EngineConf::default()
            },
            functions,
            workers,
            gpus: gpus(random),
            clients,
            faults_end_ms,
            crashes: some(random, 4),
            worker_losses: some(random, 2),
            jumps: some(random, 2),
            redeploys: some(random, 2),
            task_stops: some(random, 8),
            stops_app: !calm && random.permille(60),
            lost_answers: some(random, 150),
            sudden_deaths: some(random, 40),
        }
    }
}

fn function(n: u64, calm: bool, random: &mut Random) -> SimFunction {
    let min = random.pick(&[0, 0, 0, 1, 2]);
    let max_concurrent = random.pick(&[1, 1, 1, 3]);
    let batch = random.pick(&[0, 0, 0, 3]);
    SimFunction {
        conf: FunctionConf {
            id: FunctionId::from_bits(u128::from(n) + 1),
            app_id: AppId::from_bits(1),
            environment_id: Some(environment()),
            definition_id: DefinitionId::from_bits(u128::from(n) + 1),
            generation: 1,
            autoscaler: Autoscaler {
                min,
                max: random.pick(&[None, Some(min.max(1)), Some(min + 3)]),
                buffer: random.pick(&[0, 0, 1]),
                scaledown_window_ms: random.pick(&[500, 5_000, 60_000]),
            },
            max_concurrent_inputs: max_concurrent,
            target_concurrent_inputs: random.between(1, u64::from(max_concurrent)) as u32,
            batch_max_size: batch,
            batch_linger_ms: random.between(0, 300),
            single_use: random.permille(100),
            max_inputs_per_container: random.pick(&[None, None, Some(2)]),
            retry: RetryPolicy {
                retries: random.between(0, 3) as u32,
                backoff_coefficient: 2.0,
                initial_delay_ms: random.pick(&[0, 100, 1_000]),
                max_delay_ms: 5_000,
            },
            timeout_ms: random.pick(&[3_000, 10_000, 300_000]),
            startup_timeout_ms: random.pick(&[5_000, 30_000]),
            is_generator: random.permille(100),
            is_server: false,
            resources: Resources {
                milli_cpu: random.pick(&[125, 500, 1_000]),
                memory_mib: random.pick(&[128, 512]),
                gpus: Gpus::NONE,
            },
            gpus: random
                .pick::<&[(u8, u32)]>(&[&[], &[], &[(0, 1)], &[(1, 2), (0, 1)]])
                .iter()
                .map(gpu_need)
                .collect(),
            unsatisfiable: random.permille(20).then(|| "there is no such device".to_owned()),
        },
        failing_starts: if calm { 0 } else { random.pick(&[0, 0, 100, 500]) },
        broken: random.permille(40),
        start_ms: random.pick(&[50, 500, 4_000]),
        run_ms: random.pick(&[5, 100, 2_000]),
    }
}

fn worker(n: u32, random: &mut Random) -> WorkerCapacity {
    let total = Resources {
        milli_cpu: random.pick(&[1_000, 2_000, 4_000]),
        memory_mib: random.pick(&[512, 1_024, 4_096]),
        gpus: Gpus::NONE,
    };
    let mut capacity = WorkerCapacity::of(WorkerId(n), total);
    capacity.cpu_oversubscription_percent = random.pick(&[100, 400]);
    capacity
}

/// The environment of all functions.
pub(crate) fn environment() -> EnvironmentId {
    EnvironmentId::from_bits(1)
}

/// An environment's limits, in some worlds: enough for the neediest function alone.
fn limits(drawn: u64) -> Limits {
    Limits {
        containers_max: (drawn % 4 == 0).then_some(1 + (drawn / 4 % 3) as u32),
        gpus_max: (drawn % 3 == 0).then_some(2 + (drawn / 3 % 2) as u32),
    }
}

fn gpu_need((kind, count): &(u8, u32)) -> Gpus {
    Gpus { kind: GpuKind(*kind), count: *count }
}

/// A few GPUs of two kinds.
fn gpus(random: &mut Random) -> Vec<Gpu> {
    let count = random.between(0, 5);
    (0..count).map(|n| Gpu { name: format!("gpu-{n}"), kind: GpuKind(random.between(0, 1) as u8) }).collect()
}

fn client(functions: usize, random: &mut Random) -> (usize, u64, Vec<Op>) {
    let mut ops = match random.between(0, 5) {
        0 | 1 => vec![Op::Map { map: false, nobody_waits: false, inputs: 1 }, Op::PollAll, Op::Clear],
        2 => vec![
            Op::Map { map: false, nobody_waits: true, inputs: random.between(0, 1) as u32 },
            Op::Put(1),
            Op::Sleep(random.between(0, 30_000)),
            Op::PollAll,
        ],
        3 => {
            let mut ops =
                vec![Op::Map { map: true, nobody_waits: false, inputs: random.between(0, 1) as u32 }];
            for _ in 0..random.between(0, 4) {
                ops.push(Op::Put(random.between(1, 6) as u32));
            }
            ops.extend([Op::PollAll, Op::Clear]);
            ops
        }
        4 => vec![
            Op::Map { map: true, nobody_waits: true, inputs: 0 },
            Op::Put(random.between(1, 8) as u32),
            Op::Finish,
            Op::Sleep(random.between(0, 10_000)),
            Op::PollAll,
        ],
        // A client that vanishes.
        _ => {
            vec![Op::Map { map: true, nobody_waits: false, inputs: 1 }, Op::Put(random.between(1, 6) as u32)]
        }
    };
    if random.permille(200) {
        let at = random.between(1, ops.len() as u64) as usize;
        let terminate = random.permille(300);
        ops.splice(at..at, [Op::Sleep(random.between(0, 4_000)), Op::Cancel { terminate }]);
    }
    (random.between(0, functions as u64 - 1) as usize, random.between(0, 20_000), ops)
}

/// A payload: what the input does, and random bytes behind it so that sizes differ.
pub(crate) fn payload(random: &mut Random) -> bytes::Bytes {
    let behaviour = match random.between(0, 99) {
        0..=69 => Behaviour::Succeeds,
        70..=77 => Behaviour::Fails,
        78..=85 => Behaviour::FailsOnce,
        86..=88 => Behaviour::KillsContainer,
        89..=92 => Behaviour::KillsContainerOnce,
        93..=95 => Behaviour::Hangs,
        _ => Behaviour::OutOfMemory,
    };
    let mut bytes = vec![behaviour as u8];
    bytes.resize(random.between(1, 400) as usize, 7);
    bytes.into()
}
