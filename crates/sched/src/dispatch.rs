//! The queue of a pool: which inputs a container that asks is given.

use evoke_core::UnixMs;
use std::collections::BTreeMap;

/// Inputs are queued under keys that rise with their arrival, so that one that comes back keeps its place.
pub type Key = i64;

/// How inputs are collected for a batched function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// Inputs in a full batch.
    pub max_size: u32,
    /// How long the first of a batch waits for more.
    pub linger_ms: u64,
}

/// What a container that asks is offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Offer {
    /// These inputs, which are still in the queue.
    Take(Vec<Key>),
    /// Nothing before this time, unless more arrive: a batch is being collected.
    Linger(UnixMs),
    /// Nothing: the queue is empty.
    Nothing,
}

/// Inputs that wait, first come first served. Only inputs of one group go into one batch.
#[derive(Debug, Clone, Default)]
pub struct Queue {
    groups: BTreeMap<u32, BTreeMap<Key, UnixMs>>,
    len: usize,
}

impl Queue {
    /// Adds an input that waits since `since`.
    pub fn push(&mut self, group: u32, key: Key, since: UnixMs) {
        if self.groups.entry(group).or_default().insert(key, since).is_none() {
            self.len += 1;
        }
    }

    /// Takes an input out; whether it was in.
    pub fn remove(&mut self, group: u32, key: Key) -> bool {
        let Some(inputs) = self.groups.get_mut(&group) else { return false };
        let was_in = inputs.remove(&key).is_some();
        if was_in {
            self.len -= 1;
        }
        if inputs.is_empty() {
            self.groups.remove(&group);
        }
        was_in
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Since when the first in line waits.
    pub fn head_since(&self) -> Option<UnixMs> {
        self.head().map(|(_, _, since)| since)
    }

    /// Keys of all that wait, by group.
    pub fn keys(&self) -> impl Iterator<Item = Key> + '_ {
        self.groups.values().flat_map(|inputs| inputs.keys().copied())
    }

    fn head(&self) -> Option<(u32, Key, UnixMs)> {
        self.groups
            .iter()
            .filter_map(|(group, inputs)| inputs.first_key_value().map(|(key, since)| (*group, *key, *since)))
            .min_by_key(|(_, key, _)| *key)
    }

    /// What a container that asks for at most `max` inputs gets now.
    pub fn offer(&self, max: u32, batch: Option<Batch>, now: UnixMs) -> Offer {
        let Some((head_group, head, _)) = self.head() else { return Offer::Nothing };
        let Some(batch) = batch else { return Offer::Take(vec![head]) };
        let size = batch.max_size.min(max).max(1) as usize;
        let ready_at = |inputs: &BTreeMap<Key, UnixMs>| match inputs.first_key_value() {
            _ if inputs.len() >= size => UnixMs(0),
            Some((_, since)) => since.plus_ms(batch.linger_ms),
            None => UnixMs(u64::MAX),
        };
        // The first in line goes first; where its batch is still being collected, another that is ready
        // need not wait for it.
        let first = self.groups.get(&head_group).into_iter();
        let ready = first.chain(self.groups.values()).find(|inputs| ready_at(inputs) <= now);
        match ready {
            Some(inputs) => Offer::Take(inputs.keys().copied().take(size).collect()),
            None => Offer::Linger(self.groups.values().map(ready_at).min().unwrap_or(now)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const T: fn(u64) -> UnixMs = UnixMs;

    #[test]
    fn first_come_first_served_and_back_in_place() {
        let mut queue = Queue::default();
        for key in [1, 2, 3] {
            queue.push(0, key, T(key as u64));
        }
        assert_eq!(queue.offer(1, None, T(9)), Offer::Take(vec![1]));
        assert!(queue.remove(0, 1));
        assert_eq!(queue.offer(1, None, T(9)), Offer::Take(vec![2]));
        queue.push(0, 1, T(9));
        assert_eq!(queue.offer(1, None, T(9)), Offer::Take(vec![1]));
        assert!(!queue.remove(0, 77));
        assert_eq!(queue.len(), 3);
    }

    #[test]
    fn batches_linger_fill_and_never_mix_groups() {
        let batch = Some(Batch { max_size: 3, linger_ms: 10 });
        let mut queue = Queue::default();
        queue.push(1, 1, T(100));
        queue.push(2, 2, T(101));
        assert_eq!(queue.offer(3, batch, T(105)), Offer::Linger(T(110)));
        assert_eq!(queue.offer(3, batch, T(110)), Offer::Take(vec![1]));
        queue.push(2, 3, T(102));
        queue.push(2, 4, T(102));
        assert_eq!(queue.offer(3, batch, T(105)), Offer::Take(vec![2, 3, 4]));
        assert_eq!(queue.offer(2, batch, T(105)), Offer::Take(vec![2, 3]));
    }

    proptest! {
        #[test]
        fn nothing_is_given_twice_or_lost(
            pushes in prop::collection::vec((0u32..3, 0u64..50), 1..60),
            max_size in 1u32..5,
            batched: bool,
        ) {
            let batch = batched.then_some(Batch { max_size, linger_ms: 5 });
            let mut queue = Queue::default();
            for (key, (group, since)) in pushes.iter().enumerate() {
                queue.push(*group, key as Key, T(*since));
            }
            let mut seen = BTreeSet::new();
            while let Offer::Take(keys) = queue.offer(max_size, batch, T(1_000)) {
                prop_assert!(!keys.is_empty() && keys.len() <= max_size as usize);
                let group = pushes[keys[0] as usize].0;
                for key in keys {
                    prop_assert_eq!(pushes[key as usize].0, group);
                    prop_assert!(seen.insert(key));
                    prop_assert!(queue.remove(group, key));
                }
            }
            prop_assert_eq!(seen.len(), pushes.len());
            prop_assert!(queue.is_empty());
        }
    }
}
