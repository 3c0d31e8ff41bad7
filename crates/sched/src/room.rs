//! Who gives room to whom when the machines are full.
//!
//! An idle container of another pool is stopped for a pool whose inputs wait, never below that pool's
//! minimum, except where the other has waited long for a device that the idle one has. If no idle one is left
//! and the pool has waited for a while without a container's help, a working container takes no more inputs: of
//! a pool with several, or one that has had its turn.

use crate::{Amounts, Reason, Worker, WorkerId};
use evoke_core::{FunctionId, Gpus, Resources, TaskId, UnixMs};
use std::collections::BTreeMap;

/// After so long without any progress a waiting pool may take a working container's place.
pub const FAIR_WAIT_MS: u64 = 1_000;
/// After so long a pool's last container has had its turn.
pub const FAIR_SLICE_MS: u64 = 10_000;

/// A container of another pool that may give room. Starting ones and those on their way out are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Which.
    pub task: TaskId,
    /// Its function.
    pub function: FunctionId,
    /// Its machine.
    pub worker: WorkerId,
    /// What it reserves.
    pub resources: Resources,
    /// Since when it is idle; none if it works.
    pub idle_since: Option<UnixMs>,
    /// When it became ready.
    pub ready_since: UnixMs,
    /// Containers of its pool.
    pub pool_size: u32,
    /// Its pool's minimum.
    pub pool_min: u32,
}

/// A container that gives room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Which.
    pub task: TaskId,
    /// Why; [`Reason::GaveRoom`] for an idle one, [`Reason::GaveTurn`] for a working one.
    pub why: Reason,
}

/// Who gives room for one container that needs `need` and whose pool has waited `waited_ms`. `leaving` is
/// what is held by containers on their way out, per machine; nobody gives more where that will do. None where
/// nobody can.
pub fn make_room(
    fleet: &[Worker],
    leaving: &BTreeMap<WorkerId, Amounts>,
    need: &Resources,
    candidates: &[Candidate],
    waited_ms: u64,
    now: UnixMs,
) -> Option<Vec<Room>> {
    let mut best: Option<Vec<Room>> = None;
    for worker in fleet.iter().filter(|w| w.could_hold(need)) {
        let mut worker = *worker;
        if let Some(amounts) = leaving.get(&worker.capacity.id) {
            subtract(&mut worker.reserved, amounts);
        }
        if is_enough(&worker, need, waited_ms) {
            return Some(Vec::new());
        }
        if let Some(rooms) = room_on(worker, need, candidates, waited_ms, now) {
            if best.as_ref().is_none_or(|b| rooms.len() < b.len()) {
                best = Some(rooms);
            }
        }
    }
    best
}

fn subtract(from: &mut Amounts, amounts: &Amounts) {
    from.milli_cpu = from.milli_cpu.saturating_sub(amounts.milli_cpu);
    from.memory_mib = from.memory_mib.saturating_sub(amounts.memory_mib);
    from.gpus.remove_all(&amounts.gpus);
}

fn room_on(
    mut worker: Worker,
    need: &Resources,
    candidates: &[Candidate],
    waited_ms: u64,
    now: UnixMs,
) -> Option<Vec<Room>> {
    let mut here: Vec<&Candidate> = candidates
        .iter()
        .filter(|c| c.worker == worker.capacity.id)
        .filter(|c| may_give(c, waited_ms, now))
        .collect();
    // Idle ones first, the longest idle first; then working ones of the largest pools, the oldest first.
    here.sort_by_key(|c| match c.idle_since {
        Some(since) => (0, since.0, 0, c.task),
        None => (1, u64::from(u32::MAX - c.pool_size), c.ready_since.0, c.task),
    });
    let mut given: BTreeMap<FunctionId, u32> = BTreeMap::new();
    let mut rooms = Vec::new();
    for candidate in here {
        let from_pool = given.entry(candidate.function).or_default();
        let left = candidate.pool_size.saturating_sub(*from_pool);
        let last_of_a_working_pool = left <= 1 && candidate.idle_since.is_none();
        // Devices cannot be promised twice, so whoever waits for one may wait for ever behind a minimum.
        let minimum =
            if waits_for_device(&worker, need, candidate, waited_ms) { 0 } else { candidate.pool_min };
        if left <= minimum
            || !helps(&worker, need, candidate)
            || (last_of_a_working_pool && now.since(candidate.ready_since) < FAIR_SLICE_MS)
        {
            continue;
        }
        *from_pool += 1;
        worker.reserved.remove(&candidate.resources);
        let why = match candidate.idle_since {
            Some(since) => Reason::GaveRoom { idle_ms: now.since(since) },
            None => Reason::GaveTurn { containers: left, waited_ms },
        };
        rooms.push(Room { task: candidate.task, why });
        if is_enough(&worker, need, waited_ms) {
            return Some(rooms);
        }
    }
    None
}

