//! Containers: what their machine reports of them, and how they are stopped.

use crate::engine::{Engine, Out};
use crate::outputs::Loss;
use crate::pool::{Failure, Task};
use crate::request::{ContainerEvent, ContainerExit, ExitCause, ResultStatus};
use crate::step::{Effect, Step, StopHow};
use crate::timers::Timer;
use bytes::Bytes;
use evoke_core::{FunctionId, Phase, StartPath, TaskId, UnixMs};
use evoke_sched::{Reason, WorkerId};
use evoke_store::calls::{CallWrite, Key, ResultBody, StopState, TaskEnd, TaskUsage};

/// How long a container may take to its first poll where its function is not known.
const STARTUP_TIMEOUT_MS: u64 = 300_000;

impl Engine {
    /// What a container runs with (image, mounts, secret versions, as control encodes it) and which way it
    /// is started.
    pub fn task_with(&mut self, task: TaskId, with: Bytes, path: StartPath) -> Step<()> {
        let mut out = Out::new();
        out.write(CallWrite::TaskWith { task, with, path });
        out.step(())
    }

    /// Which way a container was started, once its machine knows.
    pub fn task_path(&mut self, task: TaskId, path: StartPath) -> Step<()> {
        let mut out = Out::new();
        out.write(CallWrite::TaskPath { task, path });
        out.step(())
    }

    /// What a container used so far.
    pub fn task_usage(&mut self, task: TaskId, usage: TaskUsage) -> Step<()> {
        let mut out = Out::new();
        out.write(CallWrite::TaskUsage { task, usage });
        out.step(())
    }

    /// News of a container. News of one that is gone only completes its record.
    pub fn container_event(&mut self, task: TaskId, event: ContainerEvent, now: UnixMs) -> Step<()> {
        let mut out = Out::new();
        match event {
            // The engine itself sees the first poll, which is what "ready" means.
            ContainerEvent::Phase(Phase::Ready, _) => {}
            ContainerEvent::Phase(phase, at) => {
                out.write(CallWrite::TaskPhase { task, phase, at });
                if let (Phase::Exec, Some(known)) = (phase, self.tasks.get_mut(&task)) {
                    known.executed.get_or_insert(now);
                    self.set_task_timer(task, now);
                }
            }
            ContainerEvent::Exited(exit) => {
                out.write(CallWrite::TaskPhase { task, phase: Phase::Exited, at: now });
                self.end_task(task, &exit, now, &mut out);
            }
        }
        self.settle(now, &mut out);
        out.step(())
    }

    /// A container reports that it failed as a whole (import, enter hook, exit hook). Before its first poll
    /// this is a failed start: it is given up at once, and after a number of them in a row the waiting inputs
    /// end with a copy of this result.
    pub fn task_result(
        &mut self,
        task: TaskId,
        status: ResultStatus,
        result: Bytes,
        now: UnixMs,
    ) -> Step<()> {
        let mut out = Out::new();
        if status != ResultStatus::Success {
            if let Some(known) = self.tasks.get_mut(&task) {
                let failure = Failure { status, body: ResultBody::Container(result) };
                known.failure = Some(failure.clone());
                let function = known.function;
                if known.is_serving() && known.ready.is_none() {
                    known.start_counted = true;
                    self.set_stop_state(task, StopState::Draining, now, &mut out);
                    self.start_failed(function, failure, now, &mut out);
                }
            }
        }
        self.settle(now, &mut out);
        out.step(())
    }

    /// Somebody asks for a container to stop: gracefully (it finishes what it has and takes nothing more), or
    /// now (it is interrupted and its inputs run elsewhere).
    pub fn stop_task(&mut self, task: TaskId, graceful: bool, now: UnixMs) -> Step<()> {
        let mut out = Out::new();
        if graceful {
            self.drain_task(task, Reason::Asked, now, &mut out);
        } else {
            let how = StopHow::Interrupt { grace_ms: self.conf.stop_grace_ms };
            self.stop_task_now(task, how, Reason::Asked, now, &mut out);
        }
        self.settle(now, &mut out);
        out.step(())
    }

