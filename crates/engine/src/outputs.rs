//! Inputs end: by a container's answer, by a failure, or by being given up.

use crate::cache::Slot;
use crate::calls::Place;
use crate::engine::{Engine, Out};
use crate::pool::Failure;
use crate::request::{CallType, NewOutput, OutputFate, ResultStatus};
use crate::step::{Effect, Step};
use crate::timers::Timer;
use evoke_core::{FunctionId, Result, TaskId, UnixMs};
use evoke_store::calls::{AttemptEnd, CallWrite, Key, OutputRow, ResultBody};

/// What a cancelled input ends with.
pub(crate) const CANCELLED_TEXT: &str = "Input was cancelled by user";

/// Why an attempt ended without an answer that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    /// Its container died.
    Crash,
    /// Its machine, or the server, went away.
    Machine,
    /// Its container was stopped for a reason that is not the input's.
    Stopped,
}

impl Engine {
    /// A container's answers. Repeating them is harmless, and late ones are dropped: an answer counts only
    /// from the container that has the input, and for the attempt that runs.
    pub fn put_outputs(
        &mut self,
        task: TaskId,
        outputs: Vec<NewOutput>,
        now: UnixMs,
    ) -> Result<Step<Vec<OutputFate>>> {
        self.known_task(task)?;
        let mut out = Out::new();
        let fates = outputs.into_iter().map(|output| self.put_output(task, output, now, &mut out)).collect();
        self.settle(now, &mut out);
        Ok(out.step(fates))
    }

    fn put_output(&mut self, task: TaskId, output: NewOutput, now: UnixMs, out: &mut Out) -> OutputFate {
        let Some(key) = self.input_key(&output.input_id) else { return OutputFate::Stale };
        let Some(input) = self.inputs.get(&key) else { return OutputFate::Stale };
        let current = input.attempt().filter(|a| a.task == task && input.retry_count == output.retry_count);
        let Some(attempt) = current else { return OutputFate::Stale };
        let function = self.calls.get(&input.call).map(|call| call.row.function_id);
        if let Some(pool) = function.and_then(|f| self.pools.get_mut(&f)) {
            pool.note_run(now.since(attempt.started));
        }
        let failure = Failure { status: output.status, body: ResultBody::Container(output.result) };
        self.end_attempt(key, failure, output.started, now, out)
    }

    /// The current attempt ended with this result: it is published, or tried again if it is a failure that
    /// the policy allows to try again.
    pub(crate) fn end_attempt(
        &mut self,
        key: Key,
        result: Failure,
        started: Option<UnixMs>,
        now: UnixMs,
        out: &mut Out,
    ) -> OutputFate {
        let Some(input) = self.inputs.get(&key) else { return OutputFate::Stale };
        if input.cancelled.is_some() {
            // Once a cancellation is acknowledged the input ends as cancelled, whoever was faster.
            self.finish_input(
                key,
                Failure::text(ResultStatus::Terminated, CANCELLED_TEXT),
                started,
                now,
                out,
            );
            return OutputFate::Published;
        }
        let delay = match result.status {
            ResultStatus::Success | ResultStatus::Terminated => None,
            _ => self.retry_delay(key),
        };
        let Some(delay_ms) = delay else {
            self.finish_input(key, result, started, now, out);
            return OutputFate::Published;
        };
        let end = match result.status {
            ResultStatus::Timeout => AttemptEnd::TimedOut,
            _ => AttemptEnd::Retried,
        };
        self.leave_attempt(key, Some(end), now, out);
        if let Some(input) = self.inputs.get_mut(&key) {
            input.retry_count += 1;
        }
        self.requeue(key, delay_ms, now, out);
        OutputFate::Retried
    }

    /// The delay before the next counted try of an input, if it has one.
    fn retry_delay(&self, key: Key) -> Option<u64> {
        let input = self.inputs.get(&key)?;
        let call = self.calls.get(&input.call)?;
        let conf = self.pools.get(&call.row.function_id)?.conf.as_ref()?;
        if conf.is_generator || call.row.call_type == CallType::Web {
            return None;
        }
        conf.retry.next_delay_ms(input.retry_count + 1)
    }

    /// The current attempt is lost through no fault of its own: the input is tried again without counting,
    /// up to a bound.
    pub(crate) fn lose_attempt(&mut self, key: Key, loss: Loss, why: &str, now: UnixMs, out: &mut Out) {
        let Some(input) = self.inputs.get_mut(&key) else { return };
        if input.cancelled.is_some() {
            let cancelled = Failure::text(ResultStatus::Terminated, CANCELLED_TEXT);
            self.finish_input(key, cancelled, None, now, out);
            return;
        }
        let web = self.calls.get(&input.call).is_some_and(|call| call.row.call_type == CallType::Web);
        if web {
            // What was read of its body is gone with the container.
            let text = format!("The container that worked on the request was lost: {why}");
            self.finish_input(key, Failure::text(ResultStatus::InternalFailure, text), None, now, out);
            return;
        }
        let (end, over) = match loss {
            Loss::Crash => {
                input.crashes += 1;
                (AttemptEnd::ContainerDied, input.crashes > self.conf.input_crashes_max)
            }
            Loss::Machine => {
                input.losses += 1;
                (AttemptEnd::Lost, input.losses > self.conf.input_losses_max)
            }
            Loss::Stopped => (AttemptEnd::Interrupted, false),
        };
        if over {
            let times = input.crashes + input.losses;
            let text =
                format!("The container that ran the input was lost {times} times; the last time: {why}");
            self.finish_input(key, Failure::text(ResultStatus::InternalFailure, text), None, now, out);
        } else {
            self.leave_attempt(key, Some(end), now, out);
            self.requeue(key, 0, now, out);
        }
    }

