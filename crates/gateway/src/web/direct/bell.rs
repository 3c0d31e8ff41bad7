//! Wakes of a task by itself, kept inside of it. A connection that is driven by the task that waits for it wakes that
//! task whenever one half of it has something for the other; the runtime would take each of those for work that
//! another thread could do, and wake that thread.

use futures::task::AtomicWaker;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker};

/// Nobody polls: a wake is for the task.
const IDLE: u8 = 0;
/// The task polls.
const POLLING: u8 = 1;
/// The task polls and was woken meanwhile.
const RUNG: u8 = 2;
/// How often the task polls again at once. A runtime that wants a task to give way wakes it at every poll.
const ROUNDS_MAX: u32 = 8;

/// What a connection wakes.
pub(super) struct Bell {
    ring: Arc<Ring>,
    waker: Waker,
}

struct Ring {
    state: AtomicU8,
    task: AtomicWaker,
}

impl Wake for Ring {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let rung = self.state.compare_exchange(POLLING, RUNG, Ordering::AcqRel, Ordering::Acquire);
        if rung == Err(IDLE) {
            self.task.wake();
        }
    }
}

impl Bell {
    pub(super) fn new() -> Self {
        let ring = Arc::new(Ring { state: AtomicU8::new(IDLE), task: AtomicWaker::new() });
        Self { waker: ring.clone().into(), ring }
    }

    /// Does what may wake a task that polls right after it.
    pub(super) fn quietly<T>(&self, act: impl FnOnce() -> T) -> T {
        self.ring.state.store(POLLING, Ordering::Release);
        let done = act();
        self.ring.state.store(IDLE, Ordering::Release);
        done
    }

    /// Polls until that gives something or waits for something of the outside.
    pub(super) fn poll<T>(
        &self,
        cx: &mut Context<'_>,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        self.ring.task.register(cx.waker());
        for _ in 0..ROUNDS_MAX {
            self.ring.state.store(POLLING, Ordering::Release);
            let polled = poll(&mut Context::from_waker(&self.waker));
            let state = self.ring.state.swap(IDLE, Ordering::AcqRel);
            if polled.is_ready() || state == POLLING {
                return polled;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_wake_by_itself_stays_inside_and_one_of_the_outside_does_not() {
        let (bell, count) = (Bell::new(), Arc::new(Count::default()));
        let waker = count.clone().into();
        let cx = &mut Context::from_waker(&waker);
        let (mut polls, mut kept) = (0, None);
        let polled = bell.poll(cx, |cx| {
            polls += 1;
            kept = Some(cx.waker().clone());
            if polls < 3 {
                cx.waker().wake_by_ref();
            }
            Poll::<()>::Pending
        });
        assert_eq!((polled, polls, count.0.load(Ordering::SeqCst)), (Poll::Pending, 3, 0));
        kept.unwrap().wake();
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        bell.quietly(|| bell.waker.wake_by_ref());
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        // Who never stops waking itself gives way.
        polls = 0;
        let polled = bell.poll(cx, |cx| {
            polls += 1;
            cx.waker().wake_by_ref();
            Poll::<()>::Pending
        });
        assert_eq!((polled, polls, count.0.load(Ordering::SeqCst)), (Poll::Pending, ROUNDS_MAX, 2));
    }
}
