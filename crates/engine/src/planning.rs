//! Carrying out plans: containers are started where there is room, stopped where they are not needed, and
//! pools that find no room make some or wait.

use crate::engine::{Engine, Out};
use crate::pool::{Failure, Pool, Task};
use crate::request::ResultStatus;
use crate::step::Effect;
use crate::timers::Timer;
use bytes::Bytes;
use evoke_core::{FunctionId, Phase, Resources, StartPath, TaskId, UnixMs};
use evoke_sched::{
    Amounts, Candidate, FAIR_WAIT_MS, IdleContainer, NoPlace, PoolSnapshot, Reason, Worker, WorkerId,
    make_room, place, place_beyond, plan,
};
use evoke_store::calls::{CallWrite, StopState, TaskRow, TaskUsage};
use std::collections::{BTreeMap, BTreeSet};

/// After so long without any progress, and with nobody giving room, a waiting pool may have a container
/// beyond the machine's room.
const OVERCOMMIT_WAIT_MS: u64 = 2_000;

impl Engine {
    /// Plans one pool and carries the plan out.
    pub(crate) fn plan_pool(&mut self, function: FunctionId, now: UnixMs, out: &mut Out) {
        let Some(pool) = self.pools.get_mut(&function) else { return };
        if pool.stopped || pool.conf.as_ref().is_none_or(|conf| conf.unsatisfiable.is_some()) {
            return;
        }
        pool.planned = Some(now);
        let Some(snapshot) = self.snapshot(function) else { return };
        let decided = plan(&snapshot, now);
        if let Some(at) = decided.wake_at {
            self.timers.at_latest(Timer::Pool(function), at);
        }
        for (task, why) in decided.stop {
            self.drain_task(task, why, now, out);
        }
        if let (0, Some(why)) = (decided.start, decided.why) {
            self.note_pool(function, why, now);
        }
        for _ in 0..decided.start {
            if !self.start_one(function, decided.why, now, out) {
                break;
            }
        }
    }

    fn snapshot(&self, function: FunctionId) -> Option<PoolSnapshot> {
        let pool = self.pools.get(&function)?;
        let conf = pool.conf.as_ref()?;
        let mut snapshot = PoolSnapshot {
            autoscaler: conf.autoscaler,
            target_concurrency: conf.target_concurrent_inputs.max(1),
            batch_max_size: conf.batch_max_size,
            waiting: pool.waiting(),
            running: 0,
            starting: 0,
            busy: 0,
            idle: Vec::new(),
            failed_starts: pool.failed_starts,
            not_before: pool.not_before,
            typical_run_ms: pool.typical_run_ms,
            typical_start_ms: pool.typical_start_ms,
            // An input that has only just come has not waited for those before it.
            moved: pool.head_since().map_or(pool.moved, |since| since.max(pool.moved)),
            cores: self
                .workers
                .values()
                .map(|worker| worker.capacity.total.milli_cpu / 1000)
                .sum::<u32>()
                .max(1),
        };
        for task in serving(pool, &self.tasks) {
            if task.ready.is_none() {
                snapshot.starting += 1;
            } else if task.is_idle() {
                snapshot.idle.push(IdleContainer { task: task.id, since: task.idle_since });
            } else {
                snapshot.busy += 1;
                snapshot.running += task.handouts.len() as u32 + task.leases;
            }
        }
        Some(snapshot)
    }

