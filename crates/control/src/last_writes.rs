//! The last write of each data object: a reply that only reads must not tell what a loss of power could take
//! back, and only the object's own writes can be that.

use evoke_store::{Grade, Store, StoreError, Ticket, Write};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Objects remembered before those are forgotten whose last write is through.
const REMEMBERED_MAX: usize = 4_096;

/// The numbers of the last batches by the ids of their objects.
#[derive(Debug, Default)]
pub(crate) struct LastWrites(Mutex<HashMap<String, u64>>);

impl LastWrites {
    /// Submits batches that change the object with this id.
    pub(crate) fn submit(&self, store: &Store, id: &str, batches: Vec<Vec<Write>>) -> Vec<Ticket> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if last.len() >= REMEMBERED_MAX {
            last.retain(|_, seq| !store.is_committed(*seq));
        }
        // Inside the lock: whoever sees the change in the store finds its number here.
        let batches = batches.into_iter().map(|writes| (writes, Grade::Synced)).collect();
        let (tickets, lead) = store.submit_all(batches);
        if let Some(seq) = tickets.last().map(Ticket::seq) {
            last.insert(id.to_string(), seq);
        }
        drop(last);
        drop(lead);
        tickets
    }

    /// Returns once everything that was read of the object so far is on stable storage.
    pub(crate) async fn settled(&self, store: &Store, id: &str) -> Result<(), StoreError> {
        let seq = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(id).copied();
        match seq {
            Some(seq) if !store.is_committed(seq) => store.committed(seq).await,
            _ => Ok(()),
        }
    }
}
