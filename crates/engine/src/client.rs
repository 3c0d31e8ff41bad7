//! What clients ask for: new calls and inputs, outputs, numbers.

use crate::cache::Slot;
use crate::calls::{Call, Input, Place};
use crate::engine::{Engine, Out};
use crate::pool::Failure;
use crate::request::{
    CallInfo, CallType, MapReply, MapRequest, NewInput, OutputRef, OutputsPoll, ResultStatus,
};
use crate::step::{Effect, Step};
use crate::timers::Timer;
use evoke_core::{CallId, Error, ErrorCode, FunctionId, InputId, Result, UnixMs};
use evoke_sched::Offer;
use evoke_store::calls::{CallRow, CallWrite, InputRow, Key, OutputsQuery, keys};

/// References to outputs kept of a call that is over; a client that is further behind reads the store.
const OVER_WINDOW: usize = 64;

impl Engine {
    /// A new call, with the inputs that come with it.
    pub fn map(&mut self, request: MapRequest, now: UnixMs) -> Result<Step<MapReply>> {
        let pool = self.pools.get(&request.function_id).filter(|pool| pool.conf.is_some());
        let Some(pool) = pool else {
            return Err(Error::not_found(format!("there is no function {}", request.function_id)));
        };
        if pool.stopped {
            return Err(Error::precondition(format!("the app of {} is stopped", request.function_id)));
        }
        let app_id = pool.app;
        self.check_room(0, request.inputs.len())?;
        let mut out = Out::new();
        out.safe_for(request.invocation);
        let parts = self.new_parts(now);
        let row = CallRow {
            key: parts.key,
            id: keys::join(parts),
            function_id: request.function_id,
            app_id,
            call_type: request.call_type,
            invocation: request.invocation,
            parent_input: request.parent_input,
            return_exceptions: request.return_exceptions,
            created: now,
        };
        let open = request.call_type == CallType::Map || request.inputs.is_empty();
        out.write(CallWrite::Call { row: row.clone(), open });
        let call_id = row.id;
        self.calls.insert(parts.key, Call::new(row, open, now));
        if let Some(pool) = self.pools.get_mut(&request.function_id) {
            pool.calls.insert(parts.key);
        }
        self.touch_call(parts.key, now);
        let inputs = self.add_inputs(parts.key, request.inputs, now, &mut out);
        self.settle(now, &mut out);
        Ok(out.step(MapReply { call_id, inputs }))
    }

    /// More inputs for a call. More than the named bounds of unfinished ones are refused with
    /// `ResourceExhausted`, which clients take as "later".
    pub fn put_inputs(
        &mut self,
        call: CallId,
        inputs: Vec<NewInput>,
        now: UnixMs,
    ) -> Result<Step<Vec<(i32, InputId)>>> {
        let key = self.call_key(&call).ok_or_else(|| unknown_call(&call))?;
        let Some(known) = self.calls.get(&key) else { return Err(unknown_call(&call)) };
        if !known.open {
            return Err(Error::precondition(format!("{call} takes no more inputs")));
        }
        self.check_room(known.unfinished.len(), inputs.len())?;
        let mut out = Out::new();
        out.safe_for(known.row.invocation);
        let ids = self.add_inputs(key, inputs, now, &mut out);
        self.touch_call(key, now);
        self.settle(now, &mut out);
        Ok(out.step(ids))
    }

    fn check_room(&self, unfinished_of_call: usize, more: usize) -> Result<()> {
        let of_call = unfinished_of_call + more > self.conf.unfinished_inputs_per_call_max;
        if of_call || self.inputs.len() + more > self.conf.unfinished_inputs_max {
            let text = if of_call {
                format!("the call has {unfinished_of_call} unfinished inputs; it may have no more for now")
            } else {
                format!("the server has {} unfinished inputs; it takes no more for now", self.inputs.len())
            };
            return Err(Error::new(ErrorCode::ResourceExhausted, text));
        }
        Ok(())
    }

