//! Templates: for each image and client in use, an interpreter that has imported the client, in a container of its
//! own. Containers of that image are made in its namespaces, and it forks their program; see `docs/decisions`.
//!
//! Whatever fails here is logged, and the container's program is executed as without templates. A template that
//! failed is given up: it forks nothing any more, and its container goes with the last one that is inside of it.

use crate::config::Templates;
use crate::prepare::NO_ONE;
use crate::tasks::{self, TaskKind};
use crate::worker::WorkerDeps;
use evoke_core::{Entropy, Error, StartPath, SystemEntropy, TaskId};
use evoke_proto::worker::{Assignment, HostBind, LayerOwner, LayerRef};
use evoke_runtime::fds::{self, AsyncSocket};
use evoke_runtime::{
    Bind, ContainerSpec, Guest, GuestError, GuestEvent, Layer, Limits, Nest, Network, Owner, ProcId,
    ProcessSpec,
};
use rustix::process::Signal;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// How long a template may take to import the client.
const READY_WAIT: Duration = Duration::from_secs(120);
/// How long one that could not be made or failed is not made again, in milliseconds; it doubles with each time.
const PAUSE_MS: u64 = 5_000;
/// Doublings of it at most.
const DOUBLINGS_MAX: u32 = 7;
/// Bytes of what a template complained about that are logged.
const COMPLAINT_MAX: usize = 4096;
/// How long a template's container leaves those inside of it when its server is gone: as long as they may take.
const GRACE_MS: u64 = 600_000;
/// Its share of the processors, in thousandths of one: what it does before it is ready is in nobody's way.
const SHARES_MILLI: u32 = 50;
/// Processes at once: itself, and those that are being forked.
const PIDS_MAX: u32 = 128;
/// Says to the runtime in containers that it is a template.
const ASKED: &str = "EVOKE_TEMPLATE";
/// Before the name under which a template's control socket is kept.
const KEPT: &str = "template/";

/// Variables that decide about the interpreter and what the client does when it is imported. Templates have them, and
/// whoever has others has another template.
const WITH: [&str; 9] =
    ["HOME", "PATH", "LANG", "LANGUAGE", "TZ", "GLIBC_TUNABLES", "OPENCLAW_SHELL", "AGENT", "AI_AGENT"];
const WITH_PREFIXES: [&str; 10] =
    ["PYTHON", "LD_", "LC_", "MALLOC_", "SSL_", "OPENSSL_", "MODAL_", "EVOKE_", "PROTOCOL_BUFFERS_", "GRPC_"];
/// Those of them that are a single container's, or nobody else's business.
const WITHOUT: [&str; 7] = [
    "MODAL_TASK_ID",
    "MODAL_IMAGE_ID",
    "MODAL_ENVIRONMENT",
    "MODAL_SERVER_URL",
    "MODAL_CONTAINER_ARGUMENTS_PATH",
    "MODAL_TOKEN_ID",
    "MODAL_TOKEN_SECRET",
];

/// What a template is made of. Containers with equal ones share it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Plan {
    layers: Vec<LayerRef>,
    binds: Vec<HostBind>,
    argv: Vec<String>,
    env: Vec<(String, String)>,
}

impl Plan {
    /// Of a container whose program templates can fork.
    pub(crate) fn of(assignment: &Assignment) -> Option<Self> {
        // A device's libraries are found by what the interpreter is told when it is executed.
        let fits = assignment.gpus.is_empty() && assignment.commit_on_exit.is_none();
        if assignment.template_layers.is_empty() || !fits {
            return None;
        }
        let named = |name: &str| {
            let listed = WITH.contains(&name) || WITH_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
            listed && !WITHOUT.contains(&name)
        };
        let mut env: Vec<_> = assignment.env.iter().filter(|(name, _)| named(name)).cloned().collect();
        env.sort();
        Some(Self {
            layers: assignment.template_layers.clone(),
            binds: assignment.binds.clone(),
            argv: assignment.argv.clone(),
            env,
        })
    }

