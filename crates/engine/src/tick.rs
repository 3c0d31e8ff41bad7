//! What happens because time passes.

use crate::engine::{Engine, Out};
use crate::step::{Effect, Step};
use crate::timers::Timer;
use evoke_core::{FunctionId, TaskId, UnixMs};
use evoke_store::calls::Key;

/// Deadlines handled by one step at most, so that a step stays small; the rest is due at once again.
const DEADLINES_PER_TICK_MAX: usize = 1024;

impl Engine {
    /// Handles what is due. To be called at [`Engine::next_deadline`]; later is safe.
    pub fn tick(&mut self, now: UnixMs) -> Step<()> {
        let mut out = Out::new();
        for _ in 0..DEADLINES_PER_TICK_MAX {
            let Some(timer) = self.timers.pop_due(now) else { break };
            match timer {
                Timer::Input(key) => self.input_due(key, now, &mut out),
                Timer::Task(id) => self.task_due(id, now, &mut out),
                Timer::Pool(function) => self.pool_due(function, now, &mut out),
                Timer::Call(key) => self.call_due(key, now, &mut out),
            }
        }
        self.settle(now, &mut out);
        out.step(())
    }

    fn pool_due(&mut self, function: FunctionId, now: UnixMs, out: &mut Out) {
        self.dirty.insert(function);
        let Some(pool) = self.pools.get(&function) else { return };
        if pool.queue.is_empty() {
            return;
        }
        let slots = pool.conf.as_ref().map_or(1, |conf| conf.max_concurrent_inputs.max(1)) as usize;
        let free: Vec<TaskId> = pool
            .tasks
            .iter()
            .filter_map(|id| self.tasks.get(id))
            .filter(|task| task.is_serving() && task.ready.is_some() && task.handouts.len() < slots)
            .map(|task| task.id)
            .collect();
        // All of them: a wake-up may have been lost with the connection that waited, and this is rare.
        for task in free {
            out.effect(Effect::WakeTask(task));
        }
        self.timers.at_latest(Timer::Pool(function), now.plus_ms(self.conf.rewake_ms));
    }

    fn call_due(&mut self, key: Key, now: UnixMs, out: &mut Out) {
        let Some(call) = self.calls.get(&key).filter(|call| call.open) else { return };
        let idle_at = call.touched.plus_ms(self.conf.idle_map_ms);
        if call.unfinished.is_empty() && idle_at <= now {
            self.close_call(key, out);
        } else {
            self.timers.set(Timer::Call(key), Some(idle_at.max(now.plus_ms(self.conf.rewake_ms))));
        }
    }
}
