//! Requests that go to a server inside of a container as they are: each holds a slot of it, a lease, for as long as
//! it lasts. A lease is no input: nothing of it is stored, because the connection that it serves ends with this
//! process. It counts all the same where containers are started, chosen and let go.

use crate::engine::{Engine, Out};
use crate::pool::Failure;
use crate::step::{Effect, Step, StopHow};
use evoke_core::{Error, FunctionId, Result, TaskId, UnixMs};
use evoke_sched::Reason;
use evoke_store::calls::{ResultBody, StopState};

/// A slot of a container, or a place in the line for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(u64);

/// A lease that has not ended.
#[derive(Debug)]
pub(crate) struct Lease {
    function: FunctionId,
    /// The container; none while it waits.
    task: Option<TaskId>,
}

/// Why a request's container has to be stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseEnd {
    /// It took longer than its function allows.
    TimedOut,
    /// It was cancelled and went on all the same.
    Cancelled,
    /// It was cancelled together with its container.
    Terminated,
}

impl Engine {
    /// A request wants a slot: the container that has one for it, or none for now, and then
    /// [`Effect::Leased`] follows.
    pub fn lease(&mut self, function: FunctionId, now: UnixMs) -> Result<Step<(LeaseId, Option<TaskId>)>> {
        let pool = self.pools.get_mut(&function).filter(|pool| pool.conf.is_some());
        let Some(pool) = pool else {
            return Err(Error::not_found(format!("there is no function {function}")));
        };
        if pool.stopped {
            return Err(Error::precondition(format!("the app of {function} is stopped")));
        }
        if let Some(text) = pool.conf.as_ref().and_then(|conf| conf.unsatisfiable.clone()) {
            return Err(Error::precondition(text));
        }
        if self.leases.len() >= self.conf.unfinished_inputs_max {
            return Err(Error::new(
                evoke_core::ErrorCode::ResourceExhausted,
                format!("the server has {} requests under way; it takes no more for now", self.leases.len()),
            ));
        }
        self.next_lease += 1;
        let id = LeaseId(self.next_lease);
        pool.line.insert(id, now);
        self.leases.insert(id, Lease { function, task: None });
        let mut out = Out::new();
        self.grant(function, now, &mut out);
        let task = self.leases.get(&id).and_then(|lease| lease.task);
        if task.is_some() {
            // The answer says it.
            out.effects.retain(|effect| !matches!(effect, Effect::Leased { lease, .. } if *lease == id));
        }
        self.settle(now, &mut out);
        Ok(out.step((id, task)))
    }

    /// A request is over, or not waited for any more.
    pub fn end_lease(&mut self, id: LeaseId, now: UnixMs) -> Step<()> {
        let mut out = Out::new();
        if let Some(lease) = self.leases.remove(&id) {
            if let Some(pool) = self.pools.get_mut(&lease.function) {
                pool.line.remove(&id);
            }
            if let Some(task) = lease.task {
                self.free_lease(task, now, &mut out);
                if self.pools.get(&lease.function).is_some_and(|pool| !pool.queue.is_empty()) {
                    // It may have asked for an input while all its slots were taken.
                    out.effect(Effect::WakeTask(task));
                }
            }
            self.grant(lease.function, now, &mut out);
            self.dirty.insert(lease.function);
        }
        self.settle(now, &mut out);
        out.step(())
    }

    /// A request has to end and does not by itself: its container is stopped as for an input, and the other
    /// requests that it has end with it. The lease goes on until it is given back.
    pub fn stop_leased(&mut self, id: LeaseId, end: LeaseEnd, now: UnixMs) -> Step<()> {
        let mut out = Out::new();
        if let Some((function, task)) = self.leases.get(&id).and_then(|l| Some((l.function, l.task?))) {
            let timeout_ms =
                self.pools.get(&function).and_then(|pool| pool.conf.as_ref()).map(|c| c.timeout_ms);
            let (how, why) = match end {
                LeaseEnd::TimedOut => (
                    StopHow::Interrupt { grace_ms: self.conf.stop_grace_ms },
                    Reason::InputTimeout { timeout_ms: timeout_ms.unwrap_or_default() },
                ),
                LeaseEnd::Cancelled => {
                    (StopHow::Kill, Reason::CancelGrace { grace_ms: self.conf.cancel_grace_ms })
                }
                LeaseEnd::Terminated => (StopHow::Kill, Reason::CancelTerminates),
            };
            self.stop_task_now(task, how, why, now, &mut out);
        }
        self.settle(now, &mut out);
        out.step(())
    }

