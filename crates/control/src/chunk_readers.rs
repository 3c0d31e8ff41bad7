//! Who reads a generator's items right now, and how far. Its failure is told only after what it yielded before:
//! the client reads both at once and forgets about items when it hears of the failure.

use crate::wakers::Wakers;
use evoke_core::CallId;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The longest that a failure waits for a reader: one that does not read any more holds nothing up.
pub(crate) const READERS_WAIT_MAX: Duration = Duration::from_secs(2);

/// The longest that a failure waits for a reader to come at all.
const FIRST_READER_MAX: Duration = Duration::from_millis(500);

/// How far each reader is, by call and the reader's number.
#[derive(Debug, Default)]
struct Readers {
    by_call: HashMap<CallId, HashMap<u64, u64>>,
    last: u64,
}

/// All readers.
#[derive(Debug, Default)]
pub(crate) struct ChunkReaders {
    readers: Mutex<Readers>,
    moved: Wakers<CallId>,
}

impl ChunkReaders {
    fn lock(&self) -> MutexGuard<'_, Readers> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A reader has begun; its number.
    pub(crate) fn join(&self, call: CallId) -> u64 {
        let mut readers = self.lock();
        readers.last += 1;
        let number = readers.last;
        readers.by_call.entry(call).or_default().insert(number, 0);
        drop(readers);
        self.moved.wake(call);
        number
    }

    /// A reader has been given everything up to this index.
    pub(crate) fn given(&self, call: CallId, reader: u64, index: u64) {
        if let Some(at) = self.lock().by_call.get_mut(&call).and_then(|readers| readers.get_mut(&reader)) {
            *at = index;
        }
        self.moved.wake(call);
    }

    /// A reader is gone.
    pub(crate) fn leave(&self, call: CallId, reader: u64) {
        let mut all = self.lock();
        if let Some(readers) = all.by_call.get_mut(&call) {
            readers.remove(&reader);
            if readers.is_empty() {
                all.by_call.remove(&call);
            }
        }
        drop(all);
        self.moved.wake(call);
    }

    /// Returns once every reader of the call has been given everything up to this index, or has had `most`. Where
    /// nobody reads, the first one is waited for: the client begins to read beside asking for the outcome.
    pub(crate) async fn caught_up(&self, call: CallId, index: u64, most: Duration) {
        let comes = self.until(call, |readers| readers.is_some());
        if tokio::time::timeout(FIRST_READER_MAX.min(most), comes).await.is_err() {
            return;
        }
        let reads = self.until(call, |readers| readers.is_none_or(|all| all.values().all(|at| *at >= index)));
        if tokio::time::timeout(most, reads).await.is_err() {
            tracing::debug!(%call, index, "a reader of a generator's items does not read on");
        }
    }

    /// Returns once `holds` of the readers of a call.
    async fn until(&self, call: CallId, holds: impl Fn(Option<&HashMap<u64, u64>>) -> bool) {
        loop {
            let waiter = self.moved.register(call);
            let woken = waiter.woken();
            if holds(self.lock().by_call.get(&call)) {
                return;
            }
            woken.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evoke_core::{SeededEntropy, UnixMs};

    #[tokio::test]
    async fn a_failure_waits_for_readers_that_read() {
        let (moment, long) = (Duration::from_millis(20), Duration::from_secs(600));
        let readers = ChunkReaders::default();
        let call = CallId::new(UnixMs(1), &mut SeededEntropy::new(1));
        // Nobody comes.
        readers.caught_up(call, 3, moment).await;
        // Somebody comes only after the failure.
        let late = async {
            tokio::task::yield_now().await;
            let reader = readers.join(call);
            tokio::task::yield_now().await;
            readers.given(call, reader, 3);
            reader
        };
        let ((), reader) = tokio::join!(readers.caught_up(call, 3, long), late);
        readers.leave(call, reader);
        let (one, two) = (readers.join(call), readers.join(call));
        readers.given(call, one, 3);
        readers.given(call, two, 2);
        let moves = async {
            tokio::task::yield_now().await;
            readers.given(call, two, 3);
        };
        tokio::join!(readers.caught_up(call, 3, long), moves);
        let begin = tokio::time::Instant::now();
        readers.caught_up(call, 4, moment).await;
        assert!(begin.elapsed() >= moment);
        readers.leave(call, one);
        readers.leave(call, two);
        assert!(readers.lock().by_call.is_empty());
    }
}
