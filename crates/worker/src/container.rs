//! Drives one container: carries the actions of its [`Lifecycle`] out and feeds it with what happens.

use crate::buckets;
use crate::fd_keeper::Part;
use crate::lifecycle::{Action, Event, Exit, Known, Lifecycle, State};
use crate::live::{Live, Parts};
use crate::prepare;
use crate::record::{self, Record};
use crate::registry::Entry;
use crate::templates::{Plan, Template};
use crate::usage;
use crate::worker::Shared;
use evoke_core::{Error, ErrorCode, Phase, StartPath};
use evoke_proto::worker::{Assignment, CommittedLayer, Usage, WorkerEvent};
use evoke_runtime::{ContainerSpec, Ended, Guest, GuestEvent, LayerStats, Nest, ProcId, Started};
use futures::future::{BoxFuture, join_all};
use rustix::process::Signal;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// How long the guest may take to deliver a signal.
const SIGNAL_WAIT: Duration = Duration::from_secs(2);
/// Attempts at removing a container, and the pause after the first; it doubles.
const REMOVE_TRIES: u32 = 4;
const REMOVE_PAUSE: Duration = Duration::from_millis(100);

/// One container and everything it holds.
pub(crate) struct Container {
    shared: Arc<Shared>,
    entry: Arc<Entry>,
    life: Lifecycle,
    record: Record,
    mailbox: mpsc::Receiver<Event>,
    /// What to run, until it runs; its environment holds secrets.
    assignment: Option<Assignment>,
    live: Option<Live>,
    /// Descriptors on their way to the store.
    duplicates: Vec<(Part, OwnedFd)>,
    /// The action under way; there is never more than one.
    job: Option<BoxFuture<'static, Outcome>>,
    /// Variables that its program needs for its devices.
    device_env: Vec<(String, String)>,
    usage: Usage,
    oom_kills: u64,
    committed: Option<LayerStats>,
    /// Whether nothing is left of its output.
    shipped: bool,
    /// The template in whose namespaces it is.
    template: Option<Arc<Template>>,
    /// What a template for its like is made of, until it is known whether one is wanted.
    plan: Option<Plan>,
    /// Which way its program came to be, until that is told.
    path: Option<StartPath>,
}

/// How an action ended.
enum Outcome {
    Failed(Error),
    Started(Started, Option<Arc<Template>>),
    Recorded,
    /// Its number, and which way it came to be.
    Spawned(ProcId, StartPath),
    Drained,
    Committed(LayerStats),
    Removed(Ended),
    Finished(bool),
}

impl Outcome {
    fn of<T>(result: Result<T, Error>, success: impl FnOnce(T) -> Outcome) -> Outcome {
        result.map_or_else(Outcome::Failed, success)
    }
}

impl Container {
    /// A container to be started, or one that lives on with `live`.
    pub(crate) fn new(
        shared: Arc<Shared>,
        entry: Arc<Entry>,
        life: Lifecycle,
        record: Record,
        mailbox: mpsc::Receiver<Event>,
        assignment: Option<Assignment>,
        live: Option<Live>,
    ) -> Self {
        Self {
            shared,
            entry,
            life,
            record,
            mailbox,
            assignment,
            live,
            duplicates: Vec::new(),
            job: None,
            device_env: Vec::new(),
            usage: Usage::default(),
            oom_kills: 0,
            committed: None,
            shipped: true,
            template: None,
            plan: None,
            path: None,
        }
    }

    /// It lives in the namespaces of this template.
    pub(crate) fn forked_by(&mut self, template: Option<Arc<Template>>) {
        self.template = template;
    }

    /// Lives the container's life, beginning with the actions `first`.
    pub(crate) async fn run(mut self, first: Vec<Action>) {
        self.perform(first).await;
        while self.life.state() != State::Gone {
            let event = self.next_event().await;
            match self.life.step(event, self.shared.deps.clock.now()) {
                Ok(actions) => self.perform(actions).await,
                Err(illegal) => tracing::error!(task = %self.entry.task, %illegal, "ignored"),
            }
        }
    }