    /// Starts one container if there is a place; whether there was.
    fn start_one(&mut self, function: FunctionId, why: Option<Reason>, now: UnixMs, out: &mut Out) -> bool {
        let Some(pool) = self.pools.get(&function) else { return false };
        let Some(conf) = &pool.conf else { return false };
        let (needs, environment) = (conf.needs(), conf.environment_id);
        let waiting = pool.waiting();
        let waited_ms = pool.waited_ms(now);
        let (needs, reached) = self.within_limits(environment, needs);
        if let Some(reached) = reached.filter(|_| needs.is_empty()) {
            if waiting > 0 {
                self.ask_for_a_share(function, environment, &reached, waited_ms, now, out);
            }
            self.wait_for_place(function, reached.reason(waiting), now);
            return false;
        }
        let fleet: Vec<Worker> = self.workers.values().copied().collect();
        let reason = match place_any(&fleet, &needs) {
            Ok((worker, need)) => {
                let start = Start { worker, need, overcommitted: false, why: why.unwrap_or(Reason::Asked) };
                return self.start_task(function, start, now, out);
            }
            Err(NoPlace::NeverFits) => {
                self.never_fits(function, &needs, now, out);
                return false;
            }
            Err(NoPlace::Full) if waiting > 0 => {
                self.ask_for_room(function, &fleet, &needs, waited_ms, now, out);
                let beyond = needs.iter().find_map(|need| Some((place_beyond(&fleet, need)?, *need)));
                if let Some((worker, need)) = beyond.filter(|_| waited_ms >= OVERCOMMIT_WAIT_MS) {
                    let why = Reason::Overcommit { waited_ms };
                    self.start_task(function, Start { worker, need, overcommitted: true, why }, now, out);
                    if let Some(pool) = self.pools.get_mut(&function) {
                        // Its clock starts again, so that the next one needs as long a wait.
                        pool.moved = now;
                    }
                    return false;
                }
                Reason::Full { waiting, waited_ms }
            }
            Err(NoPlace::Full) => Reason::Full { waiting, waited_ms },
            Err(NoPlace::StartsBusy) => Reason::StartsBusy { waiting },
            Err(NoPlace::NoWorkers) => Reason::NoWorkers { waiting },
        };
        self.wait_for_place(function, reason, now);
        false
    }

    /// A pool has found no place: it looks again when something changes.
    fn wait_for_place(&mut self, function: FunctionId, why: Reason, now: UnixMs) {
        self.blocked.insert(function);
        if self.pools.get(&function).is_some_and(|pool| !pool.queue.is_empty()) {
            // Patience runs out with time alone.
            self.timers.at_latest(Timer::Pool(function), now.plus_ms(FAIR_WAIT_MS));
        }
        self.note_pool(function, why, now);
    }

    /// Starts a container as decided; false where its devices are not free after all.
    fn start_task(&mut self, function: FunctionId, start: Start, now: UnixMs, out: &mut Out) -> bool {
        let Start { worker, need, overcommitted, why } = start;
        let Some(conf) = self.pools.get(&function).and_then(|pool| pool.conf.clone()) else { return false };
        let id = TaskId::new(now, self.entropy.as_mut());
        let Some(gpus) = self.devices.take(worker, need.gpus, id) else { return false };
        let reason = why.to_string();
        let task = Task {
            id,
            function,
            app: conf.app_id,
            definition: conf.definition_id,
            generation: conf.generation,
            worker,
            resources: need,
            gpus: gpus.clone(),
            overcommitted,
            queued: now,
            executed: None,
            ready: None,
            stop: StopState::Serving,
            stop_since: now,
            start_counted: false,
            handouts: BTreeMap::new(),
            running: BTreeSet::new(),
            leases: 0,
            shunned: false,
            taken: 0,
            idle_since: now,
            failure: None,
            unconfirmed: false,
            tagged: None,
        };
        out.write(CallWrite::Task(TaskRow {
            id,
            function_id: function,
            app_id: conf.app_id,
            definition_id: conf.definition_id,
            generation: conf.generation,
            worker: worker.0,
            reason: reason.clone(),
            start_path: StartPath::Plain,
            with: Bytes::new(),
            gpus: gpus.clone(),
            stop: StopState::Serving,
            phases: vec![(Phase::Queued, now)],
            end: None,
            usage: TaskUsage::default(),
        }));
        out.effect(Effect::StartContainer {
            task: id,
            function_id: function,
            definition_id: conf.definition_id,
            worker,
            gpus,
            reason,
        });
        self.hold(task);
        if let Some(pool) = self.pools.get_mut(&function) {
            pool.notes.add(now, Some(id), why);
        }
        self.set_task_timer(id, now);
        out.effect(Effect::PoolChanged(function));
        true
    }

    /// Enters a container into all the books.
    pub(crate) fn hold(&mut self, task: Task) {
        if let Some(worker) = self.workers.get_mut(&task.worker) {
            worker.reserved.add(&task.resources);
            worker.starting += u32::from(task.ready.is_none());
            worker.overcommitted += u32::from(task.overcommitted);
        }
        if let Some(pool) = self.pools.get_mut(&task.function) {
            pool.tasks.insert(task.id);
        }
        *self.app_tasks.entry(task.app).or_default() += 1;
        self.tasks.insert(task.id, task);
    }

