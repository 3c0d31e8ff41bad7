//! Pools (the containers and waiting inputs of one function) and containers in memory.

use crate::conf::FunctionConf;
use crate::explain::Notes;
use crate::leases::LeaseId;
use crate::request::{PoolInfo, TaskInfo};
use evoke_core::{AppId, DefinitionId, FunctionId, InputId, Resources, TaskId, UnixMs};
use evoke_sched::{Batch, Queue, WorkerId};
use evoke_store::calls::{Key, ResultBody, ResultStatus, StopState};
use std::collections::{BTreeMap, BTreeSet};

/// A result that inputs are failed with.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) status: ResultStatus,
    pub(crate) body: ResultBody,
}

impl Failure {
    pub(crate) fn text(status: ResultStatus, text: impl Into<String>) -> Self {
        Self { status, body: ResultBody::Synthesised(text.into()) }
    }
}

/// The start time assumed before one was seen.
pub(crate) const TYPICAL_START_MS: u64 = 500;

/// The containers and waiting inputs of one function.
#[derive(Debug)]
pub(crate) struct Pool {
    /// None between a start and the function's arrival.
    pub(crate) conf: Option<FunctionConf>,
    pub(crate) app: AppId,
    /// Its app was stopped: it takes no calls.
    pub(crate) stopped: bool,
    pub(crate) queue: Queue,
    /// Requests that wait for a container's own server, in their order.
    pub(crate) line: BTreeMap<LeaseId, UnixMs>,
    /// Inputs that wait for their retry.
    pub(crate) backoff: BTreeSet<Key>,
    /// Containers that are not gone.
    pub(crate) tasks: BTreeSet<TaskId>,
    /// Containers whose poll waits, by the time since when they are idle.
    pub(crate) polls: BTreeSet<(UnixMs, TaskId)>,
    /// Calls that are not over.
    pub(crate) calls: BTreeSet<Key>,
    pub(crate) failed_starts: u32,
    pub(crate) not_before: UnixMs,
    pub(crate) typical_run_ms: Option<u64>,
    pub(crate) typical_start_ms: u64,
    /// When a waiting input was last handed out.
    pub(crate) moved: UnixMs,
    pub(crate) planned: Option<UnixMs>,
    pub(crate) notes: Notes,
}

impl Pool {
    pub(crate) fn new(app: AppId, reasons_kept: usize) -> Self {
        Self {
            conf: None,
            app,
            stopped: false,
            queue: Queue::default(),
            line: BTreeMap::new(),
            backoff: BTreeSet::new(),
            tasks: BTreeSet::new(),
            polls: BTreeSet::new(),
            calls: BTreeSet::new(),
            failed_starts: 0,
            not_before: UnixMs(0),
            typical_run_ms: None,
            typical_start_ms: TYPICAL_START_MS,
            moved: UnixMs(0),
            planned: None,
            notes: Notes::new(reasons_kept),
        }
    }

    pub(crate) fn batch(&self) -> Option<Batch> {
        let conf = self.conf.as_ref()?;
        (conf.batch_max_size > 0)
            .then_some(Batch { max_size: conf.batch_max_size, linger_ms: conf.batch_linger_ms })
    }

    /// The group under which an input is queued: only batched functions keep groups apart.
    pub(crate) fn group(&self, group: u32) -> u32 {
        if self.batch().is_some() { group } else { 0 }
    }

    /// How long inputs have waited without any of them being handed out.
    pub(crate) fn waited_ms(&self, now: UnixMs) -> u64 {
        match self.head_since() {
            Some(since) => now.since(since.max(self.moved)),
            None => 0,
        }
    }

    /// Inputs and requests that no container has.
    pub(crate) fn waiting(&self) -> u32 {
        (self.queue.len() + self.line.len()) as u32
    }

