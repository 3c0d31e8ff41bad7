//! The writer: takes what was submitted since the last commit, commits it as one group, acknowledges it.
//!
//! Under load the groups grow by themselves, since whatever arrives during a commit is the next group; with
//! no load a batch is committed at once, alone. A submitter that waits anyway may then commit what is small
//! itself ([`Lead`]): two changes of threads cost more than such a commit does.

use crate::checkpoint::Checkpointer;
use crate::sync::Syncer;
use crate::{Db, Grade, StoreError, Write};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, oneshot};

/// Batches that may wait for the writer. [`crate::Store::submit`] holds its caller up when there are more:
/// dropping a batch would part memory from what is stored. Callers that can refuse work ask
/// [`crate::Store::is_saturated`] or wait for [`crate::Store::room`] first.
pub const QUEUE_BATCHES_MAX: usize = 16_384;

/// Waiting batches from which on the store counts as saturated.
pub(crate) const QUEUE_BATCHES_SATURATED: usize = QUEUE_BATCHES_MAX / 2;

/// Batches in one transaction.
pub const GROUP_BATCHES_MAX: usize = 1_024;

/// Writes in a batch that its submitter may commit itself, and batches that it then commits at most.
const LED_WRITES_MAX: usize = 32;
const LED_BATCHES_MAX: usize = 16;

/// Tells a submitter how its batch ended.
pub(crate) type Reply = oneshot::Sender<Result<(), StoreError>>;

/// A submitted batch.
pub(crate) struct Batch {
    seq: u64,
    writes: Vec<Write>,
    grade: Grade,
    reply: Reply,
}

#[derive(Default)]
struct Waiting {
    batches: VecDeque<Batch>,
    last_seq: u64,
    writer_waits: bool,
    /// Somebody commits a group now.
    writing: bool,
    /// Whether something waits that is the writer's own to commit.
    for_writer: bool,
    refusal: Option<StoreError>,
}

/// What waits for the writer.
#[derive(Default)]
pub(crate) struct Queue {
    waiting: Mutex<Waiting>,
    work: Condvar,
    space: Condvar,
    room: Notify,
}