    /// A machine went away with all its containers.
    pub fn remove_worker(&mut self, worker: WorkerId, now: UnixMs) -> Step<()> {
        let mut out = Out::new();
        let lost: Vec<TaskId> = self.tasks.values().filter(|t| t.worker == worker).map(|t| t.id).collect();
        self.workers.remove(&worker);
        self.devices.remove(worker);
        for task in lost {
            self.end_task(task, &lost_exit("its machine went away"), now, &mut out);
        }
        self.settle(now, &mut out);
        out.step(())
    }

    /// The container takes nothing more and ends when it has finished what it has. One that has not begun to
    /// serve is stopped instead.
    pub(crate) fn drain_task(&mut self, id: TaskId, why: Reason, now: UnixMs, out: &mut Out) {
        let Some(task) = self.tasks.get(&id).filter(|task| task.is_serving()) else { return };
        let (idle, leases) = (task.is_idle(), task.leases);
        if task.ready.is_none() {
            let how = self.how_to_stop(id);
            self.stop_task_now(id, how, why, now, out);
            return;
        }
        self.note(id, why, now);
        self.set_stop_state(id, StopState::Draining, now, out);
        if idle {
            self.end_drained(id, now, out);
        } else if leases == 0 {
            // It may wait for more inputs beside those that it has.
            out.effect(Effect::WakeTask(id));
        }
    }

    /// A container that takes nothing more has finished what it had: it ends when its question for inputs is
    /// answered so, or, where it asks for none, by an interrupt.
    pub(crate) fn end_drained(&mut self, id: TaskId, now: UnixMs, out: &mut Out) {
        let Some(task) = self.tasks.get(&id) else { return };
        let conf = self.pools.get(&task.function).and_then(|pool| pool.conf.as_ref());
        if conf.is_some_and(|conf| conf.is_server) {
            let how = StopHow::Interrupt { grace_ms: self.conf.stop_grace_ms };
            if self.mark_stopping(id, now, out) {
                self.emit_stop(id, how, Reason::Drained, now, out);
            }
        } else {
            out.effect(Effect::WakeTask(id));
        }
    }

    /// Fences a container; false if it was already told to stop, or is gone.
    pub(crate) fn mark_stopping(&mut self, id: TaskId, now: UnixMs, out: &mut Out) -> bool {
        if self.tasks.get(&id).is_none_or(|task| task.stop == StopState::Stopping) {
            return false;
        }
        self.set_stop_state(id, StopState::Stopping, now, out);
        true
    }

