//! Who owns which GPU. A device has one owner at most, from the decision to start a container until the
//! container is known to be gone; the owner's row names it, so that a later engine knows as well.

use evoke_core::{GpuKind, Gpus, TaskId};
use evoke_sched::{GpuCounts, WorkerId};
use std::collections::BTreeMap;

/// A GPU of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// Its name on its machine, without spaces.
    pub name: String,
    /// What it is.
    pub kind: GpuKind,
}

/// The GPUs of all machines.
#[derive(Debug, Default)]
pub(crate) struct Devices {
    machines: BTreeMap<WorkerId, Vec<(Gpu, Option<TaskId>)>>,
}

impl Devices {
    /// A machine's GPUs, all free.
    pub(crate) fn put(&mut self, worker: WorkerId, gpus: Vec<Gpu>) {
        self.machines.insert(worker, gpus.into_iter().map(|gpu| (gpu, None)).collect());
    }

    /// A machine went away.
    pub(crate) fn remove(&mut self, worker: WorkerId) {
        self.machines.remove(&worker);
    }

    pub(crate) fn counts(&self, worker: WorkerId) -> GpuCounts {
        let mut counts = GpuCounts::default();
        for (gpu, _) in self.machines.get(&worker).into_iter().flatten() {
            counts.add(Gpus { kind: gpu.kind, count: 1 });
        }
        counts
    }

    /// Gives `task` GPUs that nobody has; none if there are not enough.
    pub(crate) fn take(&mut self, worker: WorkerId, wanted: Gpus, task: TaskId) -> Option<Vec<String>> {
        let here = self.machines.entry(worker).or_default();
        let free = here.iter_mut().filter(|(gpu, owner)| gpu.kind == wanted.kind && owner.is_none());
        let chosen: Vec<_> = free.take(wanted.count as usize).collect();
        if chosen.len() < wanted.count as usize {
            return None;
        }
        let own = chosen.into_iter().map(|(gpu, owner)| {
            *owner = Some(task);
            gpu.name.clone()
        });
        Some(own.collect())
    }

    /// Notes that `task` has these already; those of them that the machine still has.
    pub(crate) fn hold(&mut self, worker: WorkerId, names: &[String], task: TaskId) -> Gpus {
        let mut held = Gpus::NONE;
        for (gpu, owner) in self.machines.entry(worker).or_default() {
            if names.contains(&gpu.name) && owner.is_none_or(|owner| owner == task) {
                *owner = Some(task);
                held = Gpus { kind: gpu.kind, count: held.count + 1 };
            }
        }
        held
    }

    /// `task` is gone.
    pub(crate) fn give_back(&mut self, worker: WorkerId, task: TaskId) {
        for (_, owner) in self.machines.entry(worker).or_default() {
            if *owner == Some(task) {
                *owner = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: WorkerId = WorkerId(0);

    fn task(n: u128) -> TaskId {
        TaskId::from_bits(n)
    }

    fn two_and_one() -> Devices {
        let mut devices = Devices::default();
        let gpu = |name: &str, kind| Gpu { name: name.into(), kind: GpuKind(kind) };
        devices.put(HERE, vec![gpu("a", 0), gpu("b", 1), gpu("c", 0)]);
        devices
    }

    #[test]
    fn nothing_is_given_twice_or_by_halves() {
        let mut devices = two_and_one();
        let first = |count| Gpus { kind: GpuKind(0), count };
        assert_eq!(devices.take(HERE, first(1), task(1)), Some(vec!["a".to_owned()]));
        assert_eq!(devices.take(HERE, first(2), task(2)), None);
        assert_eq!(devices.take(HERE, first(1), task(2)), Some(vec!["c".to_owned()]));
        assert_eq!(devices.take(HERE, first(1), task(3)), None);
        devices.give_back(HERE, task(1));
        assert_eq!(devices.take(HERE, first(1), task(3)), Some(vec!["a".to_owned()]));
        assert_eq!(devices.take(HERE, Gpus::NONE, task(4)), Some(vec![]));
    }

    #[test]
    fn what_was_held_is_held_again_as_far_as_it_exists() {
        let mut devices = two_and_one();
        let names = ["c".to_owned(), "gone".to_owned()];
        assert_eq!(devices.hold(HERE, &names, task(1)), Gpus { kind: GpuKind(0), count: 1 });
        assert_eq!(devices.hold(HERE, &names, task(2)), Gpus::NONE);
        assert_eq!(devices.take(HERE, Gpus { kind: GpuKind(0), count: 2 }, task(3)), None);
    }
}
