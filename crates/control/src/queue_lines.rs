//! Who waits at which partition of which queue. Blocking gets stand in line; a put hands its items to the first
//! of them by submitting their pops right behind itself, in the same group of writes, so that waiters are served
//! in their order and with the put's own sync.

use crate::last_writes::LastWrites;
use bytes::Bytes;
use evoke_core::{QueueId, UnixMs};
use evoke_proto::Status;
use evoke_store::{Answer, Keep, QueueWrite, Store, Ticket, Write};
use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// Gets that wait at a time, of all clients and containers.
const WAITERS_MAX: usize = 65_536;

/// A partition of a queue.
pub(crate) type Spot = (QueueId, Bytes);
/// What a pop answers: `None` where there is no such queue.
pub(crate) type Popped = Option<Vec<Bytes>>;

/// A pop that was submitted, with its answer to come.
#[derive(Debug)]
pub(crate) struct Popping {
    pub(crate) ticket: Ticket,
    pub(crate) answer: Answer<Popped>,
}

#[derive(Debug)]
enum State {
    /// Waits for a put, which sends the pop that it submitted on its behalf.
    Waiting(oneshot::Sender<Popping>),
    /// A pop of its own is under way. `again`: a put came meanwhile, so an empty answer does not count.
    Popping { again: bool },
}

#[derive(Debug)]
struct Place {
    number: u64,
    most: u32,
    keep: Option<Keep<Popped>>,
    state: State,
}

#[derive(Debug, Default)]
struct Lines {
    lines: HashMap<Spot, VecDeque<Place>>,
    last_number: u64,
    waiters: usize,
}

/// All lines, behind a lock that is held across submits but never across an await.
#[derive(Debug, Default)]
pub(crate) struct QueueLines(Mutex<Lines>);

/// What comes next for who stands in line.
pub(crate) enum Next {
    /// A pop, now.
    Pop(Popping),
    /// A wait for a put.
    Wait(oneshot::Receiver<Popping>),
}

/// Where writes go.
pub(crate) struct Submit<'a> {
    pub(crate) store: &'a Store,
    pub(crate) last_writes: &'a LastWrites,
    pub(crate) now: UnixMs,
}

impl Submit<'_> {
    fn all(&self, spot: &Spot, batches: Vec<Vec<Write>>) -> Vec<Ticket> {
        self.last_writes.submit(self.store, &spot.0.to_string(), batches)
    }

    fn pop_write(&self, spot: &Spot, most: u32, keep: Option<Keep<Popped>>) -> (Write, Answer<Popped>) {
        let answer = Answer::new(keep);
        let (queue, partition) = spot.clone();
        (QueueWrite::Pop { queue, partition, most, now: self.now, answer: answer.clone() }.into(), answer)
    }

    /// Submits a pop that waits for nothing.
    pub(crate) fn pop(&self, spot: &Spot, most: u32, keep: Option<Keep<Popped>>) -> Option<Popping> {
        let (write, answer) = self.pop_write(spot, most, keep);
        let ticket = self.all(spot, vec![vec![write]]).pop()?;
        Some(Popping { ticket, answer })
    }
}

impl QueueLines {
    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place at the end of the line. Its first pop is submitted.
    pub(crate) fn join(
        &self,
        submit: &Submit<'_>,
        spot: Spot,
        most: u32,
        keep: Option<Keep<Popped>>,
    ) -> Result<(InLine<'_>, Popping), Status> {
        let mut lines = self.lock();
        if lines.waiters >= WAITERS_MAX {
            return Err(Status::unavailable(format!(
                "{WAITERS_MAX} gets wait at queues already; this one is to be tried again"
            )));
        }
        let closed = || Status::unavailable("The server is shutting down");
        let popping = submit.pop(&spot, most, keep.clone()).ok_or_else(closed)?;
        lines.last_number += 1;
        lines.waiters += 1;
        let number = lines.last_number;
        let state = State::Popping { again: false };
        lines.lines.entry(spot.clone()).or_default().push_back(Place { number, most, keep, state });
        Ok((InLine { lines: self, spot, number }, popping))
    }

