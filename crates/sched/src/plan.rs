//! How many containers a pool has: which to start and which to stop, and why.
//!
//! The wanted number follows from the work in sight: inputs that run and wait, over what one container works
//! on at a time. Three things bound it. The function's own minimum and maximum. The time a start takes:
//! where inputs are short, a container is started only if there is at least a start's worth of work for it,
//! so that a burst of five thousand quick calls does not start five thousand containers; this holds only
//! while the queue moves. And failed starts: after one, starts go one at a time, with a delay.
//! Room on machines is not considered here (see [`crate::place`]).

use crate::{Autoscaler, Reason};
use evoke_core::{TaskId, UnixMs};

/// A container that could take inputs and has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdleContainer {
    /// Which.
    pub task: TaskId,
    /// Since when.
    pub since: UnixMs,
}

/// What is known of a pool. Containers on their way out are not counted.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolSnapshot {
    /// The function's bounds.
    pub autoscaler: Autoscaler,
    /// Inputs (or batches) that one container should work on at a time; at least 1.
    pub target_concurrency: u32,
    /// Inputs in one batch; 0 for a function that is not batched.
    pub batch_max_size: u32,
    /// Inputs that wait for a container.
    pub waiting: u32,
    /// Inputs (or batches) that run.
    pub running: u32,
    /// Containers that have not asked for their first input.
    pub starting: u32,
    /// Containers with inputs.
    pub busy: u32,
    /// Containers without.
    pub idle: Vec<IdleContainer>,
    /// Starts that failed since the last one that succeeded.
    pub failed_starts: u32,
    /// No start before this time.
    pub not_before: UnixMs,
    /// How long an input runs, where that is known.
    pub typical_run_ms: Option<u64>,
    /// How long a container takes to its first poll.
    pub typical_start_ms: u64,
    /// Since when no waiting input has been handed out.
    pub moved: UnixMs,
    /// Processors of all machines.
    pub cores: u32,
}

/// What to do with a pool.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Containers wanted.
    pub target: u32,
    /// Containers to start now.
    pub start: u32,
    /// Why these, or why not more.
    pub why: Option<Reason>,
    /// Idle containers to stop now, each with why.
    pub stop: Vec<(TaskId, Reason)>,
    /// When to plan again even if nothing happens.
    pub wake_at: Option<UnixMs>,
}

impl PoolSnapshot {
    fn containers(&self) -> u32 {
        self.starting + self.busy + self.idle.len() as u32
    }

    fn waiting_slots(&self) -> u32 {
        match self.batch_max_size {
            0 => self.waiting,
            size => self.waiting.div_ceil(size),
        }
    }

    /// Containers that pay for their start. Each has at least a start's worth of work. Where a start costs many
    /// runs and there are more containers than processors, starts and runs wait for the same processors: `n`
    /// containers then cost `n` starts and leave an `n`th of the work to each, which is least at the square
    /// root of the work counted in starts.
    fn worth_having_for(&self, run_ms: u64) -> u32 {
        let work_ms = u64::from(self.waiting_slots()) * run_ms / u64::from(self.target_concurrency.max(1));
        let starts = u32::try_from(work_ms / self.typical_start_ms.max(1)).unwrap_or(u32::MAX);
        let working = (self.busy + self.idle.len() as u32).max(1);
        let short = run_ms.saturating_mul(SHORT_RUNS_PER_START) <= self.typical_start_ms;
        if short {
            working.max(starts.isqrt()).max(starts.min(self.cores))
        } else {
            working.saturating_add(starts)
        }
    }
}

/// The plan for a pool.
pub fn plan(pool: &PoolSnapshot, now: UnixMs) -> Plan {
    let mut plan = Plan::default();
    let containers = pool.containers();
    let scale = pool.autoscaler;
    let demand = pool.running.saturating_add(pool.waiting_slots());
    let mut wanted = demand.div_ceil(pool.target_concurrency.max(1));
    let mut held = None;
    if let (Some(run_ms), true) = (pool.typical_run_ms, pool.waiting > 0 && containers > 0) {
        let stuck_at = pool.moved.plus_ms(pool.typical_start_ms.max(run_ms.saturating_mul(STUCK_RUNS)));
        let worth = pool.worth_having_for(run_ms);
        if worth < wanted && now < stuck_at {
            wanted = worth;
            held = Some(Reason::DrainsSoon {
                waiting: pool.waiting,
                typical_run_ms: run_ms,
                typical_start_ms: pool.typical_start_ms,
                containers,
            });
            wake(&mut plan, stuck_at);
        }
    }
    let needed = wanted;
    if demand > 0 {
        wanted = wanted.saturating_add(scale.buffer);
    }
    wanted = wanted.max(scale.min);
    let max = scale.max.unwrap_or(u32::MAX).max(1);
    plan.target = wanted.min(max);
    plan.start = plan.target.saturating_sub(containers);
    plan.why = match () {
        () if plan.start > 0 && needed > containers => Some(Reason::Backlog {
            waiting: pool.waiting,
            running: pool.running,
            containers,
            target: plan.target,
        }),
        () if plan.start > 0 && scale.min > containers => {
            Some(Reason::Minimum { min: scale.min, containers })
        }
        () if plan.start > 0 => {
            Some(Reason::Buffer { buffer: scale.buffer, containers, target: plan.target })
        }
        () if wanted > max && pool.waiting > 0 => Some(Reason::Maximum { max, waiting: pool.waiting }),
        () => held,
    };
    hold_back_after_failures(pool, now, &mut plan);
    stop_idle(pool, now, max, &mut plan);
    plan
}

