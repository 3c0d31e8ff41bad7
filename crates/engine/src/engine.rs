//! The engine's state, and what all its methods share.

use crate::cache::Cache;
use crate::calls::{Call, Input};
use crate::conf::{EngineConf, FunctionConf};
use crate::devices::{Devices, Gpu};
use crate::leases::{Lease, LeaseId};
use crate::pool::{Pool, Task};
use crate::request::{PoolInfo, TaskInfo};
use crate::step::{Effect, Step};
use crate::timers::{Timer, Timers};
use evoke_core::{AppId, CallId, Entropy, EnvironmentId, Error, FunctionId, InputId, Result, TaskId, UnixMs};
use evoke_sched::{Limits, Reason, Worker, WorkerCapacity, WorkerId};
use evoke_store::Grade;
use evoke_store::calls::{CallWrite, Invocation, Key, keys};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

/// Calls, inputs, attempts, containers and pools. See the crate's documentation for how it is driven.
pub struct Engine {
    pub(crate) conf: EngineConf,
    pub(crate) entropy: Box<dyn Entropy>,
    pub(crate) next_key: Key,
    pub(crate) calls: BTreeMap<Key, Call>,
    pub(crate) inputs: BTreeMap<Key, Input>,
    pub(crate) pools: BTreeMap<FunctionId, Pool>,
    pub(crate) tasks: BTreeMap<TaskId, Task>,
    /// Containers per app that are not gone.
    pub(crate) app_tasks: BTreeMap<AppId, u32>,
    pub(crate) workers: BTreeMap<WorkerId, Worker>,
    pub(crate) devices: Devices,
    /// What environments may have, for those that have a limit.
    pub(crate) limits: BTreeMap<EnvironmentId, Limits>,
    pub(crate) timers: Timers,
    pub(crate) cache: Cache,
    /// Calls that are over and still in memory, in the order of their end.
    pub(crate) over: VecDeque<Key>,
    /// Requests that go to containers' own servers.
    pub(crate) leases: HashMap<LeaseId, Lease>,
    pub(crate) next_lease: u64,
    /// Pools to be planned before the method returns, or soon.
    pub(crate) dirty: BTreeSet<FunctionId>,
    /// Pools that found no place for a container.
    pub(crate) blocked: BTreeSet<FunctionId>,
    /// Whether it is known which containers live; nothing is started or given up before.
    pub(crate) adopted: bool,
}

/// What a method has decided so far.
pub(crate) struct Out {
    pub(crate) writes: Vec<CallWrite>,
    pub(crate) effects: Vec<Effect>,
    pub(crate) grade: Grade,
}

/// A wake-up is not repeated if one of so many effects before it is the same.
const SAME_WAKE_WITHIN: usize = 8;

impl Out {
    pub(crate) fn new() -> Self {
        Self { writes: Vec::new(), effects: Vec::new(), grade: Grade::Written }
    }

    pub(crate) fn write(&mut self, write: CallWrite) {
        self.writes.push(write);
    }

    pub(crate) fn effect(&mut self, effect: Effect) {
        let repeats =
            effect.is_wake() && self.effects.iter().rev().take(SAME_WAKE_WITHIN).any(|e| *e == effect);
        if !repeats {
            self.effects.push(effect);
        }
    }

    /// What is stored for a call that nobody holds a connection for survives a loss of power.
    pub(crate) fn safe_for(&mut self, invocation: Invocation) {
        if invocation == Invocation::Async {
            self.grade = Grade::Synced;
        }
    }

    pub(crate) fn step<T>(self, reply: T) -> Step<T> {
        Step { reply, writes: self.writes, effects: self.effects, grade: self.grade }
    }
}

impl Engine {
    /// An empty engine. Randomness goes into ids only.
    pub fn new(conf: EngineConf, entropy: Box<dyn Entropy>) -> Self {
        let cache = Cache::new(conf.payload_cache_bytes, conf.payload_cache_item_bytes);
        Self {
            conf,
            entropy,
            next_key: 1,
            calls: BTreeMap::new(),
            inputs: BTreeMap::new(),
            pools: BTreeMap::new(),
            tasks: BTreeMap::new(),
            app_tasks: BTreeMap::new(),
            workers: BTreeMap::new(),
            devices: Devices::default(),
            limits: BTreeMap::new(),
            timers: Timers::default(),
            cache,
            over: VecDeque::new(),
            leases: HashMap::new(),
            next_lease: 0,
            dirty: BTreeSet::new(),
            blocked: BTreeSet::new(),
            adopted: false,
        }
    }

