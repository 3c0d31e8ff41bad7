//! Cancelling calls and stopping apps.

use crate::calls::Place;
use crate::client::unknown_call;
use crate::engine::{Engine, Out};
use crate::outputs::{CANCELLED_TEXT, Loss};
use crate::pool::{Failure, Task};
use crate::request::ResultStatus;
use crate::step::{Effect, Step, StopHow};
use crate::timers::Timer;
use evoke_core::{AppId, CallId, FunctionId, InputId, Result, TaskId, UnixMs};
use evoke_sched::Reason;
use evoke_store::calls::{CallWrite, Key};
use std::collections::BTreeSet;

/// What inputs of a stopped app end with.
const APP_STOPPED_TEXT: &str = "The app was stopped";

impl Engine {
    /// Cancels what is unfinished of a call. Inputs that no container has end at once; containers are told
    /// of the others and killed after a grace if they do not end them, or at once if so asked (their other
    /// inputs then run elsewhere). A call that is over stays as it is.
    pub fn cancel(&mut self, call: CallId, terminate_containers: bool, now: UnixMs) -> Result<Step<()>> {
        let key = self.call_key(&call).ok_or_else(|| unknown_call(&call))?;
        let mut out = Out::new();
        if let Some(invocation) = self.calls.get(&key).map(|call| call.row.invocation) {
            out.safe_for(invocation);
        }
        let tasks = self.cancel_inputs(key, now, &mut out);
        if terminate_containers {
            for task in tasks {
                self.stop_task_now(task, StopHow::Kill, Reason::CancelTerminates, now, &mut out);
            }
        }
        self.settle(now, &mut out);
        Ok(out.step(()))
    }

    /// Cancels a call's inputs; the containers that have some of them.
    pub(crate) fn cancel_inputs(&mut self, key: Key, now: UnixMs, out: &mut Out) -> BTreeSet<TaskId> {
        let mut tasks = BTreeSet::new();
        let Some(call) = self.calls.get_mut(&key) else { return tasks };
        if !call.unfinished.is_empty() {
            call.cancelled = true;
        }
        for input_key in call.unfinished.clone() {
            let Some(input) = self.inputs.get_mut(&input_key) else { continue };
            let Place::Running(attempt) = &mut input.place else {
                let cancelled = Failure::text(ResultStatus::Terminated, CANCELLED_TEXT);
                self.finish_input(input_key, cancelled, None, now, out);
                continue;
            };
            let task = attempt.task;
            tasks.insert(task);
            if input.cancelled.is_none() {
                attempt.kill_at = Some(now.plus_ms(self.conf.cancel_grace_ms));
                input.cancelled = Some(now);
                out.write(CallWrite::Pending(input.pending()));
                self.timers.at_latest(Timer::Input(input_key), now.plus_ms(self.conf.cancel_grace_ms));
                out.effect(Effect::WakeHeartbeat(task));
            }
        }
        self.close_call(key, out);
        tasks
    }

    /// The inputs that a container should cancel, for its heartbeat's answer; the same ones until they end,
    /// because a container ignores those that it does not run at that moment.
    pub fn cancelled_inputs(&self, task: TaskId) -> Vec<InputId> {
        let Some(task) = self.tasks.get(&task) else { return Vec::new() };
        let inputs = task.running.iter().filter_map(|key| self.inputs.get(key));
        inputs.filter(|input| input.cancelled.is_some()).map(|input| input.id).collect()
    }

    /// How long a cancelled input may go on (milliseconds).
    pub fn cancel_grace_ms(&self) -> u64 {
        self.conf.cancel_grace_ms
    }

    /// An app was stopped: its calls end as terminated. Containers without an input are let go, so that they
    /// end as they do when they are not needed any more; those with one are interrupted. Repeating it is
    /// harmless. [`Effect::AppIdle`] follows when the last container is gone, at once if there is none.
    pub fn stop_app(&mut self, app: AppId, now: UnixMs) -> Step<()> {
        let mut out = Out::new();
        let functions: Vec<FunctionId> =
            self.pools.iter().filter(|(_, pool)| pool.app == app).map(|(id, _)| *id).collect();
        for function in functions {
            let Some(pool) = self.pools.get_mut(&function) else { continue };
            pool.stopped = true;
            let tasks = pool.tasks.clone();
            // Before the calls end: the containers go on with what they have until they are told.
            let idle = |id: &TaskId| self.tasks.get(id).is_some_and(|t| t.ready.is_some() && t.is_idle());
            let (idle, busy): (Vec<TaskId>, Vec<TaskId>) = tasks.into_iter().partition(idle);
            self.end_calls(function, now, &mut out);
            for task in idle {
                self.drain_task(task, Reason::AppStopped, now, &mut out);
            }
            for task in busy {
                let how = self.how_to_stop(task);
                self.stop_task_now(task, how, Reason::AppStopped, now, &mut out);
            }
            self.drop_empty_pool(function);
            out.effect(Effect::PoolChanged(function));
        }
        if self.app_is_idle(app) {
            out.effect(Effect::AppIdle(app));
        }
        self.settle(now, &mut out);
        out.step(())
    }