/// A run is short where so many of them fit into a start.
const SHORT_RUNS_PER_START: u64 = 4;

/// A queue that has not moved for so many typical runs is stuck: its inputs are not as short as those before.
const STUCK_RUNS: u64 = 4;

fn wake(plan: &mut Plan, at: UnixMs) {
    plan.wake_at = Some(plan.wake_at.map_or(at, |other| other.min(at)));
}

fn hold_back_after_failures(pool: &PoolSnapshot, now: UnixMs, plan: &mut Plan) {
    if pool.failed_starts == 0 || plan.start == 0 {
        return;
    }
    if now < pool.not_before {
        plan.start = 0;
        plan.why =
            Some(Reason::BackOff { failed_starts: pool.failed_starts, wait_ms: pool.not_before.since(now) });
        wake(plan, pool.not_before);
    } else {
        plan.start = plan.start.min(1u32.saturating_sub(pool.starting));
    }
}

fn stop_idle(pool: &PoolSnapshot, now: UnixMs, max: u32, plan: &mut Plan) {
    let containers = pool.containers();
    let mut idle = pool.idle.clone();
    // The newest first: what has been idle for longer is as likely to be warm, and this way the order in
    // which containers are chosen for work (the newest idle one) and the order of stopping do not fight.
    idle.sort_by_key(|c| (std::cmp::Reverse(c.since), c.task));
    let above = containers.saturating_sub(max) as usize;
    let surplus = containers.saturating_sub(plan.target) as usize;
    for container in &idle {
        let idle_ms = now.since(container.since);
        if plan.stop.len() < above {
            plan.stop.push((container.task, Reason::AboveMaximum { containers, max }));
        } else if plan.stop.len() < surplus {
            let window_ms = pool.autoscaler.scaledown_window_ms;
            if idle_ms >= window_ms {
                plan.stop.push((container.task, Reason::Idle { idle_ms, window_ms }));
            } else {
                wake(plan, container.since.plus_ms(window_ms));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evoke_core::SeededEntropy;
    use proptest::prelude::*;

    fn pool() -> PoolSnapshot {
        PoolSnapshot {
            autoscaler: Autoscaler::default(),
            target_concurrency: 1,
            batch_max_size: 0,
            waiting: 0,
            running: 0,
            starting: 0,
            busy: 0,
            idle: Vec::new(),
            failed_starts: 0,
            not_before: UnixMs(0),
            typical_run_ms: None,
            typical_start_ms: 500,
            moved: UnixMs(0),
            cores: 2,
        }
    }

    fn idle(since: &[u64]) -> Vec<IdleContainer> {
        let mut entropy = SeededEntropy::new(3);
        since
            .iter()
            .map(|s| IdleContainer { task: TaskId::new(UnixMs(*s), &mut entropy), since: UnixMs(*s) })
            .collect()
    }

    const NOW: UnixMs = UnixMs(100_000);

    #[test]
    fn starts_from_zero_on_the_first_input_and_counts_what_is_starting() {
        let mut p = pool();
        p.waiting = 1;
        assert_eq!(plan(&p, NOW).start, 1);
        p.starting = 1;
        assert_eq!(plan(&p, NOW).start, 0);
        p.waiting = 3;
        assert_eq!(plan(&p, NOW).start, 2);
        p.target_concurrency = 3;
        assert_eq!(plan(&p, NOW).start, 0);
    }

    #[test]
    fn keeps_minimum_buffer_and_maximum() {
        let mut p = pool();
        p.autoscaler = Autoscaler { min: 2, max: Some(4), buffer: 1, scaledown_window_ms: 10 };
        assert_eq!(plan(&p, NOW).start, 2);
        p.running = 2;
        p.busy = 2;
        assert_eq!(plan(&p, NOW).start, 1);
        p.waiting = 50;
        let decided = plan(&p, NOW);
        assert_eq!((decided.start, decided.target), (2, 4));
        p.busy = 4;
        assert_eq!(plan(&p, NOW).why, Some(Reason::Maximum { max: 4, waiting: 50 }));
    }

    #[test]
    fn a_batched_function_needs_one_container_per_batch() {
        let mut p = pool();
        p.batch_max_size = 10;
        p.waiting = 25;
        assert_eq!(plan(&p, NOW).start, 3);
    }

    #[test]
    fn short_inputs_do_not_start_many_containers_unless_the_queue_is_stuck() {
        let mut p = pool();
        p.waiting = 5_000;
        p.busy = 1;
        p.running = 1;
        p.typical_run_ms = Some(1);
        p.moved = UnixMs(NOW.0 - 1);
        let decided = plan(&p, NOW);
        // Ten starts' worth of work on two processors: three containers are done soonest.
        assert_eq!(decided.start, 2);
        let roomy = PoolSnapshot { cores: 64, ..p.clone() };
        assert_eq!(plan(&roomy, NOW).start, 9);
        assert_eq!(decided.wake_at, Some(UnixMs(NOW.0 + 499)));
        p.waiting = 100;
        assert!(matches!(plan(&p, NOW).why, Some(Reason::DrainsSoon { .. })));
        p.moved = UnixMs(NOW.0 - 500);
        assert_eq!(plan(&p, NOW).start, 100);
    }

    #[test]
    fn stops_after_the_window_the_newest_idle_first() {
        let mut p = pool();
        p.idle = idle(&[30_000, 39_000, 50_000]);
        let decided = plan(&p, NOW);
        let stopped: Vec<_> = decided.stop.iter().map(|(task, _)| *task).collect();
        assert_eq!(stopped, [p.idle[1].task, p.idle[0].task]);
        assert_eq!(decided.wake_at, Some(UnixMs(110_000)));
        p.autoscaler.min = 3;
        assert!(plan(&p, NOW).stop.is_empty());
    }

    #[test]
    fn goes_one_at_a_time_after_failed_starts() {
        let mut p = pool();
        p.waiting = 9;
        p.failed_starts = 2;
        p.not_before = NOW.plus_ms(50);
        let decided = plan(&p, NOW);
        assert_eq!((decided.start, decided.wake_at), (0, Some(NOW.plus_ms(50))));
        assert_eq!(plan(&p, NOW.plus_ms(50)).start, 1);
        p.starting = 1;
        assert_eq!(plan(&p, NOW.plus_ms(50)).start, 0);
    }

    prop_compose! {
        fn any_pool()(
            min in 0u32..5, extra in prop::option::of(0u32..6), buffer in 0u32..4, target in 1u32..5,
            batch in 0u32..4, waiting in 0u32..200, busy in 0u32..8, starting in 0u32..8,
            since in prop::collection::vec(0u64..200_000, 0..8), failed in 0u32..3,
            run in prop::option::of(0u64..5_000), moved in 0u64..200_000, not_before in 0u64..200_000,
        ) -> PoolSnapshot {
            PoolSnapshot {
                autoscaler: Autoscaler {
                    min, max: extra.map(|e| (min + e).max(1)), buffer, scaledown_window_ms: 60_000,
                },
                target_concurrency: target,
                batch_max_size: batch,
                waiting,
                running: busy,
                starting,
                busy,
                idle: idle(&since),
                failed_starts: failed,
                not_before: UnixMs(not_before),
                typical_run_ms: run,
                typical_start_ms: 500,
                moved: UnixMs(moved),
                cores: 2,
            }
        }
    }

    proptest! {
        #[test]
        fn bounds_hold(p in any_pool(), now in 0u64..300_000) {
            let now = UnixMs(now);
            let decided = plan(&p, now);
            let before = p.containers();
            let max = p.autoscaler.max.unwrap_or(u32::MAX);
            // Never above the maximum by a start.
            prop_assert!(decided.start == 0 || before + decided.start <= max);
            // Never below the minimum by a stop.
            let stops = decided.stop.len() as u32;
            prop_assert!(stops == 0 || before - stops >= p.autoscaler.min.min(max));
            // The minimum is reached unless starts have failed.
            prop_assert!(p.failed_starts > 0 || before + decided.start >= p.autoscaler.min.min(max));
            // Only idle containers are stopped, each once, and never while starting others.
            let mut stopped: Vec<_> = decided.stop.iter().map(|(task, _)| *task).collect();
            stopped.sort();
            stopped.dedup();
            prop_assert_eq!(stopped.len(), decided.stop.len());
            prop_assert!(stopped.iter().all(|task| p.idle.iter().any(|c| c.task == *task)));
            prop_assert!(stops == 0 || decided.start == 0);
            // What waits is served by something, or there is a time at which it will be.
            prop_assert!(
                p.waiting == 0 || before > 0 || decided.start > 0 || decided.wake_at.is_some_and(|at| at > now)
            );
            // A wake-up lies ahead, or planning would spin.
            prop_assert!(decided.wake_at.is_none_or(|at| at > now));
        }
    }
}