/// Locks a mutex; what it guards is consistent at every await-free point, also after a panic elsewhere.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Queue {
    /// Puts a batch at the end; its number.
    pub(crate) fn push(&self, writes: Vec<Write>, grade: Grade, reply: Reply) -> u64 {
        let mut seq = 0;
        self.push_all([(writes, grade, reply)], |number| seq = number, false);
        seq
    }

    /// Puts batches at the end, with none in between. Tells their numbers, in order. With `led` the writer is
    /// not woken for small ones: whoever pushes them must call [`lead`] next.
    pub(crate) fn push_all(
        &self,
        batches: impl IntoIterator<Item = (Vec<Write>, Grade, Reply)>,
        mut tell: impl FnMut(u64),
        led: bool,
    ) {
        let mut waiting = lock(&self.waiting);
        while waiting.batches.len() >= QUEUE_BATCHES_MAX && waiting.refusal.is_none() {
            waiting = self.space.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        if let Some(refusal) = waiting.refusal.clone() {
            let seq = waiting.last_seq;
            drop(waiting);
            for (_, _, reply) in batches {
                answer(reply, Err(refusal.clone()));
                tell(seq);
            }
            return;
        }
        for (writes, grade, reply) in batches {
            waiting.last_seq += 1;
            let seq = waiting.last_seq;
            tell(seq);
            let small = writes.len() <= LED_WRITES_MAX && writes.iter().all(Write::is_small);
            waiting.batches.push_back(Batch { seq, writes, grade, reply });
            waiting.for_writer |= !led || !small || waiting.batches.len() > LED_BATCHES_MAX;
        }
        let wake = waiting.for_writer && std::mem::take(&mut waiting.writer_waits);
        drop(waiting);
        if wake {
            self.work.notify_one();
        }
    }

    /// The number of the batch submitted last.
    pub(crate) fn last_seq(&self) -> u64 {
        lock(&self.waiting).last_seq
    }

    /// How many batches wait.
    pub(crate) fn len(&self) -> usize {
        lock(&self.waiting).batches.len()
    }

    /// Returns once fewer batches wait than count as saturation.
    pub(crate) async fn room(&self) {
        loop {
            let notified = self.room.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if self.len() < QUEUE_BATCHES_SATURATED {
                return;
            }
            notified.await;
        }
    }

    /// Takes no more batches; those that wait are still written unless the cause is a failed disk.
    pub(crate) fn refuse(&self, cause: StoreError) {
        let mut waiting = lock(&self.waiting);
        let dropped = match cause {
            StoreError::Closed => VecDeque::new(),
            _ => std::mem::take(&mut waiting.batches),
        };
        waiting.refusal.get_or_insert(cause.clone());
        drop(waiting);
        for batch in dropped {
            answer(batch.reply, Err(cause.clone()));
        }
        self.work.notify_all();
        self.space.notify_all();
        self.room.notify_waiters();
    }

    /// The next group; waits for one. `None` once the queue is refused and empty.
    fn take(&self) -> Option<Vec<Batch>> {
        let mut waiting = lock(&self.waiting);
        while waiting.batches.is_empty() || waiting.writing {
            if waiting.refusal.is_some() && !waiting.writing {
                return None;
            }
            waiting.writer_waits = true;
            waiting = self.work.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        waiting.writer_waits = false;
        Some(self.take_group(waiting))
    }

    /// The next group for a submitter to commit; `None` where the writer does it.
    fn take_led(&self) -> Option<Vec<Batch>> {
        let waiting = lock(&self.waiting);
        let mine = !waiting.batches.is_empty() && !waiting.writing && !waiting.for_writer;
        mine.then(|| self.take_group(waiting))
    }

    fn take_group(&self, mut waiting: MutexGuard<'_, Waiting>) -> Vec<Batch> {
        waiting.writing = true;
        let before = waiting.batches.len();
        let group: Vec<Batch> = if before <= GROUP_BATCHES_MAX {
            waiting.for_writer = false;
            waiting.batches.drain(..).collect()
        } else {
            waiting.batches.drain(..GROUP_BATCHES_MAX).collect()
        };
        drop(waiting);
        if before >= QUEUE_BATCHES_MAX {
            self.space.notify_all();
        }
        if before >= QUEUE_BATCHES_SATURATED {
            self.room.notify_waiters();
        }
        group
    }

    /// Leaves what waits to the writer.
    fn leave_to_writer(&self) {
        let mut waiting = lock(&self.waiting);
        waiting.for_writer |= !waiting.batches.is_empty();
        drop(waiting);
        self.work.notify_one();
    }
}

/// Held by whoever commits a group.
struct Writing<'a>(&'a Queue);

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // What the transaction holds is anybody's guess.
            self.0.refuse(StoreError::Closed);
        }
        let mut waiting = lock(&self.0.waiting);
        waiting.writing = false;
        let wake = waiting.refusal.is_some() || !waiting.batches.is_empty();
        let wake = wake && std::mem::take(&mut waiting.writer_waits);
        drop(waiting);
        if wake {
            self.0.work.notify_one();
        }
    }
}

/// Refuses further batches when the writer ends, however it ends.
struct RefuseOnExit<'a>(&'a Queue);

impl Drop for RefuseOnExit<'_> {
    fn drop(&mut self) {
        self.0.refuse(StoreError::Closed);
        let left = std::mem::take(&mut lock(&self.0.waiting).batches);
        for batch in left {
            answer(batch.reply, Err(StoreError::Closed));
        }
    }
}