/// Whether the container can be started on it: for one that has waited long for devices, once they are free,
/// since the rest can be promised beyond what there is.
fn is_enough(worker: &Worker, need: &Resources, waited_ms: u64) -> bool {
    let beyond = need.gpus.count > 0 && waited_ms >= FAIR_SLICE_MS && worker.may_overcommit(need);
    beyond || worker.has_room(need)
}

/// Whether anything of what the candidate holds is what the machine lacks.
fn helps(worker: &Worker, need: &Resources, candidate: &Candidate) -> bool {
    let without_devices = Resources { gpus: Gpus::NONE, ..*need };
    !worker.has_room(&without_devices) || has_wanted_device(need, candidate)
}

fn has_wanted_device(need: &Resources, candidate: &Candidate) -> bool {
    let (wanted, held) = (need.gpus, candidate.resources.gpus);
    wanted.count > 0 && held.count > 0 && wanted.kind == held.kind
}

fn waits_for_device(worker: &Worker, need: &Resources, candidate: &Candidate, waited_ms: u64) -> bool {
    let patient = waited_ms >= FAIR_SLICE_MS && candidate.idle_since.is_some();
    patient && !worker.has_devices(need) && has_wanted_device(need, candidate)
}

fn may_give(candidate: &Candidate, waited_ms: u64, now: UnixMs) -> bool {
    match candidate.idle_since {
        Some(_) => true,
        None => {
            waited_ms >= FAIR_WAIT_MS
                && (candidate.pool_size > 1 || now.since(candidate.ready_since) >= FAIR_SLICE_MS)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::WorkerCapacity;
    use evoke_core::GpuKind;
    use evoke_core::SeededEntropy;
    use proptest::prelude::*;

    const NEED: Resources = Resources { milli_cpu: 1000, memory_mib: 1024, gpus: Gpus::NONE };
    const NOW: UnixMs = UnixMs(100_000);

    fn full_machine() -> Worker {
        let total = Resources { milli_cpu: 2000, memory_mib: 2048, gpus: Gpus::NONE };
        let mut capacity = WorkerCapacity::of(WorkerId(1), total);
        capacity.cpu_oversubscription_percent = 100;
        let mut worker = Worker::empty(capacity);
        worker.reserved.add(&total);
        worker
    }

    fn candidate(
        n: u64,
        function: u128,
        idle_since: Option<u64>,
        pool_size: u32,
        pool_min: u32,
    ) -> Candidate {
        Candidate {
            task: TaskId::new(UnixMs(n), &mut SeededEntropy::new(n)),
            function: FunctionId::from_bits(function),
            worker: WorkerId(1),
            resources: NEED,
            idle_since: idle_since.map(UnixMs),
            ready_since: UnixMs(95_000),
            pool_size,
            pool_min,
        }
    }

    fn rooms(candidates: &[Candidate], waited_ms: u64) -> Vec<Room> {
        make_room(&[full_machine()], &BTreeMap::new(), &NEED, candidates, waited_ms, NOW).unwrap_or_default()
    }

    #[test]
    fn the_longest_idle_gives_room_and_minimums_are_kept() {
        let a = candidate(1, 1, Some(99_000), 1, 0);
        let b = candidate(2, 2, Some(98_000), 1, 0);
        let kept = candidate(3, 3, Some(1_000), 1, 1);
        assert_eq!(rooms(&[a, b, kept], 0).iter().map(|r| r.task).collect::<Vec<_>>(), [b.task]);
        assert!(rooms(&[kept], 60_000).is_empty());
    }

    #[test]
    fn a_working_container_gives_its_turn_only_after_a_while() {
        let many = candidate(1, 1, None, 5, 0);
        assert!(rooms(&[many], FAIR_WAIT_MS - 1).is_empty());
        assert_eq!(rooms(&[many], FAIR_WAIT_MS).len(), 1);
        let mut last = candidate(2, 2, None, 1, 0);
        assert!(rooms(&[last], FAIR_WAIT_MS).is_empty());
        last.ready_since = UnixMs(NOW.0 - FAIR_SLICE_MS);
        assert_eq!(rooms(&[last], FAIR_WAIT_MS).len(), 1);
    }

    #[test]
    fn nothing_is_asked_for_while_enough_is_leaving() {
        let mut leaving = Amounts::default();
        leaving.add(&NEED);
        let leaving = BTreeMap::from([(WorkerId(1), leaving)]);
        let idle = candidate(1, 1, Some(1), 1, 0);
        assert_eq!(make_room(&[full_machine()], &leaving, &NEED, &[idle], 0, NOW), Some(Vec::new()));
    }

    #[test]
    fn only_what_has_the_device_gives_it_and_after_a_while_a_minimum_does() {
        let gpus = Gpus { kind: GpuKind(3), count: 1 };
        let mut worker = full_machine();
        worker.capacity.total = Resources { milli_cpu: 64_000, memory_mib: 64_000, gpus: Gpus::NONE };
        worker.capacity.gpus.add(gpus);
        worker.reserved.gpus.add(gpus);
        let plain = candidate(1, 1, Some(0), 1, 0);
        let mut with_gpu = candidate(2, 2, Some(5), 1, 1);
        with_gpu.resources.gpus = gpus;
        let need = Resources { gpus, ..NEED };
        let given = |waited_ms| {
            let rooms = make_room(&[worker], &BTreeMap::new(), &need, &[plain, with_gpu], waited_ms, NOW);
            rooms.map(|rooms| rooms.iter().map(|room| room.task).collect::<Vec<_>>())
        };
        assert_eq!(given(FAIR_SLICE_MS - 1), None);
        assert_eq!(given(FAIR_SLICE_MS), Some(vec![with_gpu.task]));
    }

    proptest! {
        #[test]
        fn never_takes_a_pool_below_its_minimum(
            pools in prop::collection::vec((0u32..3, 1u32..4, any::<bool>()), 1..5),
            need_cpu in 1u32..2000, waited in 0u64..5_000,
        ) {
            let mut candidates = Vec::new();
            for (f, (min, size, busy)) in pools.iter().enumerate() {
                for n in 0..*size {
                    let idle = (!*busy).then_some(u64::from(n) * 10);
                    candidates.push(candidate((f as u64 + 1) * 100 + u64::from(n), f as u128, idle, *size, *min));
                }
            }
            let need = Resources { milli_cpu: need_cpu, memory_mib: 10, gpus: Gpus::NONE };
            let given = make_room(&[full_machine()], &BTreeMap::new(), &need, &candidates, waited, NOW);
            for (f, (min, size, busy)) in pools.iter().enumerate() {
                let function = FunctionId::from_bits(f as u128);
                let taken = given.iter().flatten().filter(|r| {
                    candidates.iter().any(|c| c.task == r.task && c.function == function)
                }).count() as u32;
                prop_assert!(taken == 0 || size - taken >= *min);
                prop_assert!(taken == 0 || !busy || waited >= FAIR_WAIT_MS);
            }
        }
    }
}
