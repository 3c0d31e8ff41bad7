//! The machines that containers are placed on, and how much room is left on them.

use evoke_core::{GPU_KINDS_MAX, GpuKind, Gpus, Resources};

/// A machine of the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId(pub u32);

/// What a machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerCapacity {
    /// Which.
    pub id: WorkerId,
    /// Its processors and memory. Its devices are in `gpus`.
    pub total: Resources,
    /// Its GPUs.
    pub gpus: GpuCounts,
    /// So many times more processor time may be reserved than there is, in percent (100 is none more):
    /// a reservation is a share, and most containers wait most of the time.
    pub cpu_oversubscription_percent: u32,
    /// Containers that may be starting on it at the same time.
    pub starting_max: u32,
    /// Containers that may be started on it beyond its room, each for a pool that would otherwise wait
    /// without any progress (for example a function whose caller's container holds the room).
    pub overcommit_max: u32,
}

/// Processor time that may be reserved on a machine, relative to what it has.
pub const CPU_OVERSUBSCRIPTION_PERCENT: u32 = 400;
/// Concurrent starts per processor.
pub const STARTING_PER_CPU: u32 = 2;
/// Containers beyond the room per processor.
pub const OVERCOMMIT_PER_CPU: u32 = 4;

impl WorkerCapacity {
    /// A machine with the usual factors.
    pub fn of(id: WorkerId, total: Resources) -> Self {
        let cpus = (total.milli_cpu / 1000).max(1);
        Self {
            id,
            total,
            gpus: GpuCounts::default(),
            cpu_oversubscription_percent: CPU_OVERSUBSCRIPTION_PERCENT,
            starting_max: cpus * STARTING_PER_CPU,
            overcommit_max: cpus * OVERCOMMIT_PER_CPU,
        }
    }

    fn reservable_milli_cpu(&self) -> u64 {
        u64::from(self.total.milli_cpu) * u64::from(self.cpu_oversubscription_percent) / 100
    }
}

/// A machine with what is reserved on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Worker {
    /// What it has.
    pub capacity: WorkerCapacity,
    /// Sum over its containers.
    pub reserved: Amounts,
    /// Containers that are starting on it.
    pub starting: u32,
    /// Containers on it that were started beyond its room.
    pub overcommitted: u32,
}

/// Sums of [`Resources`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Amounts {
    /// CPU in thousandths of a core.
    pub milli_cpu: u64,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Whole GPUs.
    pub gpus: GpuCounts,
}

/// Numbers of GPUs by kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GpuCounts([u32; GPU_KINDS_MAX]);

impl GpuCounts {
    /// How many of a kind.
    pub fn of(&self, kind: GpuKind) -> u32 {
        self.0.get(usize::from(kind.0)).copied().unwrap_or(0)
    }
    /// Adds what one container has, or one machine.
    pub fn add(&mut self, gpus: Gpus) {
        if let Some(count) = self.0.get_mut(usize::from(gpus.kind.0)) {
            *count = count.saturating_add(gpus.count);
        }
    }
    /// Takes it away again.
    pub fn remove(&mut self, gpus: Gpus) {
        if let Some(count) = self.0.get_mut(usize::from(gpus.kind.0)) {
            *count = count.saturating_sub(gpus.count);
        }
    }
    /// Takes all of `other` away.
    pub fn remove_all(&mut self, other: &Self) {
        for (count, less) in self.0.iter_mut().zip(other.0) {
            *count = count.saturating_sub(less);
        }
    }
}

impl Amounts {
    /// Adds one container's.
    pub fn add(&mut self, r: &Resources) {
        self.milli_cpu += u64::from(r.milli_cpu);
        self.memory_mib += u64::from(r.memory_mib);
        self.gpus.add(r.gpus);
    }
    /// Takes one container's away.
    pub fn remove(&mut self, r: &Resources) {
        self.milli_cpu = self.milli_cpu.saturating_sub(u64::from(r.milli_cpu));
        self.memory_mib = self.memory_mib.saturating_sub(u64::from(r.memory_mib));
        self.gpus.remove(r.gpus);
    }
}

impl Worker {
    /// An empty machine.
    pub fn empty(capacity: WorkerCapacity) -> Self {
        Self { capacity, reserved: Amounts::default(), starting: 0, overcommitted: 0 }
    }

    /// Whether one more container with these reservations fits beside what is there.
    pub fn has_room(&self, r: &Resources) -> bool {
        self.reserved.milli_cpu + u64::from(r.milli_cpu) <= self.capacity.reservable_milli_cpu()
            && self.reserved.memory_mib + u64::from(r.memory_mib) <= u64::from(self.capacity.total.memory_mib)
            && self.has_devices(r)
    }

    pub(crate) fn has_devices(&self, r: &Resources) -> bool {
        let wanted = u64::from(r.gpus.count);
        wanted == 0
            || u64::from(self.reserved.gpus.of(r.gpus.kind)) + wanted
                <= u64::from(self.capacity.gpus.of(r.gpus.kind))
    }

