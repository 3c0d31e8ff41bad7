//! Streams of chunks beside a call's inputs and outputs: items of generators, bodies of web requests.

use crate::cache::Slot;
use crate::calls::Call;
use crate::client::unknown_call;
use crate::engine::{Engine, Out};
use crate::request::{ChunksPoll, Direction};
use crate::step::{Effect, Step};
use bytes::Bytes;
use evoke_core::{CallId, Result, TaskId, UnixMs};
use evoke_store::calls::{CallWrite, ChunkRow};

/// Chunks answered by one poll at most.
const CHUNKS_PER_POLL_MAX: usize = 1024;

impl Engine {
    /// Chunks from a container to the caller, with their indices (counted from 1). Those that arrived before
    /// are dropped, so a repetition is harmless, and so is a generator that starts over elsewhere and repeats
    /// its items. Those of a container that does not have an input of the call are dropped too.
    pub fn append_data_out(
        &mut self,
        task: TaskId,
        call: CallId,
        chunks: Vec<(u64, Bytes)>,
        now: UnixMs,
    ) -> Result<Step<()>> {
        self.known_task(task)?;
        match self.call_key(&call) {
            Some(key) if self.works_on(task, call) => Ok(self.append(key, Direction::Out, chunks, now)),
            _ => Ok(Out::new().step(())),
        }
    }

    /// Whether a container has an input of a call.
    pub fn works_on(&self, task: TaskId, call: CallId) -> bool {
        let (Some(task), Some(key)) = (self.tasks.get(&task), self.call_key(&call)) else { return false };
        task.running.iter().filter_map(|input| self.inputs.get(input)).any(|input| input.call == key)
    }

    /// Chunks from the caller to the container.
    pub fn append_data_in(
        &mut self,
        call: CallId,
        chunks: Vec<(u64, Bytes)>,
        now: UnixMs,
    ) -> Result<Step<()>> {
        let key = self.call_key(&call).ok_or_else(|| unknown_call(&call))?;
        Ok(self.append(key, Direction::In, chunks, now))
    }

    fn append(
        &mut self,
        key: evoke_store::calls::Key,
        direction: Direction,
        chunks: Vec<(u64, Bytes)>,
        now: UnixMs,
    ) -> Step<()> {
        let mut out = Out::new();
        let Some(call) = self.calls.get_mut(&key) else { return out.step(()) };
        call.touched = now;
        out.safe_for(call.row.invocation);
        for (index, body) in chunks {
            let last = match direction {
                Direction::Out => &mut call.last_out,
                Direction::In => &mut call.last_in,
            };
            if index <= *last {
                continue;
            }
            *last = index;
            self.cache.put_bytes(Slot::Chunk(key, direction, index), &body);
            out.write(CallWrite::Chunk(ChunkRow { call: key, direction, index, body }));
        }
        if !out.writes.is_empty() {
            out.effect(Effect::WakeCall(call.row.id));
        }
        out.step(())
    }

    /// Chunks of a call after an index, without waiting. None if the call is not in memory (see
    /// [`Engine::poll_outputs`]).
    pub fn poll_data(&self, call: CallId, direction: Direction, after: u64) -> Option<ChunksPoll> {
        let key = self.call_key(&call)?;
        let call = self.calls.get(&key)?;
        let last_index = match direction {
            Direction::Out => call.last_out,
            Direction::In => call.last_in,
        };
        let chunks = (after + 1..=last_index)
            .take(CHUNKS_PER_POLL_MAX)
            .map_while(|index| Some((index, self.cache.bytes(Slot::Chunk(key, direction, index))?)))
            .collect();
        Some(ChunksPoll { call: key, last_index, chunks, ended: Call::is_over(call) })
    }
}
