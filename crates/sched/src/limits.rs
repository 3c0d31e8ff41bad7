//! What an environment may have at the same time. A limit is one more machine that a container has to fit on, with
//! room for so many containers or so many GPUs: who waits for a place, and who gives one, follows the rules of real
//! ones.

use crate::{Amounts, Reason, Worker, WorkerCapacity, WorkerId};
use evoke_core::{GpuKind, Gpus, Resources};
use std::fmt;

/// An environment's bounds; none where it has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Containers.
    pub containers_max: Option<u32>,
    /// GPUs of all its containers together.
    pub gpus_max: Option<u32>,
}

/// What a limit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limited {
    /// Containers.
    Containers,
    /// GPUs.
    Gpus,
}

impl Limited {
    /// Writes that it is reached, with the setting that says how many there may be.
    pub(crate) fn say(self, f: &mut fmt::Formatter<'_>, max: u32, taken: u32, waiting: u32) -> fmt::Result {
        let (things, setting) = match self {
            Self::Containers => ("containers", "max_concurrent_tasks"),
            Self::Gpus => ("GPUs", "max_concurrent_gpus"),
        };
        write!(f, "{waiting} inputs wait; the environment has {taken} {things} and {setting} is {max}")
    }

    /// What a container takes of the limit.
    fn share(self, resources: &Resources) -> Resources {
        let count = match self {
            Self::Containers => 1,
            Self::Gpus => resources.gpus.count,
        };
        Resources { milli_cpu: 0, memory_mib: 0, gpus: Gpus { kind: COUNTED, count } }
    }
}

/// The number of the machine that stands for a limit.
const LIMIT: WorkerId = WorkerId(u32::MAX);
/// The one kind of thing that it has.
const COUNTED: GpuKind = GpuKind(0);

/// A limit that leaves no place for a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reached {
    /// The machine that stands for it, with what is taken on it.
    pub machine: Worker,
    /// What the container wants of it.
    pub need: Resources,
    of: Limited,
    max: u32,
}

impl Limits {
    /// Whether it bounds anything.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// The first of the limits that leaves no place for a container with this reservation, where the others of the
    /// environment hold theirs.
    pub fn reached(&self, need: &Resources, held: &[Resources]) -> Option<Reached> {
        let limits = [(Limited::Containers, self.containers_max), (Limited::Gpus, self.gpus_max)];
        limits.into_iter().find_map(|(of, max)| {
            let reached = Reached::new(of, max?, need, held);
            (!reached.machine.has_room(&reached.need)).then_some(reached)
        })
    }
}

impl Reached {
    fn new(of: Limited, max: u32, need: &Resources, held: &[Resources]) -> Self {
        let nothing = Resources { milli_cpu: 0, memory_mib: 0, gpus: Gpus::NONE };
        let mut capacity = WorkerCapacity::of(LIMIT, nothing);
        capacity.gpus.add(Gpus { kind: COUNTED, count: max });
        capacity.starting_max = u32::MAX;
        capacity.overcommit_max = 0;
        let mut machine = Worker::empty(capacity);
        for resources in held {
            machine.reserved.add(&of.share(resources));
        }
        Self { machine, need: of.share(need), of, max }
    }

    /// What a container takes of the limit.
    pub fn share(&self, resources: &Resources) -> Resources {
        self.of.share(resources)
    }

    /// What containers on their way out take of it.
    pub fn shares(&self, leaving: &[Resources]) -> Amounts {
        let mut amounts = Amounts::default();
        leaving.iter().for_each(|resources| amounts.add(&self.share(resources)));
        amounts
    }

    /// Why a container has to wait.
    pub fn reason(&self, waiting: u32) -> Reason {
        let taken = self.machine.reserved.gpus.of(COUNTED);
        Reason::EnvironmentLimit { of: self.of, max: self.max, taken, waiting }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(gpus: u32) -> Resources {
        Resources { milli_cpu: 9_000, memory_mib: 9_000, gpus: Gpus { kind: GpuKind(3), count: gpus } }
    }

    #[test]
    fn containers_and_gpus_are_counted_each_for_itself() {
        let limits = Limits { containers_max: Some(2), gpus_max: Some(3) };
        let reason = |need: u32, held: &[u32]| {
            let held: Vec<_> = held.iter().map(|gpus| with(*gpus)).collect();
            limits.reached(&with(need), &held).map(|reached| reached.reason(7))
        };
        assert_eq!(reason(0, &[]), None);
        assert_eq!(reason(3, &[0]), None);
        assert_eq!(reason(0, &[3]), None);
        let full = Reason::EnvironmentLimit { of: Limited::Containers, max: 2, taken: 2, waiting: 7 };
        assert_eq!(reason(0, &[0, 0]), Some(full));
        let gpus = Reason::EnvironmentLimit { of: Limited::Gpus, max: 3, taken: 2, waiting: 7 };
        assert_eq!(reason(2, &[2]), Some(gpus));
        assert!(reason(4, &[]).is_some());
        assert_eq!(Limits::default().reached(&with(9), &[with(9)]), None);
        let none = Limits { containers_max: Some(0), gpus_max: None };
        assert!(none.reached(&with(0), &[]).is_some());
    }
}
