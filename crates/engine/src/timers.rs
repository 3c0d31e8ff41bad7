//! Deadlines, at most one for each object.

use evoke_core::{FunctionId, TaskId, UnixMs};
use evoke_store::calls::Key;
use std::collections::{BTreeMap, BTreeSet};

/// Whose deadline it is. What happens then follows from the object's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// A retry is due, or an input has run out of time, or its cancellation has.
    Input(Key),
    /// A start or a stop takes too long.
    Task(TaskId),
    /// A pool is to be planned, or a batch is full enough.
    Pool(FunctionId),
    /// A call has been idle for long.
    Call(Key),
}

/// All deadlines.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    order: BTreeSet<(UnixMs, Timer)>,
    at: BTreeMap<Timer, UnixMs>,
}

impl Timers {
    /// Sets, moves or (with none) removes the deadline.
    pub(crate) fn set(&mut self, timer: Timer, at: Option<UnixMs>) {
        let before = match at {
            Some(at) => self.at.insert(timer, at),
            None => self.at.remove(&timer),
        };
        if before == at {
            return;
        }
        if let Some(before) = before {
            self.order.remove(&(before, timer));
        }
        if let Some(at) = at {
            self.order.insert((at, timer));
        }
    }

    /// Sets the deadline if there is none or a later one.
    pub(crate) fn at_latest(&mut self, timer: Timer, at: UnixMs) {
        if self.at.get(&timer).is_none_or(|before| *before > at) {
            self.set(timer, Some(at));
        }
    }

    /// The next deadline.
    pub(crate) fn next(&self) -> Option<UnixMs> {
        self.order.first().map(|(at, _)| *at)
    }

    /// Takes a deadline that is due.
    pub(crate) fn pop_due(&mut self, now: UnixMs) -> Option<Timer> {
        let (at, timer) = *self.order.first()?;
        if at > now {
            return None;
        }
        self.set(timer, None);
        Some(timer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moves_removes_and_pops_in_order() {
        let mut timers = Timers::default();
        timers.set(Timer::Input(1), Some(UnixMs(10)));
        timers.set(Timer::Input(2), Some(UnixMs(5)));
        timers.set(Timer::Input(1), Some(UnixMs(3)));
        timers.at_latest(Timer::Input(1), UnixMs(4));
        assert_eq!(timers.next(), Some(UnixMs(3)));
        assert_eq!(timers.pop_due(UnixMs(9)), Some(Timer::Input(1)));
        timers.set(Timer::Input(2), None);
        assert_eq!(timers.pop_due(UnixMs(9)), None);
        assert_eq!(timers.next(), None);
    }
}