    fn set_stop_state(&mut self, id: TaskId, stop: StopState, now: UnixMs, out: &mut Out) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        task.stop = stop;
        task.stop_since = now;
        let (function, poll) = (task.function, (task.idle_since, id));
        out.write(CallWrite::TaskStop { task: id, stop });
        // The first of these counts.
        out.write(CallWrite::TaskPhase { task: id, phase: Phase::Stopping, at: now });
        if let Some(pool) = self.pools.get_mut(&function) {
            pool.polls.remove(&poll);
        }
        self.set_task_timer(id, now);
        self.dirty.insert(function);
        out.effect(Effect::PoolChanged(function));
    }

    pub(crate) fn emit_stop(&mut self, id: TaskId, how: StopHow, why: Reason, now: UnixMs, out: &mut Out) {
        self.note(id, why, now);
        let grace_ms = match how {
            StopHow::Interrupt { grace_ms } => grace_ms,
            StopHow::Kill => 0,
        };
        let overdue = now.plus_ms(grace_ms).plus_ms(self.conf.stop_slack_ms);
        self.timers.set(Timer::Task(id), Some(overdue));
        // Its waiting poll is answered with the kill switch.
        out.effect(Effect::WakeTask(id));
        out.effect(Effect::StopContainer { task: id, how, reason: why.to_string() });
    }

    fn note(&mut self, id: TaskId, why: Reason, now: UnixMs) {
        let function = self.tasks.get(&id).map(|task| task.function);
        if let Some(pool) = function.and_then(|f| self.pools.get_mut(&f)) {
            pool.notes.add(now, Some(id), why);
        }
    }

    /// Sets the deadline that fits a container's state. A stop sets its own.
    pub(crate) fn set_task_timer(&mut self, id: TaskId, now: UnixMs) {
        let Some(task) = self.tasks.get(&id) else { return };
        let conf = self.pools.get(&task.function).and_then(|pool| pool.conf.as_ref());
        let startup_ms = conf.map_or(STARTUP_TIMEOUT_MS, |conf| conf.startup_timeout_ms);
        let lease_ms = conf.map_or(0, |conf| conf.timeout_ms);
        let at = match (task.stop, task.ready, task.executed) {
            (StopState::Stopping, ..) => return,
            (StopState::Draining, ..) if task.is_idle() => Some(now.plus_ms(self.conf.stop_grace_ms)),
            (StopState::Draining, ..) if task.leases > 0 => Some(task.stop_since.plus_ms(lease_ms)),
            (StopState::Draining, ..) => None,
            (StopState::Serving, Some(_), _) => None,
            (StopState::Serving, None, Some(executed)) => Some(executed.plus_ms(startup_ms)),
            (StopState::Serving, None, None) => Some(task.queued.plus_ms(self.conf.placement_timeout_ms)),
        };
        self.timers.set(Timer::Task(id), at);
    }

    /// A start or a stop took too long.
    pub(crate) fn task_due(&mut self, id: TaskId, now: UnixMs, out: &mut Out) {
        let Some(task) = self.tasks.get(&id) else { return };
        let (function, stop_since) = (task.function, task.stop_since);
        match task.stop {
            StopState::Serving if task.ready.is_some() => {}
            StopState::Serving => {
                let timeout_ms = now.since(task.executed.unwrap_or(task.queued));
                let text = match task.executed {
                    Some(_) => format!(
                        "The container did not become ready within its startup timeout ({}s)",
                        timeout_ms / 1000
                    ),
                    None => format!("The container could not be started within {}s", timeout_ms / 1000),
                };
                let why = Reason::StartupTimeout { timeout_ms };
                self.stop_task_now(id, StopHow::Kill, why, now, out);
                self.start_failed(function, Failure::text(ResultStatus::Timeout, text), now, out);
            }
            StopState::Draining if task.is_idle() || task.leases > 0 && task.running.is_empty() => {
                let how = StopHow::Interrupt { grace_ms: self.conf.stop_grace_ms };
                let why = Reason::Overdue { waited_ms: now.since(stop_since) };
                self.stop_task_now(id, how, why, now, out);
            }
            StopState::Draining => {}
            StopState::Stopping => {
                let why = Reason::Overdue { waited_ms: now.since(stop_since) };
                self.emit_stop(id, StopHow::Kill, why, now, out);
            }
        }
    }

    /// A container is gone: what it had runs elsewhere or fails.
    pub(crate) fn end_task(&mut self, id: TaskId, exit: &ContainerExit, now: UnixMs, out: &mut Out) {
        let Some(task) = self.tasks.get(&id) else { return };
        let running: Vec<Key> = task.running.iter().copied().collect();
        let cancels =
            running.iter().filter_map(|k| self.inputs.get(k)).any(|input| input.cancelled.is_some());
        for key in running {
            match exit.cause {
                ExitCause::WorkerLost => self.lose_attempt(key, Loss::Machine, &exit.text, now, out),
                _ if exit.oom => {
                    self.end_attempt(key, out_of_memory(exit), None, now, out);
                }
                // Synchronous code with several inputs cannot cancel one of them: the client ends the container.
                _ if cancels => self.lose_attempt(key, Loss::Stopped, &exit.text, now, out),
                _ => self.lose_attempt(key, Loss::Crash, &exit.text, now, out),
            }
        }
        let Some(task) = self.tasks.remove(&id) else { return };
        self.timers.set(Timer::Task(id), None);
        out.write(CallWrite::TaskEnded { task: id, end: row_of(exit, now) });
        self.give_back(&task, out);
        if task.taken == 0 && task.is_serving() && exit.cause != ExitCause::WorkerLost {
            self.start_failed(task.function, start_failure(&task, exit), now, out);
        }
        self.wake_blocked();
        self.dirty.insert(task.function);
        out.effect(Effect::PoolChanged(task.function));
        self.drop_empty_pool(task.function);
    }

    /// Gives back what a container held.
    fn give_back(&mut self, task: &Task, out: &mut Out) {
        self.devices.give_back(task.worker, task.id);
        if let Some(worker) = self.workers.get_mut(&task.worker) {
            worker.reserved.remove(&task.resources);
            worker.starting = worker.starting.saturating_sub(u32::from(task.ready.is_none()));
            worker.overcommitted = worker.overcommitted.saturating_sub(u32::from(task.overcommitted));
        }
        if let Some(pool) = self.pools.get_mut(&task.function) {
            pool.tasks.remove(&task.id);
            pool.polls.remove(&(task.idle_since, task.id));
        }
        if let Some(count) = self.app_tasks.get_mut(&task.app) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.app_tasks.remove(&task.app);
                out.effect(Effect::AppIdle(task.app));
            }
        }
    }

    /// A start failed. After a number of them in a row, with no container left that works, the inputs that
    /// wait fail too; the next inputs get one try before they share that fate.
    fn start_failed(&mut self, function: FunctionId, failure: Failure, now: UnixMs, out: &mut Out) {
        let limit = self.conf.crash_loop_limit.max(1);
        let Some(pool) = self.pools.get_mut(&function) else { return };
        pool.failed_starts = pool.failed_starts.saturating_add(1);
        let doublings = pool.failed_starts.saturating_sub(1).min(16);
        let backoff = self.conf.crash_backoff_ms.saturating_mul(1 << doublings);
        pool.not_before = now.plus_ms(backoff.min(self.conf.crash_backoff_max_ms));
        self.dirty.insert(function);
        let failed_starts = pool.failed_starts;
        let works = pool
            .tasks
            .iter()
            .filter_map(|id| self.tasks.get(id))
            .any(|t| t.ready.is_some() && t.is_serving());
        if failed_starts < limit || works {
            return;
        }
        let inputs = self.fail_waiting(function, &failure, now, out);
        if let Some(pool) = self.pools.get_mut(&function) {
            if inputs > 0 {
                pool.notes.add(now, None, Reason::CrashLoop { failed_starts, inputs });
                pool.failed_starts = limit - 1;
            }
        }
    }
}