    fn add_inputs(
        &mut self,
        call: Key,
        inputs: Vec<NewInput>,
        now: UnixMs,
        out: &mut Out,
    ) -> Vec<(i32, InputId)> {
        let Some(function) = self.calls.get(&call).map(|c| c.row.function_id) else { return Vec::new() };
        let mut ids = Vec::with_capacity(inputs.len());
        for input in inputs {
            let id = self.add_input(call, function, input, now, out);
            ids.push(id);
        }
        let unsatisfiable = self.pools.get(&function).and_then(|p| p.conf.as_ref()?.unsatisfiable.clone());
        if let Some(text) = unsatisfiable {
            self.fail_waiting(function, &Failure::text(ResultStatus::Failure, text), now, out);
        }
        if !ids.is_empty() {
            let close = self.calls.get(&call).is_some_and(|c| c.open && c.row.call_type != CallType::Map);
            if close {
                self.close_call(call, out);
            }
            self.wake_polls(function, ids.len(), now, out);
            self.dirty.insert(function);
        }
        ids
    }

    fn add_input(
        &mut self,
        call: Key,
        function: FunctionId,
        new: NewInput,
        now: UnixMs,
        out: &mut Out,
    ) -> (i32, InputId) {
        let parts = self.new_parts(now);
        let id: InputId = keys::join(parts);
        self.cache.put_bytes(Slot::Input(parts.key), &new.input);
        out.write(CallWrite::Input(InputRow {
            key: parts.key,
            id,
            call,
            idx: new.idx,
            group: new.group,
            created: now,
            payload: new.input,
        }));
        let input = Input {
            key: parts.key,
            id,
            call,
            idx: new.idx,
            group: new.group,
            created: now,
            retry_count: 0,
            crashes: 0,
            losses: 0,
            cancelled: None,
            place: Place::Queued,
        };
        self.inputs.insert(parts.key, input);
        if let Some(call) = self.calls.get_mut(&call) {
            call.inputs += 1;
            call.unfinished.insert(parts.key);
        }
        if let Some(pool) = self.pools.get_mut(&function) {
            let group = pool.group(new.group);
            pool.queue.push(group, parts.key, now);
        }
        (new.idx, id)
    }

    /// Tells waiting containers that there is work, at most one for each of `inputs` new inputs.
    pub(crate) fn wake_polls(&mut self, function: FunctionId, inputs: usize, now: UnixMs, out: &mut Out) {
        let Some(pool) = self.pools.get_mut(&function) else { return };
        if pool.queue.is_empty() {
            return;
        }
        let batch = pool.batch();
        if let Offer::Linger(until) = pool.queue.offer(u32::MAX, batch, now) {
            self.timers.at_latest(Timer::Pool(function), until);
            return;
        }
        let wanted = match batch {
            Some(batch) => inputs.div_ceil(batch.max_size.max(1) as usize),
            None => inputs,
        };
        for _ in 0..wanted {
            // The one that has been idle for the shortest time is the warmest.
            let Some((_, task)) = pool.polls.pop_last() else { break };
            out.effect(Effect::WakeTask(task));
        }
        // A wake-up can be lost with the connection that waited for it.
        self.timers.at_latest(Timer::Pool(function), now.plus_ms(self.conf.rewake_ms));
    }

    /// The client says how many inputs the call has in all; once they have ended the call is over.
    pub fn finish_inputs(&mut self, call: CallId, inputs: u32, now: UnixMs) -> Result<Step<()>> {
        let key = self.call_key(&call).ok_or_else(|| unknown_call(&call))?;
        let mut out = Out::new();
        if let Some(known) = self.calls.get_mut(&key) {
            known.declared = Some(inputs);
            out.safe_for(known.row.invocation);
        }
        out.write(CallWrite::DeclaredInputs { call: key, inputs });
        self.touch_call(key, now);
        self.check_over(key, &mut out);
        self.settle(now, &mut out);
        Ok(out.step(()))
    }