    /// No machine can ever hold the function's containers: its waiting inputs fail at once, with what there
    /// is.
    fn never_fits(&mut self, function: FunctionId, needs: &[Resources], now: UnixMs, out: &mut Out) {
        let Some(need) = needs.first() else { return };
        let (milli_cpu, memory_mib, gpus) = (need.milli_cpu, need.memory_mib, need.gpus.count);
        let why = Reason::NeverFits { milli_cpu, memory_mib, gpus };
        let most = |amount: &dyn Fn(&Worker) -> u32| self.workers.values().map(amount).max().unwrap_or(0);
        let text = format!(
            "{why}. The largest has {} cores, {} MiB and {} GPUs. Ask for less, or add a machine that has more.",
            most(&|w| w.capacity.total.milli_cpu) / 1000,
            most(&|w| w.capacity.total.memory_mib),
            most(&|w| w.capacity.gpus.of(need.gpus.kind)),
        );
        self.note_pool(function, why, now);
        self.fail_waiting(function, &Failure::text(ResultStatus::Failure, text), now, out);
    }

    /// Asks other pools' containers for room.
    fn ask_for_room(
        &mut self,
        function: FunctionId,
        fleet: &[Worker],
        needs: &[Resources],
        waited_ms: u64,
        now: UnixMs,
        out: &mut Out,
    ) {
        let mut leaving: BTreeMap<WorkerId, Amounts> = BTreeMap::new();
        for task in self.tasks.values().filter(|task| !task.is_serving()) {
            leaving.entry(task.worker).or_default().add(&task.resources);
        }
        let candidates = self.candidates(|other, _| other != function);
        let rooms =
            needs.iter().find_map(|need| make_room(fleet, &leaving, need, &candidates, waited_ms, now));
        for room in rooms.unwrap_or_default() {
            self.drain_task(room.task, room.why, now, out);
        }
    }

    /// Containers of the pools that pass, which may give room to others.
    pub(crate) fn candidates(&self, passes: impl Fn(FunctionId, &Pool) -> bool) -> Vec<Candidate> {
        let mut candidates = Vec::new();
        for (other, pool) in self.pools.iter().filter(|(other, pool)| passes(**other, pool)) {
            let pool_size = serving(pool, &self.tasks).count() as u32;
            let pool_min = pool.conf.as_ref().map_or(0, |conf| conf.autoscaler.min);
            for task in serving(pool, &self.tasks) {
                let Some(ready_since) = task.ready else { continue };
                candidates.push(Candidate {
                    task: task.id,
                    function: *other,
                    worker: task.worker,
                    resources: task.resources,
                    idle_since: task.is_idle().then_some(task.idle_since),
                    ready_since,
                    pool_size,
                    pool_min,
                });
            }
        }
        candidates
    }

    fn note_pool(&mut self, function: FunctionId, why: Reason, now: UnixMs) {
        if let Some(pool) = self.pools.get_mut(&function) {
            pool.notes.add(now, None, why);
        }
    }
}

/// A container to be started.
struct Start {
    worker: WorkerId,
    need: Resources,
    overcommitted: bool,
    why: Reason,
}

/// The place for the most wanted of `needs` that has one; otherwise the most hopeful of the reasons.
fn place_any(fleet: &[Worker], needs: &[Resources]) -> Result<(WorkerId, Resources), NoPlace> {
    let mut why = NoPlace::NeverFits;
    for need in needs {
        match place(fleet, need) {
            Ok(worker) => return Ok((worker, *need)),
            Err(NoPlace::NeverFits) => {}
            Err(NoPlace::Full) if why == NoPlace::StartsBusy => {}
            Err(other) => why = other,
        }
    }
    Err(why)
}

/// The containers of a pool that are not on their way out.
fn serving<'a>(pool: &'a Pool, tasks: &'a BTreeMap<TaskId, Task>) -> impl Iterator<Item = &'a Task> {
    pool.tasks.iter().filter_map(|id| tasks.get(id)).filter(|task| task.is_serving())
}
