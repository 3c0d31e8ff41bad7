//! Recent payloads in memory, bounded in bytes; the oldest go first. Everything in it is in the store too.

use bytes::Bytes;
use evoke_store::calls::{Direction, Key, OutputRow, ResultBody};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// What a payload belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Slot {
    Input(Key),
    Output(Key),
    Chunk(Key, Direction, u64),
}

#[derive(Debug, Clone)]
enum Entry {
    Bytes(Bytes),
    Output(Arc<OutputRow>),
}

/// What an entry costs beside its payload.
const ENTRY_OVERHEAD_BYTES: usize = 256;

/// The cache.
#[derive(Debug)]
pub(crate) struct Cache {
    entries: BTreeMap<Slot, (u64, Entry)>,
    order: VecDeque<(u64, Slot, usize)>,
    stamp: u64,
    bytes: usize,
    bytes_max: usize,
    item_bytes_max: usize,
}

impl Cache {
    pub(crate) fn new(bytes_max: usize, item_bytes_max: usize) -> Self {
        Self {
            entries: BTreeMap::new(),
            order: VecDeque::new(),
            stamp: 0,
            bytes: 0,
            bytes_max,
            item_bytes_max,
        }
    }

    /// Keeps the payload of an input or a chunk. It is copied, because it may be a slice of a much larger
    /// request that would be kept alive with it.
    pub(crate) fn put_bytes(&mut self, slot: Slot, payload: &Bytes) {
        if payload.len() <= self.item_bytes_max {
            self.put(slot, Entry::Bytes(Bytes::copy_from_slice(payload)), payload.len());
        }
    }

    /// Keeps an output.
    pub(crate) fn put_output(&mut self, row: &OutputRow) {
        let size = match &row.body {
            ResultBody::Container(bytes) => bytes.len(),
            ResultBody::Synthesised(text) => text.len(),
        };
        if size <= self.item_bytes_max {
            let mut row = row.clone();
            if let ResultBody::Container(bytes) = &mut row.body {
                *bytes = Bytes::copy_from_slice(bytes);
            }
            self.put(Slot::Output(row.entry), Entry::Output(Arc::new(row)), size);
        }
    }

    fn put(&mut self, slot: Slot, entry: Entry, size: usize) {
        let size = size + ENTRY_OVERHEAD_BYTES;
        self.stamp += 1;
        self.entries.insert(slot, (self.stamp, entry));
        self.order.push_back((self.stamp, slot, size));
        self.bytes += size;
        while self.bytes > self.bytes_max {
            let Some((stamp, slot, size)) = self.order.pop_front() else { break };
            self.bytes -= size;
            if self.entries.get(&slot).is_some_and(|(current, _)| *current == stamp) {
                self.entries.remove(&slot);
            }
        }
    }

    pub(crate) fn bytes(&self, slot: Slot) -> Option<Bytes> {
        match self.entries.get(&slot) {
            Some((_, Entry::Bytes(bytes))) => Some(bytes.clone()),
            _ => None,
        }
    }

    pub(crate) fn output(&self, entry: Key) -> Option<Arc<OutputRow>> {
        match self.entries.get(&Slot::Output(entry)) {
            Some((_, Entry::Output(row))) => Some(Arc::clone(row)),
            _ => None,
        }
    }

    /// Forgets a payload that will not be asked for again. Its bytes are counted until their turn comes,
    /// so the bound holds either way.
    pub(crate) fn forget(&mut self, slot: Slot) {
        self.entries.remove(&slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_newest_within_its_bound() {
        let mut cache = Cache::new(3 * (ENTRY_OVERHEAD_BYTES + 100), 100);
        for key in 0..10 {
            cache.put_bytes(Slot::Input(key), &Bytes::from(vec![0; 100]));
        }
        assert!(cache.bytes(Slot::Input(6)).is_none());
        assert!(cache.bytes(Slot::Input(7)).is_some());
        cache.put_bytes(Slot::Input(11), &Bytes::from(vec![0; 101]));
        assert!(cache.bytes(Slot::Input(11)).is_none());
        assert!(cache.bytes <= cache.bytes_max);
    }
}