    /// Whether it would fit were the machine empty.
    pub fn could_hold(&self, r: &Resources) -> bool {
        Worker::empty(self.capacity).has_room(r)
    }

    /// Whether it may be started beyond the room: never with devices that are taken.
    pub fn may_overcommit(&self, r: &Resources) -> bool {
        self.overcommitted < self.capacity.overcommit_max && self.has_devices(r) && self.could_hold(r)
    }

    /// Whether another container may begin to start now.
    pub fn may_start(&self) -> bool {
        self.starting < self.capacity.starting_max
    }
}

/// Why there is no place for a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPlace {
    /// No machine has joined yet.
    NoWorkers,
    /// No machine could hold it even if empty.
    NeverFits,
    /// The machines that could hold it are full.
    Full,
    /// There is room, but as many containers are starting as may.
    StartsBusy,
}

/// The machine for one more container: the one with the most memory left among those with room.
pub fn place(fleet: &[Worker], r: &Resources) -> Result<WorkerId, NoPlace> {
    if fleet.is_empty() {
        return Err(NoPlace::NoWorkers);
    }
    if !fleet.iter().any(|w| w.could_hold(r)) {
        return Err(NoPlace::NeverFits);
    }
    let left = |w: &Worker| u64::from(w.capacity.total.memory_mib).saturating_sub(w.reserved.memory_mib);
    let with_room = || fleet.iter().filter(|w| w.has_room(r));
    match with_room().filter(|w| w.may_start()).max_by_key(|w| (left(w), std::cmp::Reverse(w.capacity.id))) {
        Some(worker) => Ok(worker.capacity.id),
        None if with_room().next().is_some() => Err(NoPlace::StartsBusy),
        None => Err(NoPlace::Full),
    }
}

/// The machine for a container beyond the room, if any may take it.
pub fn place_beyond(fleet: &[Worker], r: &Resources) -> Option<WorkerId> {
    fleet
        .iter()
        .filter(|w| w.may_overcommit(r) && w.may_start())
        .min_by_key(|w| (w.overcommitted, w.capacity.id))
        .map(|w| w.capacity.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(id: u32, milli_cpu: u32, memory_mib: u32) -> Worker {
        let mut capacity =
            WorkerCapacity::of(WorkerId(id), Resources { milli_cpu, memory_mib, gpus: Gpus::NONE });
        capacity.cpu_oversubscription_percent = 100;
        Worker::empty(capacity)
    }

    fn need(milli_cpu: u32, memory_mib: u32, gpus: u32) -> Resources {
        Resources { milli_cpu, memory_mib, gpus: Gpus { kind: GpuKind(2), count: gpus } }
    }

    #[test]
    fn says_why_there_is_no_place() {
        let mut worker = machine(1, 1000, 1024);
        assert_eq!(place(&[], &need(1, 1, 0)), Err(NoPlace::NoWorkers));
        assert_eq!(place(&[worker], &need(1, 2048, 0)), Err(NoPlace::NeverFits));
        assert_eq!(place(&[worker], &need(1, 1, 1)), Err(NoPlace::NeverFits));
        worker.reserved.add(&need(900, 100, 0));
        assert_eq!(place(&[worker], &need(200, 1, 0)), Err(NoPlace::Full));
        assert_eq!(place(&[worker], &need(100, 1, 0)), Ok(WorkerId(1)));
        worker.starting = worker.capacity.starting_max;
        assert_eq!(place(&[worker], &need(100, 1, 0)), Err(NoPlace::StartsBusy));
    }

    #[test]
    fn a_kind_of_gpu_does_not_stand_in_for_another() {
        let mut worker = machine(1, 1000, 1024);
        worker.capacity.gpus.add(Gpus { kind: GpuKind(1), count: 8 });
        assert_eq!(place(&[worker], &need(1, 1, 1)), Err(NoPlace::NeverFits));
        worker.capacity.gpus.add(Gpus { kind: GpuKind(2), count: 2 });
        assert_eq!(place(&[worker], &need(1, 1, 2)), Ok(WorkerId(1)));
        worker.reserved.add(&need(1, 1, 1));
        assert_eq!(place(&[worker], &need(1, 1, 2)), Err(NoPlace::Full));
        assert_eq!(place(&[worker], &need(1, 1, 1)), Ok(WorkerId(1)));
    }

    #[test]
    fn spreads_by_memory_left() {
        let mut first = machine(1, 4000, 4096);
        first.reserved.add(&need(0, 2048, 0));
        assert_eq!(place(&[first, machine(2, 4000, 4096)], &need(100, 100, 0)), Ok(WorkerId(2)));
    }

    #[test]
    fn goes_beyond_the_room_a_bounded_number_of_times() {
        let mut worker = machine(1, 1000, 1024);
        worker.reserved.add(&need(1000, 1024, 0));
        assert_eq!(place_beyond(&[worker], &need(500, 100, 0)), Some(WorkerId(1)));
        assert_eq!(place_beyond(&[worker], &need(500, 100, 1)), None);
        worker.overcommitted = worker.capacity.overcommit_max;
        assert_eq!(place_beyond(&[worker], &need(500, 100, 0)), None);
    }
}