    /// A request's container cannot be reached: no other request is given to it. It has ended, as a rule, and that is
    /// not known yet.
    pub fn shun_leased(&mut self, id: LeaseId, now: UnixMs) -> Step<()> {
        let mut out = Out::new();
        let task = self.leases.get(&id).and_then(|lease| lease.task);
        if let Some(task) = task.and_then(|task| self.tasks.get_mut(&task)) {
            task.shunned = true;
        }
        self.settle(now, &mut out);
        out.step(())
    }

    /// A container's own server listens: the end of its start, for containers that ask for no inputs.
    pub fn server_ready(&mut self, task: TaskId, now: UnixMs) -> Step<()> {
        let mut out = Out::new();
        self.note_ready(task, now, &mut out);
        self.settle(now, &mut out);
        out.step(())
    }

    fn free_lease(&mut self, id: TaskId, now: UnixMs, out: &mut Out) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        task.leases = task.leases.saturating_sub(1);
        if !task.is_idle() {
            if task.leases == 0 {
                out.effect(Effect::WakeTask(id));
            }
            return;
        }
        let draining = task.stop == StopState::Draining;
        self.note_idle(id, now);
        if draining {
            self.end_drained(id, now, out);
        }
    }

    /// Gives the slots that there are to those that wait, the least busy container first.
    pub(crate) fn grant(&mut self, function: FunctionId, now: UnixMs, out: &mut Out) {
        loop {
            let Some(pool) = self.pools.get(&function) else { return };
            let (Some(conf), Some((first, _))) = (&pool.conf, pool.line.first_key_value()) else { return };
            let (first, slots) = (*first, conf.max_concurrent_inputs.max(1));
            let max = conf.max_inputs_per_container;
            let free = |task: &&crate::pool::Task| {
                task.is_serving()
                    && task.ready.is_some()
                    && !task.shunned
                    && task.generation >= conf.generation
                    && (task.handouts.len() as u32 + task.leases) < slots
                    && max.is_none_or(|max| task.taken < max.max(1))
            };
            let tasks = pool.tasks.iter().filter_map(|id| self.tasks.get(id));
            let Some(task) = tasks.filter(free).min_by_key(|task| (task.leases, task.id)).map(|task| task.id)
            else {
                self.dirty.insert(function);
                return;
            };
            if let Some(lease) = self.leases.get_mut(&first) {
                lease.task = Some(task);
            }
            if let Some(known) = self.tasks.get_mut(&task) {
                known.leases += 1;
                known.taken += 1;
            }
            if let Some(pool) = self.pools.get_mut(&function) {
                pool.line.remove(&first);
                pool.moved = now;
                pool.failed_starts = 0;
                pool.not_before = UnixMs(0);
            }
            out.effect(Effect::Leased { lease: first, to: Ok(task) });
        }
    }

    /// Requests that no container has cannot be served.
    pub(crate) fn refuse_line(&mut self, function: FunctionId, failure: &Failure, out: &mut Out) -> u32 {
        let Some(pool) = self.pools.get_mut(&function) else { return 0 };
        let line = std::mem::take(&mut pool.line);
        let text = match &failure.body {
            ResultBody::Synthesised(text) => text.clone(),
            ResultBody::Container(_) => {
                "its container fails when it starts; the app's logs say why".to_owned()
            }
        };
        for lease in line.keys() {
            self.leases.remove(lease);
            out.effect(Effect::Leased { lease: *lease, to: Err(text.clone()) });
        }
        line.len() as u32
    }
}
