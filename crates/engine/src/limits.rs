//! Environments that may have so much at the same time and no more.

use crate::engine::{Engine, Out};
use crate::pool::Pool;
use evoke_core::{EnvironmentId, FunctionId, Resources, UnixMs};
use evoke_sched::{Reached, make_room};
use std::collections::BTreeMap;

impl Engine {
    /// What of `needs` the environment's limits leave a place for; and a limit that does not for another.
    pub(crate) fn within_limits(
        &self,
        environment: Option<EnvironmentId>,
        mut needs: Vec<Resources>,
    ) -> (Vec<Resources>, Option<Reached>) {
        let Some(limits) = environment.and_then(|id| self.limits.get(&id)) else { return (needs, None) };
        let held = self.held_in(environment, |_| true);
        let mut reached = None;
        needs.retain(|need| {
            let limit = limits.reached(need, &held);
            reached = reached.or(limit);
            limit.is_none()
        });
        (needs, reached)
    }

    /// Asks the environment's other containers for a place under a limit.
    pub(crate) fn ask_for_a_share(
        &mut self,
        function: FunctionId,
        environment: Option<EnvironmentId>,
        reached: &Reached,
        waited_ms: u64,
        now: UnixMs,
        out: &mut Out,
    ) {
        let machine = reached.machine.capacity.id;
        let leaving = reached.shares(&self.held_in(environment, |serving| !serving));
        let leaving = BTreeMap::from([(machine, leaving)]);
        let mut candidates = self.candidates(|other, pool| other != function && is_in(pool, environment));
        for candidate in &mut candidates {
            candidate.worker = machine;
            candidate.resources = reached.share(&candidate.resources);
        }
        let rooms = make_room(&[reached.machine], &leaving, &reached.need, &candidates, waited_ms, now);
        for room in rooms.unwrap_or_default() {
            self.drain_task(room.task, room.why, now, out);
        }
    }

    /// What the environment's containers hold that are or are not serving.
    fn held_in(&self, environment: Option<EnvironmentId>, wanted: impl Fn(bool) -> bool) -> Vec<Resources> {
        let inside = self.pools.values().filter(|pool| is_in(pool, environment));
        let tasks = inside.flat_map(|pool| &pool.tasks).filter_map(|id| self.tasks.get(id));
        tasks.filter(|task| wanted(task.is_serving())).map(|task| task.resources).collect()
    }
}

fn is_in(pool: &Pool, environment: Option<EnvironmentId>) -> bool {
    pool.conf.as_ref().is_some_and(|conf| conf.environment_id == environment)
}
