//! When the store refuses what the engine has decided: the engine's memory is ahead of the truth then, so it
//! is made anew from the store. What was refused was not acknowledged, so nobody misses it.

use crate::Control;
use evoke_core::{Error, SystemEntropy};
use evoke_engine::{Engine, EngineConf};
use evoke_proto::Status;
use evoke_store::{Grade, StoreError, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Control {
    /// A decision's writes failed. The caller is told why; the engine is brought back to what is stored.
    pub(crate) fn refused(&self, error: StoreError) -> Status {
        match &error {
            StoreError::Closed => {}
            StoreError::Poisoned(_) => {
                tracing::error!(%error, "the store takes nothing more; the server ends and another takes over");
                self.doomed.notify_one();
            }
            _ if self.rebuilding.swap(true, Ordering::AcqRel) => {}
            _ => {
                tracing::warn!(%error, "the store refused a decision; the engine is rebuilt from what is stored");
                self.spawn("rebuild", |control| async move {
                    if let Err(status) = control.rebuild_engine().await {
                        tracing::error!(%status, "the engine could not be rebuilt; the server ends");
                        control.doomed.notify_one();
                    }
                });
            }
        }
        Error::from(error).into()
    }

    /// Returns once this server can do no good any more; the next one starts from what is stored.
    pub async fn doomed(&self) {
        self.doomed.notified().await;
    }

    async fn rebuild_engine(self: &Arc<Self>) -> Result<(), Status> {
        let alive = self.worker().running().await;
        let me = self.clone();
        let effects = crate::blocking(move || {
            // From here on no decision is made until the new engine is in place.
            let mut state = me.calls.lock();
            me.rebuilding.store(false, Ordering::Release);
            // Everything that was decided has been stored or refused once this empty batch is through; its own
            // fate does not matter.
            let _ = me.store.submit(Vec::new(), Grade::Written).wait();
            let recovered =
                me.store.read_here(|db| Ok(evoke_store::calls::recover(db)?)).map_err(Error::from)?;
            let now = me.now();
            let mut fresh = Engine::new(EngineConf::default(), Box::new(SystemEntropy::default()));
            let mut steps = Vec::new();
            steps.extend(
                me.capacity.get().map(|(capacity, gpus)| fresh.put_worker(*capacity, gpus.clone(), now)),
            );
            for (environment, limits) in me.all_limits() {
                steps.push(fresh.put_limits(environment, limits, now));
            }
            for conf in me.live_confs() {
                steps.push(fresh.put_function(conf, now));
            }
            steps.push(fresh.recover(recovered, now));
            steps.push(fresh.adopt(&alive, now));
            state.engine = fresh;
            let mut effects = Vec::new();
            for step in steps {
                // A refusal is seen by the next decision that waits for its own writes.
                let writes = step.writes.into_iter().map(Write::from).collect();
                drop(me.store.submit(writes, step.grade));
                effects.extend(step.effects);
            }
            Ok(effects)
        })
        .await?;
        self.calls.perform_all(self, effects);
        // Whoever waits asks the new engine.
        self.calls.wake_everybody();
        Ok(())
    }

    /// The settings of all functions that the scheduler knows.
    fn live_confs(&self) -> Vec<evoke_engine::FunctionConf> {
        let live = self.registry.lock();
        let stopping = |app| live.apps.get(&app).is_none_or(|app| app.stopping);
        let functions = live.functions.values().filter(|function| !stopping(function.app_id));
        functions.map(|function| live.scheduled(function)).collect()
    }
}