    /// A machine joined, or what it has changed. Its capacity in GPUs follows from `gpus`.
    pub fn put_worker(&mut self, mut capacity: WorkerCapacity, gpus: Vec<Gpu>, now: UnixMs) -> Step<()> {
        let mut out = Out::new();
        self.devices.put(capacity.id, gpus);
        capacity.gpus = self.devices.counts(capacity.id);
        let mut worker = Worker::empty(capacity);
        for task in self.tasks.values_mut().filter(|task| task.worker == capacity.id) {
            task.resources.gpus = self.devices.hold(capacity.id, &task.gpus, task.id);
            worker.reserved.add(&task.resources);
            worker.starting += u32::from(task.ready.is_none());
            worker.overcommitted += u32::from(task.overcommitted);
        }
        self.workers.insert(capacity.id, worker);
        self.wake_blocked();
        self.settle(now, &mut out);
        out.step(())
    }

    /// What an environment may have at the same time. Containers that are there already stay.
    pub fn put_limits(&mut self, environment: EnvironmentId, limits: Limits, now: UnixMs) -> Step<()> {
        let mut out = Out::new();
        if limits.is_none() {
            self.limits.remove(&environment);
        } else {
            self.limits.insert(environment, limits);
        }
        self.wake_blocked();
        self.settle(now, &mut out);
        out.step(())
    }

    /// A function was created, deployed again, or its settings changed. A higher generation replaces its
    /// containers: older ones finish what they have and take nothing more.
    pub fn put_function(&mut self, conf: FunctionConf, now: UnixMs) -> Step<()> {
        let mut out = Out::new();
        let id = conf.id;
        let kept = self.conf.reasons_kept;
        let pool = self.pools.entry(id).or_insert_with(|| Pool::new(conf.app_id, kept));
        let current = conf.generation;
        if pool.conf.as_ref().is_some_and(|before| before.generation < current) {
            pool.failed_starts = 0;
            pool.not_before = UnixMs(0);
        }
        let unsatisfiable = conf.unsatisfiable.clone();
        pool.stopped = false;
        pool.conf = Some(conf);
        self.requeue_groups(id);
        let pool_tasks: Vec<TaskId> =
            self.pools.get(&id).map(|p| p.tasks.iter().copied().collect()).unwrap_or_default();
        for task in pool_tasks {
            let generation = self.tasks.get(&task).map_or(current, |t| t.generation);
            if generation < current {
                self.drain_task(task, Reason::Replaced { generation, current }, now, &mut out);
            }
        }
        if let Some(text) = unsatisfiable {
            self.fail_waiting(
                id,
                &crate::pool::Failure::text(crate::ResultStatus::Failure, text),
                now,
                &mut out,
            );
        }
        out.effect(Effect::PoolChanged(id));
        self.dirty.insert(id);
        self.settle(now, &mut out);
        out.step(())
    }

    /// After a start inputs are queued before their function is known; whether groups matter is known only
    /// now.
    fn requeue_groups(&mut self, function: FunctionId) {
        let Some(pool) = self.pools.get_mut(&function) else { return };
        let batched = pool.batch().is_some();
        let keys: Vec<Key> = pool.queue.keys().collect();
        for key in keys {
            let Some(input) = self.inputs.get(&key) else { continue };
            let group = if batched { input.group } else { 0 };
            let since = input.created;
            if input.group != group || batched {
                pool.queue.remove(0, key);
                pool.queue.remove(input.group, key);
                pool.queue.push(group, key, since);
            }
        }
    }

    /// The next time at which [`Engine::tick`] has something to do.
    pub fn next_deadline(&self) -> Option<UnixMs> {
        self.timers.next()
    }

    /// Whether an app has no containers, so that its logs are complete once they are shipped.
    pub fn app_is_idle(&self, app: AppId) -> bool {
        !self.app_tasks.contains_key(&app)
    }

    /// Whether an input of an app has not ended.
    pub fn app_has_work(&self, app: AppId) -> bool {
        let pools = self.pools.values().filter(|pool| pool.app == app);
        let leased = |task: &Task| task.app == app && task.leases > 0;
        if pools.clone().any(|pool| !pool.line.is_empty()) || self.tasks.values().any(leased) {
            return true;
        }
        let mut calls = pools.flat_map(|pool| &pool.calls).filter_map(|key| self.calls.get(key));
        calls.any(|call| !call.unfinished.is_empty())
    }

    /// A function's numbers; none for an unknown function.
    pub fn pool_info(&self, function: FunctionId) -> Option<PoolInfo> {
        self.pools.get(&function).map(|pool| pool.info(&self.tasks))
    }