    /// Takes the input out of its attempt. `end` is stored for an attempt that gave no output.
    fn leave_attempt(&mut self, key: Key, end: Option<AttemptEnd>, now: UnixMs, out: &mut Out) {
        let Some(input) = self.inputs.get_mut(&key) else { return };
        let Some(attempt) = input.attempt() else { return };
        input.place = Place::Queued;
        self.timers.set(Timer::Input(key), None);
        if let Some(end) = end {
            out.write(CallWrite::AttemptEnded { attempt: attempt.key, at: now, end });
        }
        if let Some(call) = self.calls.get_mut(&input.call) {
            call.running = call.running.saturating_sub(1);
        }
        self.free_slot(attempt.task, attempt.claim, key, now, out);
    }

    /// The container is done with an input.
    fn free_slot(&mut self, id: TaskId, claim: Key, key: Key, now: UnixMs, out: &mut Out) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        task.running.remove(&key);
        if let Some(handout) = task.handouts.get_mut(&claim) {
            handout.inputs.remove(&key);
            if handout.inputs.is_empty() {
                task.handouts.remove(&claim);
            }
        }
        let function = task.function;
        if task.is_idle() {
            self.note_idle(id, now);
        }
        // A request may wait for the slot.
        self.grant(function, now, out);
        self.tag_output(id, out);
        self.dirty.insert(function);
        out.effect(Effect::PoolChanged(function));
    }

    /// A container works on nothing any more.
    pub(crate) fn note_idle(&mut self, id: TaskId, now: UnixMs) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let before = task.idle_since;
        task.idle_since = now;
        if let Some(pool) = self.pools.get_mut(&task.function) {
            if pool.polls.remove(&(before, id)) {
                pool.polls.insert((now, id));
            }
        }
        self.set_task_timer(id, now);
    }

    /// Puts an input that no container has back in line, now or after a delay.
    fn requeue(&mut self, key: Key, delay_ms: u64, now: UnixMs, out: &mut Out) {
        let Some(input) = self.inputs.get_mut(&key) else { return };
        let until = now.plus_ms(delay_ms);
        input.place = if delay_ms == 0 { Place::Queued } else { Place::Backoff(until) };
        out.write(CallWrite::Pending(input.pending()));
        let group = input.group;
        let Some(function) = self.calls.get(&input.call).map(|call| call.row.function_id) else { return };
        let Some(pool) = self.pools.get_mut(&function) else { return };
        if delay_ms == 0 {
            let group = pool.group(group);
            pool.queue.push(group, key, now);
            self.wake_polls(function, 1, now, out);
        } else {
            pool.backoff.insert(key);
            self.timers.set(Timer::Input(key), Some(until));
        }
        self.dirty.insert(function);
    }

    /// The input ends: its one output is published.
    pub(crate) fn finish_input(
        &mut self,
        key: Key,
        result: Failure,
        started: Option<UnixMs>,
        now: UnixMs,
        out: &mut Out,
    ) {
        let attempt = self.inputs.get(&key).and_then(|input| input.attempt());
        self.leave_attempt(key, None, now, out);
        let Some(input) = self.inputs.remove(&key) else { return };
        self.timers.set(Timer::Input(key), None);
        self.cache.forget(Slot::Input(key));
        let entry = self.take_key();
        let window = self.conf.outputs_window;
        let Some(call) = self.calls.get_mut(&input.call) else { return };
        call.unfinished.remove(&key);
        call.push_output(entry, input.idx, result.status, window);
        out.safe_for(call.row.invocation);
        out.effect(Effect::WakeCall(call.row.id));
        let function = call.row.function_id;
        if let Some(pool) = self.pools.get_mut(&function) {
            let group = pool.group(input.group);
            pool.queue.remove(group, key);
            pool.backoff.remove(&key);
        }
        let row = OutputRow {
            entry,
            call: input.call,
            input: key,
            input_id: input.id,
            idx: input.idx,
            status: result.status,
            body: result.body,
            retry_count: input.retry_count,
            attempt: attempt.map(|a| a.key),
            task: attempt.map(|a| a.task),
            started: started.or(attempt.map(|a| a.started)),
            finished: now,
        };
        self.cache.put_output(&row);
        out.write(CallWrite::Output(row));
        self.check_over(input.call, out);
    }

    /// All inputs of a pool that no container has fail with the same result.
    pub(crate) fn fail_waiting(
        &mut self,
        function: FunctionId,
        failure: &Failure,
        now: UnixMs,
        out: &mut Out,
    ) -> u32 {
        let Some(pool) = self.pools.get(&function) else { return 0 };
        let keys: Vec<Key> = pool.queue.keys().chain(pool.backoff.iter().copied()).collect();
        for key in &keys {
            self.finish_input(*key, failure.clone(), None, now, out);
        }
        let refused = self.refuse_line(function, failure, out);
        if !keys.is_empty() {
            out.effect(Effect::PoolChanged(function));
        }
        keys.len() as u32 + refused
    }
}