    fn spec(&self, id: &str, bounds: Templates) -> ContainerSpec {
        let layers = self.layers.iter().map(|layer| Layer {
            path: layer.path.clone(),
            owner: match layer.owner {
                LayerOwner::Canonical => Owner::Canonical,
                LayerOwner::Single { uid, gid } => Owner::Single { uid, gid },
            },
        });
        let mut spec = ContainerSpec::new(id, layers.collect());
        let binds = self.binds.iter().map(|bind| Bind {
            source: bind.source.clone(),
            target: bind.target.to_string_lossy().into_owned(),
            read_only: true,
            owner: Owner::Single { uid: NO_ONE, gid: NO_ONE },
        });
        spec.binds = binds.collect();
        spec.network = Network::Loopback;
        spec.nest = Nest::Around;
        spec.grace_ms = GRACE_MS;
        spec.limits = Limits {
            cpu_shares_milli: SHARES_MILLI,
            memory_max: Some(bounds.memory_bytes),
            pids_max: PIDS_MAX,
            ..Limits::default()
        };
        spec
    }
}

/// A template, or what is left of one for the containers inside of it. With its last holder its container goes.
pub(crate) struct Template {
    id: String,
    deps: WorkerDeps,
    guest: Guest,
    /// The interpreter and the socket by which it is asked; none where it was another process's of ours.
    program: Option<(ProcId, AsyncSocket)>,
    is_gone: AtomicBool,
}

impl Template {
    /// Its container's name.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Asks for a fork into the container of this init; the line to what will be forked.
    fn ask(&self, init: &OwnedFd) -> io::Result<OwnedFd> {
        let (_, socket) =
            self.program.as_ref().ok_or_else(|| io::Error::other("it forks nothing any more"))?;
        let (ours, theirs) = fds::pair()?;
        fds::send(socket.as_fd(), b"{}", &[init.as_fd(), theirs.as_fd()], true)?;
        Ok(ours)
    }

    async fn destroy(&self) {
        if self.is_gone.swap(true, Ordering::SeqCst) {
            return;
        }
        take_down(&self.deps, &self.id).await;
    }
}

/// Destroys a template's container and forgets its socket. What fails is tried again by the next start.
async fn take_down(deps: &WorkerDeps, id: &str) {
    if let Err(error) = deps.runtime.destroy(id).await {
        tracing::warn!(template = id, %error, "a template's container could not be removed yet");
    }
    if let Err(error) = deps.fd_keeper.remove(&format!("{KEPT}{id}")).await {
        tracing::warn!(template = id, %error, "a template's socket stays in the store");
    }
}

impl Drop for Template {
    fn drop(&mut self) {
        if self.is_gone.swap(true, Ordering::SeqCst) || tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        let (deps, id) = (self.deps.clone(), self.id.clone());
        tasks::spawn(TaskKind::Template, self.id.clone(), async move { take_down(&deps, &id).await });
    }
}

/// All templates of this machine.
pub(crate) struct Pool {
    bounds: Templates,
    deps: WorkerDeps,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    known: HashMap<Plan, Known>,
    /// Every template whose container is there.
    living: HashMap<String, Weak<Template>>,
    /// Counts choices, to tell which was not chosen for the longest time.
    choices: u64,
    is_closed: bool,
}

/// What is known of a plan's template.
#[derive(Default)]
struct Known {
    template: Option<Arc<Template>>,
    is_being_made: bool,
    chosen: u64,
    /// How often it failed in a row, and before when it is not made again.
    failures: u32,
    not_before_ms: u64,
}

