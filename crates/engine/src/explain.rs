//! The reasons of past decisions, a bounded number per pool.

use crate::engine::Engine;
use evoke_core::{FunctionId, TaskId, UnixMs};
pub use evoke_sched::Reason;
use std::collections::VecDeque;

/// A decision with its reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Noted {
    /// When it was taken, or last taken again.
    pub at: UnixMs,
    /// The container that it was about, if about one.
    pub task: Option<TaskId>,
    /// Why.
    pub reason: Reason,
}

/// The newest decisions about a pool.
#[derive(Debug)]
pub(crate) struct Notes {
    kept: VecDeque<Noted>,
    max: usize,
}

impl Notes {
    pub(crate) fn new(max: usize) -> Self {
        Self { kept: VecDeque::new(), max }
    }

    /// Notes a decision. One that repeats the last, about no container, replaces it: waiting is one fact,
    /// however often it is looked at.
    pub(crate) fn add(&mut self, at: UnixMs, task: Option<TaskId>, reason: Reason) {
        let repeats = self.kept.back().is_some_and(|last| {
            task.is_none()
                && last.task.is_none()
                && std::mem::discriminant(&last.reason) == std::mem::discriminant(&reason)
        });
        if repeats {
            self.kept.pop_back();
        }
        self.kept.push_back(Noted { at, task, reason });
        while self.kept.len() > self.max {
            self.kept.pop_front();
        }
    }
}

impl Engine {
    /// The newest decisions about a function's containers, oldest first.
    pub fn reasons(&self, function: FunctionId) -> Vec<Noted> {
        self.pools.get(&function).map(|pool| pool.notes.kept.iter().copied().collect()).unwrap_or_default()
    }
}