/// The exit of a container whose machine or server went away.
pub(crate) fn lost_exit(text: &str) -> ContainerExit {
    ContainerExit { oom: false, code: None, signal: None, cause: ExitCause::WorkerLost, text: text.into() }
}

fn row_of(exit: &ContainerExit, at: UnixMs) -> TaskEnd {
    TaskEnd { at, text: exit.text.clone(), exit_code: exit.code, signal: exit.signal, oom: exit.oom }
}

fn out_of_memory(exit: &ContainerExit) -> Failure {
    let text = match exit.text.as_str() {
        "" => "The container ran out of memory",
        text => text,
    };
    Failure::text(ResultStatus::Oom, text)
}

/// What the inputs that wait for a container fail with when it ended before its first input.
fn start_failure(task: &Task, exit: &ContainerExit) -> Failure {
    if let Some(failure) = &task.failure {
        return failure.clone();
    }
    if exit.oom {
        return out_of_memory(exit);
    }
    let how = match (exit.code, exit.signal) {
        (_, Some(signal)) => format!("was ended by signal {signal}"),
        (Some(code), None) => format!("exited with code {code}"),
        (None, None) => "ended".to_owned(),
    };
    let colon = if exit.text.is_empty() { "" } else { ": " };
    match exit.cause {
        ExitCause::StartFailed => Failure::text(
            ResultStatus::InternalFailure,
            format!("The container could not be started{colon}{}", exit.text),
        ),
        _ => Failure::text(
            ResultStatus::InitFailure,
            format!("The container {how} before its first input{colon}{}", exit.text),
        ),
    }
}