    /// A container that is not gone.
    pub fn task_info(&self, task: TaskId) -> Option<TaskInfo> {
        self.tasks.get(&task).map(|t| self.info_of(t))
    }

    /// The containers of an app, or of all, that are not gone.
    pub fn task_infos(&self, app: Option<AppId>) -> Vec<TaskInfo> {
        self.tasks.values().filter(|t| app.is_none_or(|a| a == t.app)).map(|t| self.info_of(t)).collect()
    }

    fn info_of(&self, task: &Task) -> TaskInfo {
        task.info(task.running.iter().filter_map(|key| self.inputs.get(key)).map(|input| input.id).collect())
    }

    /// How many inputs a container should work on at the same time right now: the target while there are or
    /// may be containers enough, the maximum once there can be no more.
    pub fn dynamic_concurrency(&self, task: TaskId) -> u32 {
        let function = self.tasks.get(&task).map(|t| t.function);
        let Some(function) = function else { return 1 };
        let Some(pool) = self.pools.get(&function) else { return 1 };
        let Some(conf) = &pool.conf else { return 1 };
        let full = self.blocked.contains(&function)
            || conf.autoscaler.max.is_some_and(|max| pool.info(&self.tasks).containers >= max);
        let concurrency = if full && !pool.queue.is_empty() {
            conf.max_concurrent_inputs
        } else {
            conf.target_concurrent_inputs
        };
        concurrency.max(1)
    }

    /// GPUs that containers have.
    pub fn gpus_held(&self) -> u32 {
        self.tasks.values().map(|task| task.gpus.len() as u32).sum()
    }

    /// Numbers of everything in memory: calls, unfinished inputs, containers.
    pub fn sizes(&self) -> (usize, usize, usize) {
        (self.calls.len(), self.inputs.len(), self.tasks.len())
    }

    pub(crate) fn take_key(&mut self) -> Key {
        let key = self.next_key;
        self.next_key += 1;
        key
    }

    pub(crate) fn new_parts(&mut self, now: UnixMs) -> keys::Parts {
        let key = self.take_key();
        keys::Parts { at: now, key, salt: keys::salt(self.entropy.as_mut()) }
    }

    /// The key of a call in memory with this id.
    pub(crate) fn call_key(&self, id: &CallId) -> Option<Key> {
        let key = keys::split(id).key;
        self.calls.get(&key).filter(|call| call.row.id == *id).map(|call| call.row.key)
    }

    /// The key of an unfinished input with this id.
    pub(crate) fn input_key(&self, id: &InputId) -> Option<Key> {
        let key = keys::split(id).key;
        self.inputs.get(&key).filter(|input| input.id == *id).map(|input| input.key)
    }

    pub(crate) fn known_task(&self, task: TaskId) -> Result<&Task> {
        self.tasks.get(&task).ok_or_else(|| {
            Error::precondition(format!("{task} is not a container of this server, or is gone"))
        })
    }

    /// Pools that wait for a place look again.
    pub(crate) fn wake_blocked(&mut self) {
        let blocked = std::mem::take(&mut self.blocked);
        self.dirty.extend(blocked);
    }

    /// Plans what must be planned, at the end of every method.
    pub(crate) fn settle(&mut self, now: UnixMs, out: &mut Out) {
        if !self.adopted {
            return;
        }
        // Planning a pool can only make others wait for room, not change what they need; each pool is
        // planned once.
        let mut dirty: Vec<FunctionId> = std::mem::take(&mut self.dirty).into_iter().collect();
        // Those that wait longest choose first, or a busy pool could take back the room it just gave.
        dirty.sort_by_key(|id| std::cmp::Reverse(self.pools.get(id).map_or(0, |pool| pool.waited_ms(now))));
        for function in dirty {
            let due = match self.pools.get(&function) {
                Some(pool) => self.plan_due(pool, now),
                None => continue,
            };
            if due <= now {
                self.plan_pool(function, now, out);
            } else {
                self.timers.at_latest(Timer::Pool(function), due);
            }
        }
    }

    /// The earliest time for a pool's next plan: at once for its first container, else debounced.
    fn plan_due(&self, pool: &Pool, now: UnixMs) -> UnixMs {
        let first = pool.waiting() > 0
            && !pool.tasks.iter().any(|id| self.tasks.get(id).is_some_and(Task::is_serving));
        match pool.planned {
            // A last plan in the future means that the clock was set back.
            Some(planned) if !first && planned <= now => planned.plus_ms(self.conf.plan_debounce_ms),
            _ => UnixMs(0),
        }
    }
}
