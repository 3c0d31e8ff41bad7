//! Makes the layer of one step, unless it is there or another build is making it.

use super::{BuildRequest, Inner, stage};
use crate::error::{ImageError, Result};
use crate::log::{LogSink, Tail, say};
use crate::plan::{Action, CopyOrigin, CopyPlan, RunPlan, Step};
use crate::spec::LayerRef;
use crate::steps::{Command, Copy, CopyFrom, LayerSize};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Locks by name: one per layer that is being made, one per cache that is used.
#[derive(Default)]
pub(super) struct Locks(Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>);

impl Locks {
    pub(super) fn of(&self, digest: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = locks.get(digest).and_then(Weak::upgrade) {
            return lock;
        }
        locks.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::new(tokio::sync::Mutex::new(()));
        locks.insert(digest.to_owned(), Arc::downgrade(&lock));
        lock
    }
}

impl Inner {
    pub(super) async fn layer(
        &self,
        step: &Step,
        request: &BuildRequest,
        head: &str,
        log: &dyn LogSink,
    ) -> Result<()> {
        let Some(layer) = &step.layer else { return Ok(()) };
        let tools = &self.tools.base;
        let lock = self.locks.of(&layer.digest);
        let _making = match lock.try_lock() {
            Ok(guard) => guard,
            Err(_) => {
                say(log, format!("{head}\nwaiting for another build that runs the same step"));
                lock.lock().await
            }
        };
        if tools.layer(&layer.digest).await?.is_some() {
            say(log, format!("{head}  (cached)"));
            return Ok(());
        }
        let turn = self.turns.acquire().await;
        let _turn = turn.map_err(|error| ImageError::builder("wait for a turn", error))?;
        say(log, head);
        tools.clear(&layer.path).await?;
        let start = tools.clock.now();
        let size = match &step.action {
            Action::Run(run) => self.run(step, run, layer, request, log).await?,
            Action::Copy(copy) => self.copy(step, copy, layer, request).await?,
            Action::Config | Action::Skip(_) => return Ok(()),
        };
        let took = tools.clock.now().since(start);
        tools.remember(&layer.digest, step.text.clone(), size, took).await?;
        Ok(())
    }

    async fn run(
        &self,
        step: &Step,
        run: &RunPlan,
        layer: &LayerRef,
        request: &BuildRequest,
        log: &dyn LogSink,
    ) -> Result<LayerSize> {
        for note in &run.notes {
            say(log, format!("note: {note}"));
        }
        let network = &self.tools.base.network;
        let mut mounts = self.mount(step, run, request, log).await?;
        let secrets: Vec<_> = request.secret_env.iter().cloned().chain(mounts.env.drain(..)).collect();
        let command = Command {
            root: step.onto.clone(),
            argv: run.argv.clone(),
            env: environment(network.env(), &run.env, &secrets),
            cwd: run.cwd.clone(),
            user: run.user.clone(),
            binds: network.bind().cloned().into_iter().collect(),
            mounts: std::mem::take(&mut mounts.mounts),
            volumes: request.volumes.clone(),
            network: run.network,
            commit: Some(layer.path.clone()),
        };
        let tail = Tail::new(log);
        let ran = self.tools.base.builder.run(command, &tail).await;
        self.unmount(mounts).await?;
        let (end, size) = ran?;
        if end.success() {
            return Ok(size);
        }
        Err(ImageError::Run {
            line: step.line,
            text: step.text.clone(),
            exit: end.describe(),
            log: tail.text(),
        })
    }

    async fn copy(
        &self,
        step: &Step,
        copy: &CopyPlan,
        layer: &LayerRef,
        request: &BuildRequest,
    ) -> Result<LayerSize> {
        let fail =
            |message: String| ImageError::Instruction { line: step.line, text: step.text.clone(), message };
        let staged;
        let (from, sources) = match &copy.from {
            CopyOrigin::Image { root, sources } => (CopyFrom::Image(root.clone()), sources.clone()),
            CopyOrigin::Mount { sources } => {
                let mount = request.recipe.context_mount.as_ref();
                let mount = mount.ok_or_else(|| fail("the build has no context mount".into()))?;
                (CopyFrom::Tree(self.tools.context.tree(&mount.id).await?), sources.clone())
            }
            CopyOrigin::Staged { files, sources } => {
                staged = stage::make(&self.tools, &request.recipe, files, false).await?;
                (CopyFrom::Tree(staged.path().to_owned()), sources.clone())
            }
            CopyOrigin::Archive { file, name } => {
                let files = [(name.clone(), file.clone())];
                staged = stage::make(&self.tools, &request.recipe, &files, false).await?;
                let path = staged.path().join(name);
                return stage::extract(&self.tools, step, &path, &copy.destination, &layer.path).await;
            }
        };
        let copy = Copy {
            onto: step.onto.clone(),
            from,
            sources,
            destination: copy.destination.clone(),
            chown: copy.chown.clone(),
            chmod: copy.chmod,
            commit: layer.path.clone(),
        };
        let tail = Tail::new(&crate::log::NoLog);
        self.tools.base.builder.copy(copy, &tail).await.map_err(|error| match tail.text() {
            said if said.is_empty() => error,
            said => fail(said.trim().to_owned()),
        })
    }
}

/// What a command sees: this machine's network settings, the image's own variables over them, secrets last.
fn environment(
    network: &[(String, String)],
    image: &[(String, String)],
    secrets: &[(String, String)],
) -> Vec<(String, String)> {
    let home = [("HOME".to_owned(), "/root".to_owned())];
    let mut env: Vec<(String, String)> = Vec::new();
    let mut at: HashMap<String, usize> = HashMap::new();
    for (name, value) in home.iter().chain(network).chain(image).chain(secrets) {
        match at.get(name) {
            Some(index) => env[*index].1.clone_from(value),
            None => {
                at.insert(name.clone(), env.len());
                env.push((name.clone(), value.clone()));
            }
        }
    }
    env
}
