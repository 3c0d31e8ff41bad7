//! Containers ask for inputs.
//!
//! A container asks only when it has a free slot, with one question at a time. So a repeated question (equal
//! key), or a question from a container whose slots are all taken, means that an answer was lost on its way:
//! it gets the same inputs again, as the same attempts.

use crate::cache::Slot;
use crate::calls::{Attempt, Place};
use crate::engine::{Engine, Out};
use crate::pool::Handout;
use crate::request::{Claim, Claimed, PollRequest};
use crate::step::{Effect, Step};
use crate::timers::Timer;
use evoke_core::{FunctionId, Phase, Result, TaskId, UnixMs};
use evoke_sched::{Offer, Reason};
use evoke_store::calls::{AttemptRow, CallWrite, Key, StopState};

/// A hand-out is repeated to a container that seems to have missed it at most once in this time.
pub(crate) const REDELIVER_MS: u64 = 1_000;

impl Engine {
    /// A container asks for inputs. Control keeps one waiting question per container, asks again when woken
    /// (or at `until`), and lets a newer question of the same container end an older one.
    pub fn poll_inputs(&mut self, request: PollRequest, now: UnixMs) -> Result<Step<Claim>> {
        let task = self.known_task(request.task)?;
        if task.stop == StopState::Stopping {
            return Ok(Out::new().step(Claim::KillSwitch));
        }
        let (id, function) = (task.id, task.function);
        let mut out = Out::new();
        self.note_ready(id, now, &mut out);
        let claim = self.claim(id, function, request, now, &mut out);
        self.settle(now, &mut out);
        Ok(out.step(claim))
    }

    /// The connection on which a question waited is gone. Its wake-up, if it had one, goes to another.
    pub fn poll_dropped(&mut self, task: TaskId, now: UnixMs) -> Step<()> {
        let mut out = Out::new();
        if let Some(task) = self.tasks.get(&task) {
            let (function, entry) = (task.function, (task.idle_since, task.id));
            if let Some(pool) = self.pools.get_mut(&function) {
                if !pool.polls.remove(&entry) && !pool.queue.is_empty() {
                    self.wake_polls(function, 1, now, &mut out);
                }
            }
        }
        out.step(())
    }