    /// Outputs after a cursor, without waiting. None if the call is not in memory: it is over or never was,
    /// and the store knows (`calls::call_by_id`, `calls::outputs`).
    pub fn poll_outputs(
        &mut self,
        call: CallId,
        after: Key,
        range: Option<(i32, i32)>,
        max: usize,
        now: UnixMs,
    ) -> Option<OutputsPoll> {
        let key = self.call_key(&call)?;
        self.touch_call(key, now);
        let call = self.calls.get(&key)?;
        let mut poll = OutputsPoll {
            last_entry: call.last_entry.max(after),
            unfinished: call.unfinished.len() as u32,
            ..OutputsPoll::default()
        };
        if after < call.window_from {
            poll.load =
                Some(OutputsQuery { call: key, after, range, max: u32::try_from(max).unwrap_or(u32::MAX) });
            return Some(poll);
        }
        let (low, high) = range.unwrap_or((i32::MIN, i32::MAX));
        let first = call.window.partition_point(|w| w.entry <= after);
        for seen in call.window.iter().skip(first).filter(|w| (low..=high).contains(&w.idx)) {
            if poll.outputs.len() == max {
                poll.last_entry = poll.outputs.last().map_or(after, |last: &OutputRef| last.entry);
                break;
            }
            let row = self.cache.output(seen.entry);
            poll.outputs.push(OutputRef { entry: seen.entry, idx: seen.idx, row });
        }
        Some(poll)
    }

    /// The client has all it wants of the call. What is stored stays for its retention; the memory is freed.
    pub fn clear_outputs(&mut self, call: CallId, now: UnixMs) -> Step<()> {
        let mut out = Out::new();
        if let Some(key) = self.call_key(&call) {
            if self.calls.get(&key).is_some_and(|c| c.open && c.unfinished.is_empty() && c.inputs > 0) {
                self.close_call(key, &mut out);
            }
            if self.calls.get(&key).is_some_and(Call::is_over) {
                self.forget_call(key);
            }
        }
        self.settle(now, &mut out);
        out.step(())
    }

    /// A call's numbers; none if the call is not in memory (see [`Engine::poll_outputs`]).
    pub fn call_info(&self, call: CallId) -> Option<CallInfo> {
        self.call_key(&call).and_then(|key| self.calls.get(&key)).map(Call::info)
    }

    /// A client asked for something: a map that nobody asks about is closed after a while.
    pub(crate) fn touch_call(&mut self, key: Key, now: UnixMs) {
        let Some(call) = self.calls.get_mut(&key) else { return };
        call.touched = now;
        if call.open {
            self.timers.at_latest(Timer::Call(key), now.plus_ms(self.conf.idle_map_ms));
        }
    }

    /// The call takes no more inputs.
    pub(crate) fn close_call(&mut self, key: Key, out: &mut Out) {
        let Some(call) = self.calls.get_mut(&key) else { return };
        if call.open {
            call.open = false;
            out.write(CallWrite::CallClosed { call: key });
            self.timers.set(Timer::Call(key), None);
            self.check_over(key, out);
        }
    }

    /// Whether the call is over now, and what follows from it.
    pub(crate) fn check_over(&mut self, key: Key, out: &mut Out) {
        let Some(call) = self.calls.get(&key) else { return };
        let complete = call.declared.is_some_and(|n| call.inputs >= n && call.unfinished.is_empty());
        if call.open && complete {
            self.close_call(key, out);
            return;
        }
        if !call.is_over() {
            return;
        }
        out.effect(Effect::WakeCall(call.row.id));
        let function = call.row.function_id;
        if let Some(call) = self.calls.get_mut(&key) {
            call.shrink_window(OVER_WINDOW);
        }
        if let Some(pool) = self.pools.get_mut(&function) {
            // Only the first time: a call is in its pool's list until it is over.
            if pool.calls.remove(&key) {
                self.over.push_back(key);
            }
        }
        self.drop_empty_pool(function);
        while self.over.len() > self.conf.ended_calls_kept {
            let Some(oldest) = self.over.pop_front() else { break };
            self.forget_call(oldest);
        }
    }

    fn forget_call(&mut self, key: Key) {
        self.timers.set(Timer::Call(key), None);
        let Some(call) = self.calls.remove(&key) else { return };
        for seen in call.window {
            self.cache.forget(Slot::Output(seen.entry));
        }
    }
}

pub(crate) fn unknown_call(call: &CallId) -> Error {
    Error::not_found(format!("there is no call {call} that takes inputs"))
}