/// The writer thread: runs until the queue is refused and empty.
pub(crate) fn run(queue: &Queue, db: &Arc<Mutex<Db>>, syncer: &Syncer, checkpointer: &Checkpointer) {
    let _refuse = RefuseOnExit(queue);
    while let Some(group) = queue.take() {
        let _writing = Writing(queue);
        let spent = commit(group, db, syncer);
        checkpointer.after_commit(&lock(db));
        // Freed only now: the submitters are already on their way.
        drop(spent);
    }
}

/// Commits on the calling thread what was pushed for that, unless somebody else has or does already.
pub(crate) fn lead(queue: &Queue, db: &Arc<Mutex<Db>>, syncer: &Syncer, checkpointer: &Checkpointer) {
    if checkpointer.wants_the_writer() {
        return queue.leave_to_writer();
    }
    if let Some(group) = queue.take_led() {
        let _writing = Writing(queue);
        drop(commit(group, db, syncer));
        checkpointer.after_led_commit();
    }
}

/// Commits a group and acknowledges it; what was written, to be freed.
fn commit(group: Vec<Batch>, db: &Arc<Mutex<Db>>, syncer: &Syncer) -> Vec<Vec<Write>> {
    let results = {
        let slices: Vec<&[Write]> = group.iter().map(|batch| batch.writes.as_slice()).collect();
        lock(db).commit(&slices)
    };
    let mut last_seq = 0;
    let mut to_sync = Vec::new();
    let mut spent = Vec::with_capacity(group.len());
    for (batch, result) in group.into_iter().zip(results) {
        last_seq = batch.seq;
        match (result, batch.grade) {
            (Ok(()), Grade::Synced) => to_sync.push((batch.seq, batch.reply)),
            (result, _) => answer(batch.reply, result),
        }
        spent.push(batch.writes);
    }
    syncer.written(last_seq, to_sync);
    spent
}

/// Answers the submitter. Where nobody waits for the answer, a failure is logged instead.
pub(crate) fn answer(reply: Reply, result: Result<(), StoreError>) {
    if let Err(Err(error)) = reply.send(result) {
        if !matches!(error, StoreError::Closed) {
            tracing::error!(error = &error as &dyn std::error::Error, "a write that nobody waits for failed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;

    fn push(queue: &Queue) -> oneshot::Receiver<Result<(), StoreError>> {
        let (reply, done) = oneshot::channel();
        queue.push(Vec::new(), Grade::Written, reply);
        done
    }

    #[tokio::test]
    async fn says_when_too_much_waits_and_when_there_is_room_again() {
        let queue = Queue::default();
        let mut waiting: Vec<_> = (1..QUEUE_BATCHES_SATURATED).map(|_| push(&queue)).collect();
        queue.room().await;
        waiting.push(push(&queue));
        let mut room = std::pin::pin!(queue.room());
        let mut nobody = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(room.as_mut().poll(&mut nobody).is_pending());
        assert_eq!(queue.take().unwrap().len(), GROUP_BATCHES_MAX);
        drop(Writing(&queue));
        room.await;
    }

    #[test]
    fn holds_up_submitters_at_the_bound_until_there_is_space_or_an_end() {
        let queue = Queue::default();
        let mut waiting: Vec<_> = (0..QUEUE_BATCHES_MAX).map(|_| push(&queue)).collect();
        std::thread::scope(|scope| {
            let one_more = scope.spawn(|| push(&queue));
            assert_eq!(queue.take().unwrap().len(), GROUP_BATCHES_MAX);
            drop(Writing(&queue));
            waiting.push(one_more.join().unwrap());
        });
        assert_eq!(queue.len(), QUEUE_BATCHES_MAX - GROUP_BATCHES_MAX + 1);
        queue.refuse(StoreError::Poisoned("the disk is gone".to_owned()));
        assert!(matches!(waiting.pop().unwrap().blocking_recv(), Ok(Err(StoreError::Poisoned(_)))));
        assert!(matches!(push(&queue).blocking_recv(), Ok(Err(StoreError::Poisoned(_)))));
        assert!(queue.take().is_none());
    }
}