    /// A container that has not begun to serve has no exit hooks to run, and an interrupt in the middle of its
    /// imports would only fill the log.
    pub(crate) fn how_to_stop(&self, task: TaskId) -> StopHow {
        match self.tasks.get(&task) {
            Some(Task { ready: None, .. }) => StopHow::Kill,
            _ => StopHow::Interrupt { grace_ms: self.conf.stop_grace_ms },
        }
    }

    /// Ends all calls of a function, whatever their inputs do.
    fn end_calls(&mut self, function: FunctionId, now: UnixMs, out: &mut Out) {
        let stopped = Failure::text(ResultStatus::Terminated, APP_STOPPED_TEXT);
        self.refuse_line(function, &stopped, out);
        let calls = self.pools.get(&function).map(|p| p.calls.clone()).unwrap_or_default();
        for call in calls {
            let Some(known) = self.calls.get_mut(&call) else { continue };
            known.cancelled = true;
            for input in known.unfinished.clone() {
                self.finish_input(input, stopped.clone(), None, now, out);
            }
            self.close_call(call, out);
        }
    }

    /// A pool of a stopped app goes with its last container and call.
    pub(crate) fn drop_empty_pool(&mut self, function: FunctionId) {
        let empty =
            self.pools.get(&function).is_some_and(|p| p.stopped && p.tasks.is_empty() && p.calls.is_empty());
        if empty {
            self.pools.remove(&function);
            self.timers.set(Timer::Pool(function), None);
            self.dirty.remove(&function);
            self.blocked.remove(&function);
        }
    }

    /// An input ran out of time, or its cancellation did, or its retry is due.
    pub(crate) fn input_due(&mut self, key: Key, now: UnixMs, out: &mut Out) {
        let Some(input) = self.inputs.get_mut(&key) else { return };
        match input.place {
            Place::Queued => {}
            Place::Backoff(until) if until > now => self.timers.set(Timer::Input(key), Some(until)),
            Place::Backoff(_) => self.retry_now(key, now, out),
            Place::Running(attempt) => {
                if attempt.kill_at.is_some_and(|at| at <= now) {
                    let reason = Reason::CancelGrace { grace_ms: self.conf.cancel_grace_ms };
                    self.stop_task_now(attempt.task, StopHow::Kill, reason, now, out);
                } else if attempt.timeout_at <= now {
                    self.time_out(key, now, out);
                } else {
                    let next = attempt.kill_at.map_or(attempt.timeout_at, |at| at.min(attempt.timeout_at));
                    self.timers.set(Timer::Input(key), Some(next));
                }
            }
        }
    }

    fn retry_now(&mut self, key: Key, now: UnixMs, out: &mut Out) {
        let Some(input) = self.inputs.get_mut(&key) else { return };
        input.place = Place::Queued;
        let group = input.group;
        let Some(function) = self.calls.get(&input.call).map(|call| call.row.function_id) else { return };
        if let Some(pool) = self.pools.get_mut(&function) {
            pool.backoff.remove(&key);
            let group = pool.group(group);
            pool.queue.push(group, key, now);
        }
        self.wake_polls(function, 1, now, out);
        self.dirty.insert(function);
    }

    fn time_out(&mut self, key: Key, now: UnixMs, out: &mut Out) {
        let Some(attempt) = self.inputs.get(&key).and_then(|input| input.attempt()) else { return };
        let timeout_ms = attempt.timeout_at.since(attempt.started);
        let text = format!("Task's current input hit its timeout of {}s", timeout_ms.div_ceil(1000));
        self.end_attempt(key, Failure::text(ResultStatus::Timeout, text), None, now, out);
        let how = StopHow::Interrupt { grace_ms: self.conf.stop_grace_ms };
        self.stop_task_now(attempt.task, how, Reason::InputTimeout { timeout_ms }, now, out);
    }

    /// Stops a container: it is fenced from now on, and its inputs go elsewhere.
    pub(crate) fn stop_task_now(
        &mut self,
        id: TaskId,
        how: StopHow,
        why: Reason,
        now: UnixMs,
        out: &mut Out,
    ) {
        if !self.mark_stopping(id, now, out) {
            return;
        }
        let running = self.tasks.get(&id).map(|t| t.running.clone()).unwrap_or_default();
        for key in running {
            self.lose_attempt(key, Loss::Stopped, &why.to_string(), now, out);
        }
        self.emit_stop(id, how, why, now, out);
    }
}