    async fn next_event(&mut self) -> Event {
        let now = self.shared.deps.clock.now();
        let deadline = self.life.deadline().map(|at| Instant::now() + (at - now));
        let guest = self.live.as_ref().filter(|_| self.life.state() == State::Running);
        let guest = guest.map(|live| live.guest.clone());
        tokio::select! {
            outcome = outcome(&mut self.job), if self.job.is_some() => {
                self.job = None;
                self.absorb(outcome)
            }
            // The sender lives in our own entry: this never ends.
            Some(event) = self.mailbox.recv() => event,
            event = program_end(guest.as_ref(), self.record.proc), if guest.is_some() => event,
            () = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                Event::DeadlinePassed
            }
        }
    }

    /// Keeps what an action gave.
    fn absorb(&mut self, outcome: Outcome) -> Event {
        match outcome {
            Outcome::Failed(error) => return Event::Failed(error),
            Outcome::Started(mut started, template) => {
                self.record.template = template.as_ref().map(|template| template.id().to_owned());
                self.template = template;
                self.device_env = std::mem::take(&mut started.env);
                if let Err(error) = self.serve_buckets(&mut started) {
                    return Event::Failed(error);
                }
                self.record.started_at = Some(self.shared.deps.clock.now());
                self.record.address = started.address;
                self.entry.set_address(started.address);
                if let Err(error) = self.open(started) {
                    return Event::Failed(Error::internal(format!("the container's descriptors: {error}")));
                }
                return Event::Started;
            }
            Outcome::Recorded => return Event::Recorded,
            Outcome::Spawned(proc, path) => {
                self.record.proc = Some(proc);
                self.path = Some(path);
            }
            Outcome::Drained => return Event::Drained,
            Outcome::Committed(stats) => {
                self.committed = Some(stats);
                return Event::Committed;
            }
            Outcome::Removed(ended) => {
                self.usage = usage::convert(ended.usage);
                self.oom_kills = ended.usage.oom_kills;
                return Event::Removed;
            }
            Outcome::Finished(shipped) => {
                self.shipped = shipped;
                return Event::Finished;
            }
        }
        Event::Spawned
    }

    /// Starts what serves its buckets, before any program of its can look there.
    fn serve_buckets(&self, started: &mut Started) -> Result<(), Error> {
        let Some(assignment) = &self.assignment else { return Ok(()) };
        let config = &self.shared.config;
        let task_folder = config.task_folder(assignment.task_id);
        let served = std::mem::take(&mut started.served);
        for (index, (bucket, served)) in assignment.buckets.iter().zip(served).enumerate() {
            let folder = task_folder.join(format!("bucket-{index}"));
            buckets::serve(config, bucket, &folder, started.root, served)?;
        }
        Ok(())
    }

    fn open(&mut self, started: Started) -> std::io::Result<()> {
        let containers = *self.shared.registry.count().borrow();
        let (parts, stdio) = Parts::from_started(started, containers)?;
        self.duplicates = parts.duplicates()?;
        let mut live = Live::open(&self.shared, &self.entry, &self.record, parts, (0, 0))?;
        live.stdio = Some(stdio);
        self.live = Some(live);
        Ok(())
    }

    async fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Start => self.job = Some(self.start()),
                Action::RecordDescriptors => self.job = Some(self.record_descriptors()),
                Action::Spawn => self.job = Some(self.spawn()),
                Action::Interrupt if self.record.ends_by_sigterm => self.signal(Signal::TERM).await,
                Action::Interrupt => self.signal(Signal::INT).await,
                Action::Kill => self.signal(Signal::KILL).await,
                Action::SaveRecord => self.save_record(),
                Action::Drain => {
                    let entry = self.entry.clone();
                    self.job = Some(Box::pin(async move {
                        entry.drain().await;
                        Outcome::Drained
                    }));
                }
                Action::Commit => self.job = Some(self.commit()),
                Action::Remove => self.job = Some(self.remove()),
                Action::Finish => self.job = Some(self.finish()),
                Action::Report(phase) => {
                    self.report_phase(phase).await;
                    self.note_path(phase).await;
                }
                Action::ReportExit => self.shared.deps.control.report(self.last_event()).await,
                Action::Forget => self.forget().await,
            }
        }
    }

    fn start(&mut self) -> BoxFuture<'static, Outcome> {
        let Some(assignment) = self.assignment.clone() else { return nothing_to_run() };
        let shared = self.shared.clone();
        self.plan = Plan::of(&assignment);
        let template = self.plan.as_ref().and_then(|plan| shared.templates.choose(plan));
        Box::pin(async move {
            let folder = shared.config.task_folder(assignment.task_id);
            if let Err(error) = prepare::make_folder(&folder, &assignment) {
                return Outcome::Failed(disk_error("making the container's folder", &error));
            }
            if let Err(error) = buckets::check(&shared.config, &assignment.buckets).await {
                return Outcome::Failed(error);
            }
            let mut spec = prepare::container_spec(&shared.config, &assignment);
            if let Some(template) = template {
                let inside = Nest::Inside(template.id().to_owned());
                match shared.deps.runtime.start(ContainerSpec { nest: inside, ..spec.clone() }).await {
                    Ok(started) => return Outcome::Started(started, Some(template)),
                    Err(error) => {
                        let task = assignment.task_id;
                        tracing::warn!(%task, template = template.id(), %error, "started without its template");
                    }
                }
            }
            spec.nest = Nest::Machine;
            let started = shared.deps.runtime.start(spec).await;
            Outcome::of(started.map_err(Error::from), |started| Outcome::Started(started, None))
        })
    }

    fn record_descriptors(&mut self) -> BoxFuture<'static, Outcome> {
        let duplicates = std::mem::take(&mut self.duplicates);
        let (shared, record) = (self.shared.clone(), self.record.clone());
        Box::pin(async move {
            if let Err(error) = record.save(&shared.config.task_folder(record.task)) {
                return Outcome::Failed(disk_error("writing down the container", &error));
            }
            let keeper = &shared.deps.fd_keeper;
            let puts = duplicates.iter().map(|(part, fd)| {
                let name = part.name(record.task);
                async move { keeper.put(&name, fd.as_fd()).await }
            });
            let failed = join_all(puts).await.into_iter().find_map(Result::err);
            failed.map_or(Outcome::Recorded, Outcome::Failed)
        })
    }

    fn spawn(&mut self) -> BoxFuture<'static, Outcome> {
        let assignment = self.assignment.take();
        let live =
            self.live.as_mut().and_then(|live| Some((live.guest.clone(), live.init(), live.stdio.take()?)));
        let (Some(assignment), Some((guest, init, (stdout, stderr)))) = (assignment, live) else {
            return nothing_to_run();
        };
        let (shared, template) = (self.shared.clone(), self.template.clone());
        let devices = std::mem::take(&mut self.device_env);
        Box::pin(async move {
            let program = assignment.argv.first().cloned().unwrap_or_default();
            let spec = prepare::process_spec(&assignment, devices, (stdout, stderr));
            let spawned = match template {
                Some(template) => {
                    shared.templates.fork(&template, assignment.task_id, &guest, init, spec).await
                }
                None => guest.spawn(spec).await.map(|proc| (proc, StartPath::Plain)),
            };
            let spawned = spawned.map_err(|error| {
                Error::precondition(format!("the container could not execute '{program}': {error}"))
            });
            Outcome::of(spawned, |(proc, path)| Outcome::Spawned(proc, path))
        })
    }

    async fn signal(&mut self, signal: Signal) {
        let (Some(live), Some(proc)) = (&mut self.live, self.record.proc) else { return };
        let sent = tokio::time::timeout(SIGNAL_WAIT, live.guest.signal(proc, signal.as_raw(), false)).await;
        // One that has just ended cannot be reached; one that lives on meets its next deadline.
        if !matches!(sent, Ok(Ok(()))) {
            tracing::debug!(task = %self.entry.task, ?signal, "the signal was not delivered");
        }
    }

    fn save_record(&mut self) {
        self.record.known = self.life.known();
        if let Err(error) = self.record.save(&self.shared.config.task_folder(self.entry.task)) {
            tracing::warn!(task = %self.entry.task, %error, "the container's state could not be written down");
        }
    }

    fn commit(&mut self) -> BoxFuture<'static, Outcome> {
        let init = self.live.as_mut().map(Live::end_init);
        let (shared, record) = (self.shared.clone(), self.record.clone());
        Box::pin(async move {
            let Some(layer) = record.commit_on_exit else {
                return Outcome::Failed(Error::internal("no layer to commit to"));
            };
            if let Some(init) = init {
                if let Err(error) = init.await {
                    let text = format!("the container's processes did not end: {error}");
                    return Outcome::Failed(Error::internal(text));
                }
            }
            let committed = shared.deps.runtime.commit_layer(&record.task.to_string(), &layer).await;
            Outcome::of(committed.map_err(Error::from), Outcome::Committed)
        })
    }

    fn remove(&mut self) -> BoxFuture<'static, Outcome> {
        if let Some(live) = &mut self.live {
            live.close();
        }
        self.assignment = None;
        let writes = self.record.volumes.iter().any(|volume| !volume.read_only);
        let init = self.live.as_mut().filter(|_| writes).map(Live::end_init);
        let volumes = self.entry.take_volumes().filter(|_| init.is_some());
        let (shared, task) = (self.shared.clone(), self.entry.task);
        Box::pin(async move {
            if let Some(init) = init {
                // If it does not end, what it wrote so far is committed all the same.
                let _ = init.await;
            }
            if let Some(volumes) = volumes {
                volumes.commit_all().await;
            }
            Outcome::of(remove(&shared, &task.to_string()).await, Outcome::Removed)
        })
    }

    fn finish(&mut self) -> BoxFuture<'static, Outcome> {
        match &self.live {
            Some(live) => {
                let rest = live.finish();
                Box::pin(async move { Outcome::Finished(rest.await) })
            }
            None => Box::pin(std::future::ready(Outcome::Finished(true))),
        }
    }

    /// Tells which way the program came to be. Once the first of its kind is ready, a template is made for the next.
    async fn note_path(&mut self, phase: Phase) {
        match phase {
            Phase::Exec => {
                if let Some(path) = self.path.take().filter(|path| *path != StartPath::Plain) {
                    let task = self.entry.task;
                    self.shared.deps.control.report(WorkerEvent::Path { task, path }).await;
                }
            }
            Phase::Ready => {
                if let Some(plan) = self.plan.take() {
                    self.shared.templates.want(plan);
                }
            }
            _ => {}
        }
    }

    async fn report_phase(&mut self, phase: Phase) {
        let at = self.shared.deps.clock.now();
        self.shared.deps.control.report(WorkerEvent::Phase { task: self.entry.task, phase, at }).await;
    }

    /// What is told about the end.
    fn last_event(&self) -> WorkerEvent {
        let (task, at) = (self.entry.task, self.shared.deps.clock.now());
        if let Some(error) = self.start_error() {
            return WorkerEvent::StartFailed { task, error, at };
        }
        let mut exit = exit_for_control(&self.life.known());
        exit.oom = self.oom_kills > 0 && exit.code != Some(0) && !self.life.was_killed();
        let wall_ms = self.record.started_at.map_or(0, |started| at.since(started));
        let known = if self.usage.cpu_ns > 0 { self.usage } else { self.entry.usage() };
        let asked = self.record.commit_on_exit.is_some();
        let committed = asked.then(|| match (&self.committed, &self.life.failure) {
            (Some(stats), _) => Ok(CommittedLayer { bytes: stats.bytes, files: stats.entries }),
            (None, Some(error)) => Err(error.clone()),
            (None, None) => Err(Error::precondition("the program did not end with success")),
        });
        WorkerEvent::Exited { task, exit, usage: Usage { wall_ms, ..known }, committed, at }
    }

    /// Why it counts as not started, where it does.
    fn start_error(&self) -> Option<Error> {
        if self.life.timed_out() {
            let seconds = self.record.startup_timeout_ms.div_ceil(1000);
            let text = format!("the container was not ready within its startup timeout of {seconds} s");
            return Some(
                Error::new(ErrorCode::DeadlineExceeded, text).with_hint(
                    "Give it more time with startup_timeout=, or move slow work out of its start.",
                ),
            );
        }
        self.life.failure.clone().filter(|_| self.life.exit.is_none())
    }

    async fn forget(&mut self) {
        self.live = None;
        self.template = None;
        self.shared.forget(self.entry.task, self.shipped).await;
    }
}

