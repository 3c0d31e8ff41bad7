//! What goes wrong, and what people do in the middle of it.

use crate::server::Release;
use crate::world::{Event, World};
use evoke_core::AppId;
use evoke_engine::WorkerId;

impl World {
    /// SIGKILL: what is not committed is lost, and so is all memory.
    pub(crate) fn crash_server(&mut self) -> Result<(), String> {
        if self.engine.take().is_none() {
            return Ok(());
        }
        self.summary.crashes += 1;
        self.epoch += 1;
        self.uncommitted.clear();
        self.polls.clear();
        self.in_flight.clear();
        self.tick_at = None;
        self.reconnect_containers();
        let down = self.random.between(0, 5_000);
        self.after(down, Event::Restart);
        Ok(())
    }

    /// A machine goes away. Some of its containers live on without it, fenced.
    pub(crate) fn lose_worker(&mut self) -> Result<(), String> {
        let workers: Vec<WorkerId> =
            self.script.workers.iter().map(|w| w.id).filter(|w| !self.lost_workers.contains(w)).collect();
        if workers.is_empty() {
            return Ok(());
        }
        let worker = self.random.pick(&workers);
        self.lost_workers.insert(worker);
        let mut survivors = Vec::new();
        for _ in 0..self.containers.len() {
            survivors.push(self.random.permille(300));
        }
        for (container, survives) in self.containers.values_mut().zip(survivors) {
            if container.worker == worker && !container.dead {
                container.zombie = true;
                container.dead = !survives;
            }
        }
        let now = self.server_now();
        if let Some(engine) = &mut self.engine {
            let step = engine.remove_worker(worker, now);
            self.take(step, |()| None);
        }
        let away = self.random.between(100, 10_000);
        self.after(away, Event::WorkerBack(worker));
        Ok(())
    }

    pub(crate) fn worker_back(&mut self, worker: WorkerId) -> Result<(), String> {
        self.lost_workers.remove(&worker);
        let now = self.server_now();
        let capacity = self.script.workers.iter().find(|w| w.id == worker).copied();
        if let (Some(engine), Some(capacity)) = (&mut self.engine, capacity) {
            let step = engine.put_worker(capacity, self.script.gpus.clone(), now);
            self.take(step, |()| None);
        }
        Ok(())
    }

    /// A function is deployed again.
    pub(crate) fn redeploy(&mut self) -> Result<(), String> {
        if self.app_stopped {
            return Ok(());
        }
        let n = self.random.between(0, self.script.functions.len() as u64 - 1) as usize;
        self.script.functions[n].conf.generation += 1;
        let conf = self.script.functions[n].conf.clone();
        let now = self.server_now();
        if let Some(engine) = &mut self.engine {
            let step = engine.put_function(conf, now);
            self.take(step, |()| None);
        }
        Ok(())
    }

    /// Somebody stops the app, and tries again until it is done.
    pub(crate) fn stop_app(&mut self) -> Result<(), String> {
        if self.app_stopped {
            return Ok(());
        }
        let now = self.server_now();
        if let Some(engine) = &mut self.engine {
            let step = engine.stop_app(AppId::from_bits(1), now);
            self.take(step, |()| Some(Release::AppStopped));
        }
        self.after(1_000, Event::StopApp);
        Ok(())
    }

    /// The connection of a waiting poll breaks. The server may or may not notice.
    pub(crate) fn drop_connection(&mut self) -> Result<(), String> {
        let parked = self.parked();
        if parked.is_empty() {
            return Ok(());
        }
        let task = self.random.pick(&parked);
        self.polls.remove(&task);
        let noticed = self.random.permille(500);
        let now = self.server_now();
        if let (Some(engine), true) = (&mut self.engine, noticed) {
            let step = engine.poll_dropped(task, now);
            self.take(step, |()| None);
        }
        self.resend_poll(task);
        Ok(())
    }

    /// Somebody stops a container, gracefully or not, most often one that works.
    pub(crate) fn stop_some_task(&mut self) -> Result<(), String> {
        let now = self.server_now();
        let Some(engine) = &mut self.engine else { return Ok(()) };
        let all = engine.task_infos(None);
        let busy: Vec<_> = all.iter().filter(|t| !t.inputs.is_empty()).map(|t| t.task).collect();
        let tasks = if busy.is_empty() { all.iter().map(|t| t.task).collect() } else { busy };
        if tasks.is_empty() {
            return Ok(());
        }
        let task = self.random.pick(&tasks);
        let graceful = self.random.permille(300);
        let step = engine.stop_task(task, graceful, now);
        self.take(step, |()| None);
        Ok(())
    }
}