impl Pool {
    pub(crate) fn new(bounds: Templates, deps: WorkerDeps) -> Self {
        Self { bounds, deps, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that holds this lock can panic half way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The template for a container, if it is ready.
    pub(crate) fn choose(&self, plan: &Plan) -> Option<Arc<Template>> {
        let mut state = self.state();
        state.choices += 1;
        let choices = state.choices;
        let known = state.known.get_mut(plan)?;
        known.chosen = choices;
        known.template.clone()
    }

    /// The template whose container has this name, if it is there.
    pub(crate) fn living(&self, id: &str) -> Option<Arc<Template>> {
        self.state().living.get(id).and_then(Weak::upgrade)
    }

    /// A container that no template forked is ready: the next one of its kind will find a template.
    pub(crate) fn want(self: &Arc<Self>, plan: Plan) {
        let now = self.deps.clock.now().0;
        let evicted = {
            let mut state = self.state();
            if state.is_closed || self.bounds.most == 0 {
                return;
            }
            let known = state.known.entry(plan.clone()).or_default();
            if known.template.is_some() || known.is_being_made || now < known.not_before_ms {
                return;
            }
            known.is_being_made = true;
            state.make_room(self.bounds.most)
        };
        for template in &evicted {
            tracing::info!(template = template.id(), "gives way to another template");
        }
        let pool = self.clone();
        tasks::spawn(TaskKind::Template, "new", async move {
            for template in evicted {
                pool.end_program(&template).await;
            }
            let made = pool.make(&plan).await;
            pool.made(plan, made);
        });
    }

    fn made(self: &Arc<Self>, plan: Plan, made: Result<Arc<Template>, Error>) {
        let mut state = self.state();
        let is_closed = state.is_closed;
        let known = state.known.entry(plan.clone()).or_default();
        known.is_being_made = false;
        match made {
            Ok(template) if !is_closed => {
                tracing::info!(template = template.id(), "a template is ready");
                known.template = Some(template.clone());
                self.watch(plan, &template);
            }
            Ok(_) => {}
            Err(error) => {
                known.failed(self.deps.clock.now().0);
                tracing::warn!(%error, "a template could not be made; containers start without it");
            }
        }
    }

    async fn make(&self, plan: &Plan) -> Result<Arc<Template>, Error> {
        let id = format!("template-{:016x}", SystemEntropy::default().next_u64());
        let started = self.deps.runtime.start(plan.spec(&id, self.bounds)).await?;
        let prepared = self.run(plan, &id, started.control).await;
        if prepared.is_err() && self.living(&id).is_none() {
            take_down(&self.deps, &id).await;
        }
        prepared
    }

    async fn run(&self, plan: &Plan, id: &str, control: OwnedFd) -> Result<Arc<Template>, Error> {
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            Error::precondition(format!("the template {id}: {what}: {error}"))
        };
        self.deps.fd_keeper.put(&format!("{KEPT}{id}"), control.as_fd()).await?;
        let guest = Guest::new(control).map_err(|error| failed("its control socket", &error))?;
        let (ours, theirs) = fds::pair().map_err(|error| failed("making its socket", &error))?;
        let (complaints, stderr) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|error| failed("making a pipe", &error))?;
        let stdout = stderr.try_clone().map_err(|error| failed("making a pipe", &error))?;
        let mut spec = ProcessSpec::new(plan.argv.clone(), stdout, stderr);
        spec.env.clone_from(&plan.env);
        spec.env.push((ASKED.to_owned(), "1".to_owned()));
        spec.stdin = Some(theirs);
        let proc = guest.spawn_template(spec).await.map_err(|error| failed("executing it", &error))?;
        let socket = AsyncSocket::new(ours).map_err(|error| failed("its socket", &error))?;
        match tokio::time::timeout(READY_WAIT, socket.recv()).await {
            Ok(Ok(Some(packet))) if packet.body == b"\"Ready\"" => {}
            Ok(Ok(Some(packet))) => {
                let said: String =
                    String::from_utf8_lossy(&packet.body).chars().take(COMPLAINT_MAX).collect();
                return Err(failed("importing the client", &said));
            }
            Ok(Ok(None)) => return Err(failed("it ended", &read_some(&complaints))),
            Ok(Err(error)) => return Err(failed("its socket", &error)),
            Err(_) => return Err(failed("it was not ready in time", &read_some(&complaints))),
        }
        let deps = self.deps.clone();
        let program = Some((proc, socket));
        let is_gone = AtomicBool::new(false);
        let template = Arc::new(Template { id: id.to_owned(), deps, guest, program, is_gone });
        self.note_living(&template);
        Ok(template)
    }

    fn note_living(&self, template: &Arc<Template>) {
        let mut state = self.state();
        state.living.retain(|_, template| template.strong_count() > 0);
        state.living.insert(template.id.clone(), Arc::downgrade(template));
    }

    /// Notices when a template ends by itself.
    fn watch(self: &Arc<Self>, plan: Plan, template: &Arc<Template>) {
        let (pool, guest, id) = (self.clone(), template.guest.clone(), template.id.clone());
        let proc = template.program.as_ref().map(|(proc, _)| *proc);
        tasks::spawn(TaskKind::Template, id.clone(), async move {
            let ended = |event: &GuestEvent| {
                let GuestEvent::Exited { proc: ended, .. } = event;
                Some(*ended) == proc
            };
            while let Some(event) = guest.next_event().await {
                if ended(&event) {
                    pool.give_up(&id, Some(&plan), "it ended");
                    return;
                }
            }
            pool.give_up(&id, Some(&plan), "its container ended");
        });
    }

