//! Making the engine again from the store after a start of the server.

use crate::calls::{Attempt, Call, Input, Place};
use crate::engine::{Engine, Out};
use crate::pool::{Failure, Handout, Pool, Task};
use crate::request::{CallType, ResultStatus};
use crate::step::{Effect, Step, StopHow};
use crate::tasks::lost_exit;
use crate::timers::Timer;
use evoke_core::{AppId, FunctionId, Phase, Resources, TaskId, UnixMs};
use evoke_sched::{Reason, WorkerId};
use evoke_store::calls::{Recovered, RecoveredCall, RecoveredInput, StopState, TaskRow};
use std::collections::{BTreeMap, BTreeSet};

/// An attempt that ran out of time while there was no server has so long to hand in what it may have.
const GRACE_AFTER_START_MS: u64 = 10_000;

impl Engine {
    /// Takes over everything unfinished, into an engine that has its machines and functions already. Nothing
    /// is started or given up before [`Engine::adopt`].
    pub fn recover(&mut self, recovered: Recovered, now: UnixMs) -> Step<()> {
        self.next_key = self.next_key.max(recovered.next_key);
        for task in recovered.tasks {
            self.recover_task(task, now);
        }
        for call in recovered.calls {
            self.recover_call(call, now);
        }
        for input in recovered.inputs {
            self.recover_input(input, now);
        }
        let mut out = Out::new();
        let tasks: Vec<TaskId> = self.tasks.keys().copied().collect();
        for task in tasks {
            self.tag_output(task, &mut out);
        }
        out.step(())
    }

    fn pool_for(&mut self, function: FunctionId, app: AppId) -> &mut Pool {
        let kept = self.conf.reasons_kept;
        self.pools.entry(function).or_insert_with(|| Pool::new(app, kept))
    }

    fn recover_task(&mut self, row: TaskRow, now: UnixMs) {
        let phase = |wanted| row.phases.iter().find(|(phase, _)| *phase == wanted).map(|(_, at)| *at);
        let resources = self
            .pool_for(row.function_id, row.app_id)
            .conf
            .as_ref()
            .map(|conf| conf.resources)
            .unwrap_or_default();
        let gpus = self.devices.hold(WorkerId(row.worker), &row.gpus, row.id);
        let resources = Resources { gpus, ..resources };
        let executed = phase(Phase::Exec);
        let task = Task {
            id: row.id,
            function: row.function_id,
            app: row.app_id,
            definition: row.definition_id,
            generation: row.generation,
            worker: WorkerId(row.worker),
            resources,
            gpus: row.gpus,
            overcommitted: false,
            queued: phase(Phase::Queued).unwrap_or(now),
            executed: executed.map(|_| now),
            ready: phase(Phase::Ready),
            stop: row.stop,
            stop_since: now,
            start_counted: false,
            handouts: BTreeMap::new(),
            running: BTreeSet::new(),
            leases: 0,
            shunned: false,
            // It has been ready, so its start is not to be counted as failed.
            taken: u32::from(phase(Phase::Ready).is_some()),
            idle_since: now,
            failure: None,
            unconfirmed: true,
            tagged: None,
        };
        self.hold(task);
    }

    fn recover_call(&mut self, recovered: RecoveredCall, now: UnixMs) {
        let key = recovered.row.key;
        let function = recovered.row.function_id;
        let mut call = Call::new(recovered.row, recovered.open, now);
        call.declared = recovered.declared_inputs;
        call.inputs = recovered.ended.iter().map(|(_, n)| n).sum();
        call.ended = recovered.ended.into_iter().collect();
        call.last_entry = recovered.last_entry;
        call.window_from = recovered.last_entry;
        call.last_out = recovered.last_out;
        call.last_in = recovered.last_in;
        self.pool_for(function, call.row.app_id).calls.insert(key);
        self.calls.insert(key, call);
        self.touch_call(key, now);
    }

    fn recover_input(&mut self, recovered: RecoveredInput, now: UnixMs) {
        let key = recovered.key;
        let Some(call) = self.calls.get_mut(&recovered.call) else { return };
        let function = call.row.function_id;
        call.inputs += 1;
        call.unfinished.insert(key);
        call.cancelled |= recovered.pending.cancelled.is_some();
        let Some(pool) = self.pools.get_mut(&function) else { return };
        let timeout_ms = pool.conf.as_ref().map_or(u64::MAX, |conf| conf.timeout_ms);
        let max_delay_ms = pool.conf.as_ref().map_or(u64::MAX, |conf| conf.retry.max_delay_ms);
        let group = pool.group(recovered.group);
        let place = match (&recovered.running, recovered.pending.not_before) {
            (Some(row), _) => {
                call.running += 1;
                let timeout_at =
                    row.started.plus_ms(timeout_ms).max(now.plus_ms(timeout_ms.min(GRACE_AFTER_START_MS)));
                let kill_at = recovered.pending.cancelled.map(|_| now.plus_ms(self.conf.cancel_grace_ms));
                let due = kill_at.map_or(timeout_at, |at| at.min(timeout_at));
                self.timers.set(Timer::Input(key), Some(due));
                Place::Running(Attempt {
                    key: row.key,
                    task: row.task,
                    claim: row.claim,
                    started: row.started,
                    timeout_at,
                    kill_at,
                })
            }
            (None, Some(until)) if until > now => {
                // Were the clock set back meanwhile, the delay would be longer than the policy's.
                let until = until.min(now.plus_ms(max_delay_ms));
                pool.backoff.insert(key);
                self.timers.set(Timer::Input(key), Some(until));
                Place::Backoff(until)
            }
            (None, _) => {
                pool.queue.push(group, key, now);
                Place::Queued
            }
        };
        if let Some(row) = recovered.running {
            if let Some(task) = self.tasks.get_mut(&row.task) {
                task.running.insert(key);
                let handout = task.handouts.entry(row.claim).or_insert_with(|| Handout {
                    inputs: BTreeSet::new(),
                    poll: row.poll,
                    delivered: now,
                });
                handout.inputs.insert(key);
            }
        }
        self.inputs.insert(
            key,
            Input {
                key,
                id: recovered.id,
                call: recovered.call,
                idx: recovered.idx,
                group: recovered.group,
                created: recovered.created,
                retry_count: recovered.pending.retry_count,
                crashes: recovered.pending.crashes,
                losses: recovered.pending.losses,
                cancelled: recovered.pending.cancelled,
                place,
            },
        );
    }

