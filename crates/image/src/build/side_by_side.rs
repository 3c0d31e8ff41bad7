//! Carries a plan out: stages side by side, each step as soon as the layers it needs are there. The first failure
//! ends the others.

use super::{BuildRequest, Inner};
use crate::error::{ImageError, Result};
use crate::log::{LogSink, Tagged, say};
use crate::plan::{Action, BindOrigin, CopyOrigin, CopyPlan, MountPlan, Plan, Step};
use std::collections::HashSet;
use tokio::sync::watch;

/// Layers of the plan that are there.
struct Made(watch::Sender<HashSet<String>>);

impl Made {
    /// Returns once all of `needed` are there.
    async fn wait_for(&self, needed: &HashSet<&str>) -> Result<()> {
        let mut made = self.0.subscribe();
        let waited = made.wait_for(|made| needed.iter().all(|digest| made.contains(*digest))).await;
        waited.map(drop).map_err(|error| ImageError::builder("wait for another stage", error))
    }

    fn add(&self, digest: &str) {
        self.0.send_if_modified(|made| made.insert(digest.to_owned()));
    }
}

/// The layers that a step stands on or copies from, of those that the plan makes.
fn needs<'a>(step: &'a Step, planned: &HashSet<&str>) -> HashSet<&'a str> {
    let mut roots = vec![&step.onto];
    match &step.action {
        Action::Copy(CopyPlan { from: CopyOrigin::Image { root, .. }, .. }) => roots.push(root),
        Action::Run(run) => roots.extend(run.mounts.iter().filter_map(|mount| match mount {
            MountPlan::Bind { from: BindOrigin::Image { root, .. }, .. } => Some(root),
            _ => None,
        })),
        _ => {}
    }
    let layers = roots.into_iter().flat_map(|root| &root.layers);
    layers.map(|layer| layer.digest.as_str()).filter(|digest| planned.contains(digest)).collect()
}

impl Inner {
    /// Makes the layers of a plan that are not there yet.
    pub(super) async fn carry_out(
        &self,
        plan: &Plan,
        request: &BuildRequest,
        log: &dyn LogSink,
    ) -> Result<()> {
        let layers = plan.steps.iter().filter_map(|step| step.layer.as_ref());
        let planned: HashSet<&str> = layers.map(|layer| layer.digest.as_str()).collect();
        let made = Made(watch::channel(HashSet::new()).0);
        let stages = plan.stages.iter().enumerate().map(|(index, stage)| {
            let (made, planned) = (&made, &planned);
            async move {
                let tagged = Tagged::new(log, &stage.name);
                let log: &dyn LogSink = if plan.stages.len() > 1 { &tagged } else { log };
                say(log, format!("=> Step 0: FROM {}", stage.base));
                let steps = plan.steps.iter().filter(|step| step.stage == index);
                for (at, step) in steps.enumerate() {
                    let head = format!("=> Step {}: {}", at + 1, step.text);
                    match &step.action {
                        Action::Config => say(log, head),
                        Action::Skip(why) => say(log, format!("{head}\nskipped: {why}")),
                        Action::Run(_) | Action::Copy(_) => {
                            made.wait_for(&needs(step, planned)).await?;
                            self.layer(step, request, &head, log).await?;
                        }
                    }
                    if let Some(layer) = &step.layer {
                        made.add(&layer.digest);
                    }
                }
                Ok(())
            }
        });
        // Those that still run when one fails are dropped, which ends their containers.
        futures::future::try_join_all(stages).await.map(drop)
    }
}