    /// Has no container forked by this template any more.
    fn give_up(&self, id: &str, plan: Option<&Plan>, why: &str) {
        let now = self.deps.clock.now().0;
        let given_up = {
            let mut state = self.state();
            let is_it = |known: &Known| known.template.as_ref().is_some_and(|template| template.id == id);
            let found = state
                .known
                .iter_mut()
                .find(|(of, known)| plan.is_none_or(|plan| plan == *of) && is_it(known));
            found.and_then(|(_, known)| {
                known.failed(now);
                known.template.take()
            })
        };
        if given_up.is_some() {
            tracing::warn!(template = id, why, "a template is given up");
        }
    }

    async fn end_program(&self, template: &Template) {
        if let Some((proc, _)) = &template.program {
            // One that has ended is as good.
            let _ = template.guest.signal(*proc, Signal::KILL.as_raw(), false).await;
        }
    }

    /// Runs a container's program: by a fork of the template in whose namespaces it is, else by executing it.
    pub(crate) async fn fork(
        &self,
        template: &Template,
        task: TaskId,
        guest: &Guest,
        init: io::Result<OwnedFd>,
        spec: ProcessSpec,
    ) -> Result<(ProcId, StartPath), GuestError> {
        let id = template.id();
        let why = match init.and_then(|init| template.ask(&init)) {
            Ok(line) => match guest.spawn_forked(spec, line).await? {
                (proc, None) => {
                    self.worked(id);
                    return Ok((proc, StartPath::Fork));
                }
                (proc, Some(why)) => (proc, why),
            },
            Err(error) => (guest.spawn(spec).await?, error.to_string()),
        };
        let (proc, why) = why;
        tracing::warn!(%task, template = id, why, "the program was executed, for it could not be forked");
        self.give_up(id, None, &why);
        self.end_program(template).await;
        Ok((proc, StartPath::Plain))
    }

    fn worked(&self, id: &str) {
        let mut state = self.state();
        let is_it = |known: &&mut Known| known.template.as_ref().is_some_and(|template| template.id == id);
        if let Some(known) = state.known.values_mut().find(is_it) {
            known.failures = 0;
        }
    }

    /// Takes over what an earlier process left of its templates. They fork nothing any more, and go with the last
    /// container inside of them, or with what is returned.
    pub(crate) fn adopt(&self, kept: &[(String, OwnedFd)]) -> Vec<Arc<Template>> {
        let mut adopted = Vec::new();
        for (name, control) in kept {
            let Some(id) = name.strip_prefix(KEPT) else { continue };
            match control.try_clone().and_then(Guest::new) {
                Ok(guest) => {
                    let (id, deps) = (id.to_owned(), self.deps.clone());
                    let is_gone = AtomicBool::new(false);
                    let template = Arc::new(Template { id, deps, guest, program: None, is_gone });
                    self.note_living(&template);
                    adopted.push(template);
                }
                Err(error) => tracing::warn!(template = id, %error, "a template's container cannot be kept"),
            }
        }
        adopted
    }

    /// Ends all templates.
    pub(crate) async fn close(&self) {
        let living: Vec<_> = {
            let mut state = self.state();
            state.is_closed = true;
            state.known.clear();
            state.living.values().filter_map(Weak::upgrade).collect()
        };
        for template in living {
            template.destroy().await;
        }
    }
}

impl State {
    /// Removes those that were not chosen for the longest time, so that one more is not too many.
    fn make_room(&mut self, most: usize) -> Vec<Arc<Template>> {
        let mut evicted = Vec::new();
        loop {
            let there =
                self.known.values().filter(|known| known.template.is_some() || known.is_being_made).count();
            if there <= most {
                return evicted;
            }
            let ready = self.known.iter().filter(|(_, known)| known.template.is_some());
            let Some(plan) = ready.min_by_key(|(_, known)| known.chosen).map(|(plan, _)| plan.clone()) else {
                return evicted;
            };
            evicted.extend(self.known.remove(&plan).and_then(|known| known.template));
        }
    }
}

impl Known {
    fn failed(&mut self, now_ms: u64) {
        self.not_before_ms = now_ms + (PAUSE_MS << self.failures.min(DOUBLINGS_MAX));
        self.failures += 1;
    }
}

/// What is in a pipe, without waiting for more.
fn read_some(pipe: &OwnedFd) -> String {
    let mut bytes = [0u8; COMPLAINT_MAX];
    let read = rustix::io::ioctl_fionbio(pipe, true).and_then(|()| rustix::io::read(pipe, &mut bytes[..]));
    String::from_utf8_lossy(&bytes[..read.unwrap_or(0)]).trim_end().to_owned()
}