    /// Since when the one waits that waits longest.
    pub(crate) fn head_since(&self) -> Option<UnixMs> {
        let first = self.line.first_key_value().map(|(_, since)| *since);
        self.queue.head_since().into_iter().chain(first).min()
    }

    pub(crate) fn note_run(&mut self, ms: u64) {
        self.typical_run_ms = Some(smooth(self.typical_run_ms, ms));
    }

    pub(crate) fn note_start(&mut self, ms: u64) {
        self.typical_start_ms = smooth(Some(self.typical_start_ms), ms).max(1);
    }

    pub(crate) fn info(&self, tasks: &BTreeMap<TaskId, Task>) -> PoolInfo {
        let mut info = PoolInfo { backlog: self.waiting(), ..PoolInfo::default() };
        let slots = self.conf.as_ref().map_or(1, |conf| conf.max_concurrent_inputs.max(1));
        let per_slot = self.batch().map_or(1, |batch| batch.max_size.max(1));
        for task in self.tasks.iter().filter_map(|id| tasks.get(id)) {
            info.running_inputs += task.running.len() as u32 + task.leases;
            if task.is_serving() {
                info.containers += 1;
                info.ready += u32::from(task.ready.is_some());
                if task.ready.is_some() {
                    info.headroom +=
                        slots.saturating_sub(task.handouts.len() as u32 + task.leases) * per_slot;
                }
            }
        }
        info
    }
}

/// A moving average in which the newest of four counts once.
fn smooth(before: Option<u64>, ms: u64) -> u64 {
    match before {
        Some(before) => (before * 3 + ms) / 4,
        None => ms,
    }
}

/// Inputs handed out together.
#[derive(Debug, Clone)]
pub(crate) struct Handout {
    pub(crate) inputs: BTreeSet<Key>,
    pub(crate) poll: u64,
    pub(crate) delivered: UnixMs,
}

/// A container that is not gone.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) id: TaskId,
    pub(crate) function: FunctionId,
    pub(crate) app: AppId,
    pub(crate) definition: DefinitionId,
    pub(crate) generation: u64,
    pub(crate) worker: WorkerId,
    pub(crate) resources: Resources,
    /// The names of the GPUs among its resources.
    pub(crate) gpus: Vec<String>,
    pub(crate) overcommitted: bool,
    pub(crate) queued: UnixMs,
    pub(crate) executed: Option<UnixMs>,
    pub(crate) ready: Option<UnixMs>,
    pub(crate) stop: StopState,
    /// When it was told to take no more, or to stop.
    pub(crate) stop_since: UnixMs,
    /// It reported that its start failed; that is counted already.
    pub(crate) start_counted: bool,
    /// Inputs that it has, by hand-out; each hand-out takes one slot.
    pub(crate) handouts: BTreeMap<Key, Handout>,
    pub(crate) running: BTreeSet<Key>,
    /// Requests that its own server works on.
    pub(crate) leases: u32,
    /// A request could not reach it: it gets no further ones.
    pub(crate) shunned: bool,
    /// Inputs and requests handed to it so far.
    pub(crate) taken: u32,
    pub(crate) idle_since: UnixMs,
    /// Its own report of a failure (an import error, an enter hook).
    pub(crate) failure: Option<Failure>,
    /// It was read from the store and nobody has said yet whether it lives.
    pub(crate) unconfirmed: bool,
    /// The last word on which input its output belongs to.
    pub(crate) tagged: Option<InputId>,
}

impl Task {
    pub(crate) fn is_serving(&self) -> bool {
        self.stop == StopState::Serving
    }

    /// Whether it works on nothing.
    pub(crate) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.leases == 0
    }

    pub(crate) fn info(&self, inputs: Vec<InputId>) -> TaskInfo {
        TaskInfo {
            task: self.id,
            function_id: self.function,
            app_id: self.app,
            definition_id: self.definition,
            generation: self.generation,
            queued: self.queued,
            ready: self.ready,
            inputs,
            stopping: !self.is_serving(),
        }
    }
}
