//! Decisions of the scheduler as pure functions: which input goes to a container that asks ([`Queue`]), how
//! many containers a function has ([`plan`]), on which machine each is placed ([`place`]), who gives room to
//! whom ([`make_room`]), and when a scheduled function is due ([`Schedule`]). No clock, no I/O: each takes what is known and the time, and gives a
//! decision with its [`Reason`].

mod autoscaler;
mod dispatch;
mod fleet;
mod limits;
mod plan;
mod reason;
mod room;
mod schedule;

pub use autoscaler::{Autoscaler, RetryPolicy, SCALEDOWN_WINDOW_MS};
pub use dispatch::{Batch, Key, Offer, Queue};
pub use fleet::{
    Amounts, CPU_OVERSUBSCRIPTION_PERCENT, GpuCounts, NoPlace, OVERCOMMIT_PER_CPU, STARTING_PER_CPU, Worker,
    WorkerCapacity, WorkerId, place, place_beyond,
};
pub use limits::{Limited, Limits, Reached};
pub use plan::{IdleContainer, Plan, PoolSnapshot, plan};
pub use reason::Reason;
pub use room::{Candidate, FAIR_SLICE_MS, FAIR_WAIT_MS, Room, make_room};
pub use schedule::{Due, PERIOD_MS_MIN, PeriodParts, Schedule, ScheduleError, in_words};
