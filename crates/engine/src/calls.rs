//! Calls and inputs in memory.

use crate::request::{CallInfo, ResultStatus};
use evoke_core::{InputId, TaskId, UnixMs};
use evoke_store::calls::{CallRow, Key, PendingUpdate};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// An input that has not ended.
#[derive(Debug, Clone)]
pub(crate) struct Input {
    pub(crate) key: Key,
    pub(crate) id: InputId,
    pub(crate) call: Key,
    pub(crate) idx: i32,
    pub(crate) group: u32,
    pub(crate) created: UnixMs,
    pub(crate) retry_count: u32,
    pub(crate) crashes: u32,
    pub(crate) losses: u32,
    pub(crate) cancelled: Option<UnixMs>,
    pub(crate) place: Place,
}

/// Where an input is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// In its pool's queue.
    Queued,
    /// Waiting for its retry.
    Backoff(UnixMs),
    /// With a container.
    Running(Attempt),
}

/// A running attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attempt {
    pub(crate) key: Key,
    pub(crate) task: TaskId,
    pub(crate) claim: Key,
    pub(crate) started: UnixMs,
    pub(crate) timeout_at: UnixMs,
    /// When its container is killed, once the input is cancelled.
    pub(crate) kill_at: Option<UnixMs>,
}

impl Input {
    /// The attempt, if it is with a container.
    pub(crate) fn attempt(&self) -> Option<Attempt> {
        match self.place {
            Place::Running(attempt) => Some(attempt),
            _ => None,
        }
    }

    /// The row that says how it stands.
    pub(crate) fn pending(&self) -> PendingUpdate {
        PendingUpdate {
            input: self.key,
            retry_count: self.retry_count,
            crashes: self.crashes,
            losses: self.losses,
            not_before: match self.place {
                Place::Backoff(until) => Some(until),
                _ => None,
            },
            cancelled: self.cancelled,
        }
    }
}

/// A reference to an output in a call's window.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WindowEntry {
    pub(crate) entry: Key,
    pub(crate) idx: i32,
}

/// A call.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) row: CallRow,
    /// Whether more inputs may come.
    pub(crate) open: bool,
    pub(crate) declared: Option<u32>,
    pub(crate) inputs: u32,
    pub(crate) unfinished: BTreeSet<Key>,
    pub(crate) running: u32,
    pub(crate) ended: BTreeMap<ResultStatus, u32>,
    /// The newest outputs; entries up to `window_from` are only in the store.
    pub(crate) window: VecDeque<WindowEntry>,
    pub(crate) window_from: Key,
    pub(crate) last_entry: Key,
    pub(crate) last_out: u64,
    pub(crate) last_in: u64,
    pub(crate) cancelled: bool,
    /// When its client last asked for anything.
    pub(crate) touched: UnixMs,
}

impl Call {
    pub(crate) fn new(row: CallRow, open: bool, now: UnixMs) -> Self {
        Self {
            row,
            open,
            declared: None,
            inputs: 0,
            unfinished: BTreeSet::new(),
            running: 0,
            ended: BTreeMap::new(),
            window: VecDeque::new(),
            window_from: 0,
            last_entry: 0,
            last_out: 0,
            last_in: 0,
            cancelled: false,
            touched: now,
        }
    }

    /// Whether nothing will happen to it any more.
    pub(crate) fn is_over(&self) -> bool {
        !self.open && self.unfinished.is_empty()
    }

    /// Adds an output to the window, which keeps the newest `max`.
    pub(crate) fn push_output(&mut self, entry: Key, idx: i32, status: ResultStatus, max: usize) {
        self.last_entry = entry;
        *self.ended.entry(status).or_default() += 1;
        self.window.push_back(WindowEntry { entry, idx });
        self.drop_oldest(max);
    }

    /// Gives memory back: only the newest `max` outputs are remembered.
    pub(crate) fn shrink_window(&mut self, max: usize) {
        self.drop_oldest(max);
        self.window.shrink_to_fit();
    }

    fn drop_oldest(&mut self, max: usize) {
        while self.window.len() > max {
            if let Some(dropped) = self.window.pop_front() {
                self.window_from = dropped.entry;
            }
        }
    }

    pub(crate) fn info(&self) -> CallInfo {
        let unfinished = self.unfinished.len() as u32;
        CallInfo {
            app_id: self.row.app_id,
            function_id: self.row.function_id,
            invocation: self.row.invocation,
            call_type: self.row.call_type,
            return_exceptions: self.row.return_exceptions,
            created: self.row.created,
            inputs: self.inputs,
            waiting: unfinished.saturating_sub(self.running),
            running: self.running,
            ended: self.ended.iter().map(|(status, n)| (*status, *n)).collect(),
            cancelled: self.cancelled,
        }
    }
}