    /// Submits a put of `count` items, and right behind it the pops of those who wait for them.
    pub(crate) fn put(&self, submit: &Submit<'_>, spot: &Spot, put: Write, count: usize) -> Option<Ticket> {
        let mut lines = self.lock();
        let mut batches = vec![vec![put]];
        let mut served = Vec::new();
        let mut left = count;
        for place in lines.lines.get_mut(spot).into_iter().flatten() {
            if left == 0 {
                break;
            }
            match &mut place.state {
                State::Popping { again } => *again = true,
                State::Waiting(_) => {
                    left = left.saturating_sub(place.most as usize);
                    served.extend(serve(submit, spot, place, &mut batches));
                }
            }
        }
        hand_out(submit.all(spot, batches), served)
    }

    /// Has everybody who waits at a queue pop, which is how they learn that it is gone.
    pub(crate) fn wake(&self, submit: &Submit<'_>, queue: QueueId) {
        let mut lines = self.lock();
        for (spot, line) in lines.lines.iter_mut().filter(|(spot, _)| spot.0 == queue) {
            let (mut batches, mut served) = (vec![Vec::new()], Vec::new());
            for place in line {
                served.extend(serve(submit, spot, place, &mut batches));
            }
            hand_out(submit.all(spot, batches), served);
        }
    }
}

type Served = (oneshot::Sender<Popping>, Answer<Popped>);

/// Makes the pop of a place that waits, if it does.
fn serve(
    submit: &Submit<'_>,
    spot: &Spot,
    place: &mut Place,
    batches: &mut Vec<Vec<Write>>,
) -> Option<Served> {
    match std::mem::replace(&mut place.state, State::Popping { again: false }) {
        State::Waiting(waiter) => {
            let (write, answer) = submit.pop_write(spot, place.most, place.keep.clone());
            batches.push(vec![write]);
            Some((waiter, answer))
        }
        popping @ State::Popping { .. } => {
            place.state = popping;
            None
        }
    }
}

/// Gives each served waiter its ticket; the first ticket is the caller's.
fn hand_out(tickets: Vec<Ticket>, served: Vec<Served>) -> Option<Ticket> {
    let mut tickets = tickets.into_iter();
    let first = tickets.next();
    for ((waiter, answer), ticket) in served.into_iter().zip(tickets) {
        // Its place is taken out of the line under the lock before a waiter goes, so it is there.
        let _ = waiter.send(Popping { ticket, answer });
    }
    first
}

/// A place in line; given up when dropped.
pub(crate) struct InLine<'a> {
    lines: &'a QueueLines,
    spot: Spot,
    number: u64,
}

impl InLine<'_> {
    /// The last pop came back empty.
    pub(crate) fn came_back_empty(&self, submit: &Submit<'_>) -> Option<Next> {
        let mut lines = self.lines.lock();
        let line = lines.lines.get_mut(&self.spot)?;
        let place = line.iter_mut().find(|place| place.number == self.number)?;
        if matches!(place.state, State::Popping { again: true }) {
            place.state = State::Popping { again: false };
            return submit.pop(&self.spot, place.most, place.keep.clone()).map(Next::Pop);
        }
        let (waiter, wait) = oneshot::channel();
        place.state = State::Waiting(waiter);
        Some(Next::Wait(wait))
    }

    /// Leaves the line. A pop that was submitted meanwhile is in the receiver then.
    pub(crate) fn leave(self) {}
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        let mut lines = self.lines.lock();
        lines.waiters -= 1;
        if let Some(line) = lines.lines.get_mut(&self.spot) {
            line.retain(|place| place.number != self.number);
            if line.is_empty() {
                lines.lines.remove(&self.spot);
            }
        }
    }
}
