//! Who waits for what: a long poll registers under a key, an effect of the engine wakes the key's waiters.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

/// Waiters by key. A key without waiters costs nothing.
#[derive(Debug)]
pub(crate) struct Wakers<K>(Mutex<HashMap<K, Entry>>);

#[derive(Debug, Default)]
struct Entry {
    notify: Arc<Notify>,
    waiters: usize,
}

impl<K> Default for Wakers<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Copy + Eq + Hash> Wakers<K> {
    fn lock(&self) -> MutexGuard<'_, HashMap<K, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a waiter. What happens after this call wakes it, so register first, then look.
    pub(crate) fn register(&self, key: K) -> Waiter<'_, K> {
        let mut entries = self.lock();
        let entry = entries.entry(key).or_default();
        entry.waiters += 1;
        Waiter { wakers: self, key, notify: entry.notify.clone() }
    }

    /// Wakes all waiters of a key.
    pub(crate) fn wake(&self, key: K) {
        if let Some(entry) = self.lock().get(&key) {
            entry.notify.notify_waiters();
        }
    }

    /// Wakes everybody.
    pub(crate) fn wake_all(&self) {
        for entry in self.lock().values() {
            entry.notify.notify_waiters();
        }
    }
}

/// A registered waiter; unregisters when dropped.
#[derive(Debug)]
pub(crate) struct Waiter<'a, K: Copy + Eq + Hash> {
    wakers: &'a Wakers<K>,
    key: K,
    notify: Arc<Notify>,
}

impl<K: Copy + Eq + Hash> Waiter<'_, K> {
    /// Resolves at the first wake after this call (not: after the first poll of the future).
    pub(crate) fn woken(&self) -> OwnedNotified {
        // `notify_waiters` reaches every `Notified` that exists, polled or not.
        self.notify.clone().notified_owned()
    }
}

impl<K: Copy + Eq + Hash> Drop for Waiter<'_, K> {
    fn drop(&mut self) {
        let mut entries = self.wakers.lock();
        if let Some(entry) = entries.get_mut(&self.key) {
            entry.waiters -= 1;
            if entry.waiters == 0 {
                entries.remove(&self.key);
            }
        }
    }
}
