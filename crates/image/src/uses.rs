//! Which layers are used by what happens now, so that none of them is collected under it.
//!
//! Whoever builds or hands out an image holds a [`LayerUse`] meanwhile, and touches each layer before it looks
//! whether the layer is there. A round of collection leaves alone what was touched since the round began, or
//! since the oldest of the uses that ran when it began; what it removes it claims first, and a touch waits for
//! the end of the claim. So a layer that somebody found stays at least until that use has ended, and by then
//! what it was used for is stored and keeps the layer by itself.

use evoke_core::UnixMs;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// By how much the time of a file may lag behind the clock (milliseconds).
const FILE_TIME_LAG_MS: u64 = 1_000;

/// The layers in use. Cheap to clone.
#[derive(Clone, Default)]
pub struct LayerUses {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    /// Told when a claim has ended.
    ended: Notify,
}

#[derive(Default)]
struct State {
    /// Counts beginnings and touches.
    tick: u64,
    /// Uses that run, by the tick of their beginning.
    running: BTreeMap<u64, UnixMs>,
    /// Folders, by the tick of their last touch.
    touched: HashMap<String, u64>,
    /// Folders that are being removed.
    claimed: HashSet<String>,
}

/// Something that uses layers; it ends when this is dropped.
pub struct LayerUse {
    uses: LayerUses,
    begun: u64,
}

/// A round of collection: what was touched since its horizon stays.
#[derive(Debug, Clone, Copy)]
pub struct Round {
    tick: u64,
    time: UnixMs,
}

impl Round {
    /// What was changed since then was made by what runs.
    pub(crate) fn time(&self) -> UnixMs {
        self.time
    }
}

/// The right to remove a folder, until it is dropped.
pub(crate) struct Claim {
    uses: LayerUses,
    folder: String,
}

impl LayerUses {
    /// Something begins to use layers.
    pub fn begin(&self, now: UnixMs) -> LayerUse {
        let mut state = self.lock();
        let begun = state.next();
        state.running.insert(begun, now);
        LayerUse { uses: self.clone(), begun }
    }

    /// A round of collection begins.
    pub fn round(&self, now: UnixMs) -> Round {
        let mut state = self.lock();
        let tick = state.next();
        let (tick, time) = match state.running.first_key_value() {
            Some((begun, at)) => (*begun, (*at).min(now)),
            None => (tick, now),
        };
        state.touched.retain(|_, touched| *touched >= tick);
        Round { tick, time: UnixMs(time.0.saturating_sub(FILE_TIME_LAG_MS)) }
    }

    /// The folder is about to be used or made. Waits where it is being removed.
    pub(crate) async fn touch(&self, folder: &str) {
        loop {
            let mut ended = std::pin::pin!(self.inner.ended.notified());
            ended.as_mut().enable();
            {
                let mut state = self.lock();
                if !state.claimed.contains(folder) {
                    let tick = state.next();
                    state.touched.insert(folder.to_owned(), tick);
                    return;
                }
            }
            ended.await;
        }
    }

    /// The right to remove the folder, which was last changed at `modified`; none where it is in use.
    pub(crate) fn claim(&self, folder: &str, modified: UnixMs, round: &Round) -> Option<Claim> {
        let mut state = self.lock();
        let touched = state.touched.get(folder).is_some_and(|tick| *tick >= round.tick);
        if touched || modified >= round.time || !state.claimed.insert(folder.to_owned()) {
            return None;
        }
        Some(Claim { uses: self.clone(), folder: folder.to_owned() })
    }

    /// Does `work`, which must be short, if nothing uses layers now.
    pub(crate) fn while_idle<T>(&self, work: impl FnOnce() -> T) -> Option<T> {
        let state = self.lock();
        state.running.is_empty().then(work)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change leaves it whole.
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn next(&mut self) -> u64 {
        self.tick += 1;
        self.tick
    }
}

impl Drop for LayerUse {
    fn drop(&mut self) {
        self.uses.lock().running.remove(&self.begun);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.uses.lock().claimed.remove(&self.folder);
        self.uses.inner.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG_AGO: UnixMs = UnixMs(5);
    const NOW: UnixMs = UnixMs(100_000);

    #[tokio::test]
    async fn what_was_touched_since_the_oldest_use_stays() {
        let uses = LayerUses::default();
        uses.touch("before").await;
        let building = uses.begin(NOW);
        uses.touch("in-use").await;
        let round = uses.round(NOW);
        uses.touch("after").await;
        assert!(uses.claim("in-use", LONG_AGO, &round).is_none());
        assert!(uses.claim("after", LONG_AGO, &round).is_none());
        assert!(uses.claim("before", LONG_AGO, &round).is_some());
        assert!(uses.claim("new", NOW, &round).is_none(), "made since");
        // The use ends in the middle of the round: what it stored was not seen by the round.
        drop(building);
        assert!(uses.claim("in-use", LONG_AGO, &round).is_none());
        let next = uses.round(NOW);
        assert!(uses.claim("in-use", LONG_AGO, &next).is_some());
    }

    #[tokio::test]
    async fn a_touch_waits_for_the_end_of_a_removal() {
        let uses = LayerUses::default();
        let round = uses.round(NOW);
        let claim = uses.claim("x", LONG_AGO, &round).unwrap();
        assert!(uses.claim("x", LONG_AGO, &round).is_none(), "claimed once");
        let toucher = uses.clone();
        let mut touching = Box::pin(async move { toucher.touch("x").await });
        assert!(futures::poll!(&mut touching).is_pending());
        drop(claim);
        touching.await;
        assert!(uses.claim("x", LONG_AGO, &round).is_none());
    }

    #[test]
    fn nothing_is_done_while_a_use_runs() {
        let uses = LayerUses::default();
        let building = uses.begin(NOW);
        assert_eq!(uses.while_idle(|| 1), None);
        drop(building);
        assert_eq!(uses.while_idle(|| 1), Some(1));
    }
}