    /// The first question of a container is the end of its start.
    pub(crate) fn note_ready(&mut self, id: TaskId, now: UnixMs, out: &mut Out) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        if task.ready.is_some() {
            return;
        }
        task.ready = Some(now);
        task.idle_since = now;
        let (function, worker, queued) = (task.function, task.worker, task.queued);
        out.write(CallWrite::TaskPhase { task: id, phase: Phase::Ready, at: now });
        if let Some(worker) = self.workers.get_mut(&worker) {
            worker.starting = worker.starting.saturating_sub(1);
        }
        if let Some(pool) = self.pools.get_mut(&function) {
            pool.note_start(now.since(queued));
        }
        self.set_task_timer(id, now);
        self.wake_blocked();
        self.grant(function, now, out);
        self.dirty.insert(function);
        out.effect(Effect::PoolChanged(function));
    }

    fn claim(
        &mut self,
        id: TaskId,
        function: FunctionId,
        request: PollRequest,
        now: UnixMs,
        out: &mut Out,
    ) -> Claim {
        if let Some(again) = self.repeated(id, request.key) {
            return Claim::Inputs(self.deliver(id, again, now));
        }
        let Some((slots, reason)) = self.may_take(id, function) else {
            return Claim::Wait { until: None };
        };
        if let Some(reason) = reason {
            self.drain_task(id, reason, now, out);
        }
        let Some(task) = self.tasks.get(&id) else { return Claim::KillSwitch };
        if task.stop != StopState::Serving {
            // Its server works on until its requests are over, and so must the program around it.
            return if task.leases > 0 { Claim::Wait { until: None } } else { Claim::KillSwitch };
        }
        if task.handouts.len() as u32 + task.leases >= slots {
            return self.missed_or_wait(id, now);
        }
        let idle_since = task.idle_since;
        let Some(pool) = self.pools.get_mut(&function) else { return Claim::KillSwitch };
        pool.polls.remove(&(idle_since, id));
        match pool.queue.offer(request.max.max(1), pool.batch(), now) {
            Offer::Take(keys) => {
                let handout = self.hand_out(id, function, keys, request.key, now, out);
                Claim::Inputs(self.deliver(id, handout, now))
            }
            Offer::Linger(until) => {
                pool.polls.insert((idle_since, id));
                self.timers.at_latest(Timer::Pool(function), until);
                Claim::Wait { until: Some(until) }
            }
            Offer::Nothing => {
                pool.polls.insert((idle_since, id));
                Claim::Wait { until: None }
            }
        }
    }

    /// The hand-out that was the answer to this very question.
    fn repeated(&self, id: TaskId, key: u64) -> Option<Key> {
        let task = self.tasks.get(&id)?;
        let mut newest_first = task.handouts.iter().rev();
        newest_first.find(|(_, handout)| key != 0 && handout.poll == key).map(|(claim, _)| *claim)
    }

    /// How many slots a container has, and why it must take nothing more. None while its function is not
    /// known (right after a start of the server).
    fn may_take(&self, id: TaskId, function: FunctionId) -> Option<(u32, Option<Reason>)> {
        let task = self.tasks.get(&id)?;
        let pool = self.pools.get(&function)?;
        let Some(conf) = &pool.conf else {
            return pool.stopped.then_some((0, Some(Reason::AppStopped)));
        };
        let serving =
            || pool.tasks.iter().filter(|t| self.tasks.get(t).is_some_and(|t| t.is_serving())).count();
        let reason = if task.generation < conf.generation {
            Some(Reason::Replaced { generation: task.generation, current: conf.generation })
        } else if conf.max_inputs_per_container.is_some_and(|max| task.taken >= max.max(1)) {
            Some(Reason::InputsUsedUp { taken: task.taken })
        } else {
            let max = conf.autoscaler.max.map(|max| max.max(1));
            match max {
                Some(max) if serving() as u32 > max => {
                    Some(Reason::AboveMaximum { containers: serving() as u32, max })
                }
                _ => None,
            }
        };
        Some((conf.max_concurrent_inputs.max(1), reason))
    }

    /// All slots are taken as far as we know, and yet the container asks: it gets the hand-out again that was
    /// delivered the longest ago. It ignores those that it does know.
    fn missed_or_wait(&mut self, id: TaskId, now: UnixMs) -> Claim {
        let oldest = self
            .tasks
            .get(&id)
            .and_then(|task| task.handouts.iter().map(|(claim, h)| (h.delivered, *claim)).min());
        match oldest {
            Some((delivered, claim)) if now.since(delivered) >= REDELIVER_MS => {
                Claim::Inputs(self.deliver(id, claim, now))
            }
            Some((delivered, _)) => Claim::Wait { until: Some(delivered.plus_ms(REDELIVER_MS)) },
            None => Claim::Wait { until: None },
        }
    }

    fn hand_out(
        &mut self,
        id: TaskId,
        function: FunctionId,
        keys: Vec<Key>,
        poll: u64,
        now: UnixMs,
        out: &mut Out,
    ) -> Key {
        let claim = self.take_key();
        let (timeout_ms, single_use) = match self.pools.get_mut(&function) {
            Some(pool) => {
                pool.moved = now;
                // A start has succeeded when it has led to work: one that dies before its first input does not
                // help anybody, ready or not.
                pool.failed_starts = 0;
                pool.not_before = UnixMs(0);
                match &pool.conf {
                    Some(conf) => (conf.timeout_ms, conf.single_use),
                    None => (u64::MAX, false),
                }
            }
            None => (u64::MAX, false),
        };
        for key in &keys {
            let attempt = Attempt {
                key: self.take_key(),
                task: id,
                claim,
                started: now,
                timeout_at: now.plus_ms(timeout_ms),
                kill_at: None,
            };
            self.start_attempt(*key, attempt, function, poll, out);
        }
        if let Some(task) = self.tasks.get_mut(&id) {
            task.taken += keys.len() as u32;
            task.running.extend(keys.iter().copied());
            task.handouts.insert(claim, Handout { inputs: keys.into_iter().collect(), poll, delivered: now });
        }
        if single_use {
            // It takes one hand-out and ends by itself; a repeated question still gets that one again.
            let taken = self.tasks.get(&id).map_or(1, |t| t.taken);
            self.drain_task(id, Reason::InputsUsedUp { taken }, now, out);
        }
        self.tag_output(id, out);
        self.dirty.insert(function);
        out.effect(Effect::PoolChanged(function));
        claim
    }

    fn start_attempt(&mut self, key: Key, attempt: Attempt, function: FunctionId, poll: u64, out: &mut Out) {
        let Some(input) = self.inputs.get_mut(&key) else { return };
        input.place = Place::Running(attempt);
        out.write(CallWrite::Attempt(AttemptRow {
            key: attempt.key,
            input: key,
            task: attempt.task,
            retry_count: input.retry_count,
            poll,
            claim: attempt.claim,
            started: attempt.started,
        }));
        self.timers.set(Timer::Input(key), Some(attempt.timeout_at));
        if let Some(call) = self.calls.get_mut(&input.call) {
            call.running += 1;
        }
        if let Some(pool) = self.pools.get_mut(&function) {
            let group = pool.group(input.group);
            pool.queue.remove(group, key);
        }
    }

    /// What a hand-out looks like to the container. Inputs that have ended meanwhile are left out.
    fn deliver(&mut self, id: TaskId, claim: Key, now: UnixMs) -> Vec<Claimed> {
        let Some(handout) = self.tasks.get_mut(&id).and_then(|task| task.handouts.get_mut(&claim)) else {
            return Vec::new();
        };
        handout.delivered = now;
        let keys: Vec<Key> = handout.inputs.iter().copied().collect();
        keys.into_iter()
            .filter_map(|key| {
                let input = self.inputs.get(&key)?;
                let call = self.calls.get(&input.call)?;
                Some(Claimed {
                    call_id: call.row.id,
                    input_id: input.id,
                    idx: input.idx,
                    retry_count: input.retry_count,
                    invocation: call.row.invocation,
                    input: self.cache.bytes(Slot::Input(key)),
                })
            })
            .collect()
    }

    /// Says which input a container's output belongs to, if that changed.
    pub(crate) fn tag_output(&mut self, id: TaskId, out: &mut Out) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let only = match (task.running.len(), task.running.first()) {
            (1, Some(key)) => self.inputs.get(key),
            _ => None,
        };
        if task.tagged != only.map(|input| input.id) {
            task.tagged = only.map(|input| input.id);
            let current = only.and_then(|i| self.calls.get(&i.call).map(|call| (call.row.id, i.id)));
            out.effect(Effect::CurrentInput { task: id, current });
        }
    }
}