/// How the program ended, without what only the runtime knows.
pub(crate) fn exit_for_control(known: &Known) -> evoke_proto::worker::Exit {
    let (code, signal) = match known.exit {
        Some(Exit::Code(code)) => (Some(code), None),
        Some(Exit::Signal(signal)) => (None, Some(signal)),
        None => (None, None),
    };
    evoke_proto::worker::Exit { code, signal, oom: false, killed_by_us: known.ended_by_us.is_some() }
}

/// Has the runtime take a container down, trying again where that fails.
pub(crate) async fn remove(shared: &Shared, id: &str) -> Result<Ended, Error> {
    let mut pause = REMOVE_PAUSE;
    for attempt in 1.. {
        match shared.deps.runtime.destroy(id).await {
            Ok(ended) => {
                if let Ok(task) = id.parse() {
                    buckets::end(&shared.config.task_folder(task)).await;
                }
                return Ok(ended);
            }
            Err(error) if attempt >= REMOVE_TRIES => {
                tracing::error!(id, %error, "a container could not be removed; the next start tries again");
                return Err(error.into());
            }
            Err(error) => tracing::warn!(id, %error, "a container could not be removed yet"),
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
    Err(Error::internal("no attempt was made"))
}

impl Shared {
    /// Gives back what is kept of a container that is gone. Where output is `shipped` no more, what a later
    /// process needs for shipping it stays.
    pub(crate) async fn forget(&self, task: evoke_core::TaskId, shipped: bool) {
        let keeper = &self.deps.fd_keeper;
        let names = Part::ALL.map(|part| part.name(task));
        for result in join_all(names.iter().map(|name| keeper.remove(name))).await {
            if let Err(error) = result {
                tracing::warn!(%task, %error, "a descriptor of a finished container stays in the store");
            }
        }
        if shipped {
            if let Err(error) = record::remove_folder(&self.config.task_folder(task)) {
                tracing::warn!(%task, %error, "the folder of a finished container could not be removed");
            }
        }
        self.registry.remove(task);
    }
}

fn nothing_to_run() -> BoxFuture<'static, Outcome> {
    Box::pin(std::future::ready(Outcome::Failed(Error::internal("there is nothing left to run"))))
}

pub(crate) fn disk_error(what: &str, error: &std::io::Error) -> Error {
    let text = format!("{what} failed: {error}");
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            Error::new(ErrorCode::ResourceExhausted, text).with_hint("Free some space, then try again.")
        }
        _ => Error::internal(text),
    }
}

/// The outcome of the action under way.
async fn outcome(job: &mut Option<BoxFuture<'static, Outcome>>) -> Outcome {
    match job {
        Some(job) => job.await,
        None => std::future::pending().await,
    }
}

/// How the program `proc` ends. A guest that goes away is seen by the end of its socket, which nothing else
/// in the container holds.
async fn program_end(guest: Option<&Guest>, proc: Option<ProcId>) -> Event {
    let Some(guest) = guest else { return std::future::pending().await };
    loop {
        match guest.next_event().await {
            Some(GuestEvent::Exited { proc: ended, exit }) if Some(ended) == proc => {
                return exit_event(exit);
            }
            Some(_) => {}
            None => return Event::Lost,
        }
    }
}

/// The guest's word for how a program ended, in ours.
pub(crate) fn exit_event(exit: evoke_runtime::Exit) -> Event {
    match (exit.code, exit.signal) {
        (Some(code), _) => Event::Exited(Exit::Code(code)),
        (None, Some(signal)) => Event::Exited(Exit::Signal(signal)),
        (None, None) => Event::Lost,
    }
}
