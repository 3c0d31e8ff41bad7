//! What keeps a content from being collected besides being reachable: pins of uploads under way, and the
//! time when somebody last stored it or asked for it.
//!
//! Kept in memory on purpose: the time stamps of the files belong to the trees they are linked into. After
//! a restart everything counts as asked for at the start, so that a client that was told "you need not send
//! this" before it has the same grace again.

use crate::{Collected, ContentHash, IoFailure, io_failure::IoContext};
use evoke_core::UnixMs;
use std::{
    collections::HashMap,
    fs::{self, DirEntry},
    io,
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

/// One round of collection over the files of a store, one at a time.
pub(crate) struct Sweep<'a> {
    pub holds: &'a Holds,
    /// Which contents stay whatever their age.
    pub reachable: &'a dyn Fn(&ContentHash) -> bool,
    pub now: UnixMs,
    pub grace_ms: u64,
    /// Only count.
    pub dry_run: bool,
    pub done: Collected,
}

impl Sweep<'_> {
    /// Removes a file of the content `hash`, unless something keeps that.
    pub(crate) fn look_at(&mut self, hash: ContentHash, entry: &DirEntry) -> Result<(), IoFailure> {
        if (self.reachable)(&hash) {
            self.done.kept += 1;
            return Ok(());
        }
        let length = entry.metadata().map(|about| about.len()).unwrap_or_default();
        let path = entry.path();
        // Under the lock of the holds: whoever touches the hash either comes before this and keeps it, or after
        // it and sees that it is gone.
        let remove = || if self.dry_run { Ok(()) } else { fs::remove_file(&path) };
        match self.holds.unless_held(hash, self.now, self.grace_ms, remove) {
            None => self.done.kept += 1,
            Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => {}
            Some(result) => {
                result.during("remove", &path)?;
                self.done.removed += 1;
                self.done.removed_bytes += length;
            }
        }
        Ok(())
    }

    /// The end of the round, and what it did.
    pub(crate) fn end(self) -> Collected {
        if !self.dry_run {
            self.holds.forget_before(self.now, self.grace_ms);
        }
        self.done
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