    /// These containers live on. They keep their inputs; what the others had runs elsewhere, without
    /// counting. From now on containers are started and stopped.
    pub fn adopt(&mut self, alive: &[TaskId], now: UnixMs) -> Step<()> {
        let mut out = Out::new();
        let alive: BTreeSet<TaskId> = alive.iter().copied().collect();
        self.adopted = true;
        self.give_up_inputs_of_ended_tasks(now, &mut out);
        self.give_up_web_requests(now, &mut out);
        let unconfirmed: Vec<(TaskId, StopState)> =
            self.tasks.values().filter(|t| t.unconfirmed).map(|t| (t.id, t.stop)).collect();
        for (id, stop) in unconfirmed {
            if !alive.contains(&id) {
                self.end_task(id, &lost_exit("it was gone when the server came back"), now, &mut out);
                continue;
            }
            if let Some(task) = self.tasks.get_mut(&id) {
                task.unconfirmed = false;
            }
            match stop {
                // The order may have been lost on its way.
                StopState::Stopping => {
                    let how = StopHow::Interrupt { grace_ms: self.conf.stop_grace_ms };
                    self.emit_stop(id, how, Reason::Overdue { waited_ms: 0 }, now, &mut out);
                }
                StopState::Draining | StopState::Serving => self.set_task_timer(id, now),
            }
        }
        for id in alive.iter().filter(|id| !self.tasks.contains_key(id)) {
            // Nothing is known of it, so nobody can be waiting for it.
            let reason = "it is not known to the server".to_owned();
            out.effect(Effect::StopContainer { task: *id, how: StopHow::Kill, reason });
        }
        self.give_up_unknown_functions(now, &mut out);
        self.dirty.extend(self.pools.keys().copied());
        let calls: Vec<_> = self.calls.keys().copied().collect();
        for call in calls {
            self.check_over(call, &mut out);
        }
        let functions: Vec<FunctionId> = self.pools.keys().copied().collect();
        for function in functions {
            self.timers.at_latest(Timer::Pool(function), now.plus_ms(self.conf.rewake_ms));
        }
        self.settle(now, &mut out);
        out.step(())
    }

    /// Attempts whose container had ended before the server did.
    fn give_up_inputs_of_ended_tasks(&mut self, now: UnixMs, out: &mut Out) {
        let orphans: Vec<_> = self
            .inputs
            .values()
            .filter(|input| input.attempt().is_some_and(|a| !self.tasks.contains_key(&a.task)))
            .map(|input| input.key)
            .collect();
        for key in orphans {
            self.lose_attempt(key, crate::outputs::Loss::Machine, "its container was gone", now, out);
        }
        // An input that was cancelled and is with nobody has nothing left to wait for.
        let cancelled: Vec<_> = self
            .inputs
            .values()
            .filter(|input| input.cancelled.is_some() && input.attempt().is_none())
            .map(|input| input.key)
            .collect();
        for key in cancelled {
            let result = Failure::text(ResultStatus::Terminated, crate::outputs::CANCELLED_TEXT);
            self.finish_input(key, result, None, now, out);
        }
    }

    /// The connections on which requests were waited for ended with the server that had them.
    fn give_up_web_requests(&mut self, now: UnixMs, out: &mut Out) {
        let web = self.calls.iter().filter(|(_, call)| call.row.call_type == CallType::Web);
        let keys: Vec<_> = web.map(|(key, _)| *key).collect();
        for key in keys {
            self.cancel_inputs(key, now, out);
        }
    }

    /// Calls of functions that nobody has told the engine about cannot run any more.
    fn give_up_unknown_functions(&mut self, now: UnixMs, out: &mut Out) {
        let unknown: Vec<FunctionId> =
            self.pools.iter().filter(|(_, pool)| pool.conf.is_none()).map(|(id, _)| *id).collect();
        for function in unknown {
            let gone = Failure::text(ResultStatus::Terminated, "Its function does not exist any more");
            self.fail_waiting(function, &gone, now, out);
            if let Some(pool) = self.pools.get_mut(&function) {
                pool.stopped = true;
            }
            let tasks = self.pools.get(&function).map(|p| p.tasks.clone()).unwrap_or_default();
            for task in tasks {
                let how = StopHow::Interrupt { grace_ms: self.conf.stop_grace_ms };
                self.stop_task_now(task, how, Reason::AppStopped, now, out);
            }
            self.fail_waiting(function, &gone, now, out);
            let calls = self.pools.get(&function).map(|p| p.calls.clone()).unwrap_or_default();
            for call in calls {
                self.close_call(call, out);
            }
            self.drop_empty_pool(function);
        }
    }
}
