//! What keeps a content from being collected besides being reachable: pins of uploads under way, and the
//! time when somebody last stored it or asked for it.
//!
//! Kept in memory on purpose: the time stamps of the files belong to the trees they are linked into. After
//! a restart everything counts as asked for at the start, so that a client that was told "you need not send
//! this" before it has the same grace again.

use crate::ContentHash;
use evoke_core::UnixMs;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Contents whose last use is remembered one by one. When there are more, all are taken for just used.
const REMEMBERED_MAX: usize = 1 << 20;

#[derive(Debug)]
struct State {
    last_use: HashMap<ContentHash, UnixMs>,
    /// Every content counts as used at this time at the earliest.
    floor: UnixMs,
    pins: HashMap<ContentHash, u32>,
}

/// Pins and times of last use.
#[derive(Debug)]
pub(crate) struct Holds {
    state: Mutex<State>,
}

impl Holds {
    pub fn new(now: UnixMs) -> Self {
        let state = State { last_use: HashMap::new(), floor: now, pins: HashMap::new() };
        Self { state: Mutex::new(state) }
    }

    /// Notes that `hash` was stored or asked for.
    pub fn touch(&self, hash: ContentHash, now: UnixMs) {
        let mut state = self.lock();
        if state.last_use.len() >= REMEMBERED_MAX {
            state.last_use.clear();
            state.floor = now;
        }
        state.last_use.insert(hash, now);
    }

    /// Runs `remove` unless `hash` is pinned or was used within `grace_ms` before `now`.
    pub fn unless_held<T>(
        &self,
        hash: ContentHash,
        now: UnixMs,
        grace_ms: u64,
        remove: impl FnOnce() -> T,
    ) -> Option<T> {
        let state = self.lock();
        let used = state.last_use.get(&hash).copied().unwrap_or(state.floor).max(state.floor);
        if state.pins.contains_key(&hash) || now.since(used) <= grace_ms {
            return None;
        }
        Some(remove())
    }

    /// Forgets the times that no longer matter.
    pub fn forget_before(&self, now: UnixMs, grace_ms: u64) {
        self.lock().last_use.retain(|_, used| now.since(*used) <= grace_ms);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change is a single insert or remove; a poisoned state is still consistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps contents from being collected while it lives.
#[derive(Debug)]
pub struct Pin {
    holds: Arc<Holds>,
    hashes: Vec<ContentHash>,
}

impl Pin {
    pub(crate) fn new(holds: &Arc<Holds>, hashes: impl IntoIterator<Item = ContentHash>) -> Self {
        let hashes: Vec<ContentHash> = hashes.into_iter().collect();
        let mut state = holds.lock();
        for hash in &hashes {
            *state.pins.entry(*hash).or_default() += 1;
        }
        drop(state);
        Self { holds: holds.clone(), hashes }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut state = self.holds.lock();
        for hash in &self.hashes {
            if let Some(count) = state.pins.get_mut(hash) {
                *count -= 1;
                if *count == 0 {
                    state.pins.remove(hash);
                }
            }
        }
    }
}
