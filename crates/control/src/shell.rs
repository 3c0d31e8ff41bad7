//! The async shell around the engine: takes its decisions one at a time under a lock, hands their writes to
//! the store in the same order, performs their effects, and wakes it when one of its deadlines is due.
//!
//! A reply leaves only after the writes of its own decision are stored, and a reply that only reads leaves
//! only after everything the engine knew at that moment is stored. So nobody ever sees what a crash could
//! still take back.

use crate::questions::{Outcome, Place, Questions};
use crate::wakers::Wakers;
use crate::{Control, stored};
use evoke_core::{AppId, CallId, Clock, TaskId, UnixMs};
use evoke_engine::{Claim, Effect, Engine, FunctionConf, PollRequest, Step, StopHow};
use evoke_proto::worker::StopMode;
use evoke_proto::{CallContext, Status};
use evoke_store::{Grade, IdempotencyRow, Store, Ticket, Write};
use prost::Message;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// The engine and those who wait for it.
pub(crate) struct Calls {
    state: Mutex<State>,
    store: Store,
    clock: Arc<dyn Clock>,
    /// Waiting `FunctionGetOutputs` and chunk streams.
    pub(crate) calls: Wakers<CallId>,
    /// Held `ContainerHeartbeat`s.
    pub(crate) heartbeats: Wakers<TaskId>,
    /// The deadline that the timer task sleeps for (Unix ms); `u64::MAX` for none.
    armed: AtomicU64,
    rearm: Notify,
}

/// What the lock guards.
pub(crate) struct State {
    pub(crate) engine: Engine,
    questions: Questions,
}

/// What a container's question for inputs comes to.
pub(crate) enum Asked {
    Answered(Claim, Option<Ticket>),
    Waits(Place),
}

impl Calls {
    pub(crate) fn new(engine: Engine, store: Store, clock: Arc<dyn Clock>) -> Self {
        Self {
            state: Mutex::new(State { engine, questions: Questions::default() }),
            store,
            clock,
            calls: Wakers::default(),
            heartbeats: Wakers::default(),
            armed: AtomicU64::new(u64::MAX),
            rearm: Notify::new(),
        }
    }

    /// The state itself; for others only to replace the engine in it.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads from the engine. Pair with [`Calls::settled`] before a reply built on it leaves.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&Engine) -> T) -> T {
        look(&self.lock().engine)
    }

    /// Reads from the engine where reading notes something (a call was asked about). No decision is made.
    pub(crate) fn with<T>(&self, look: impl FnOnce(&mut Engine) -> T) -> T {
        look(&mut self.lock().engine)
    }

    /// Waits until everything that the engine has decided so far is stored.
    pub(crate) async fn settled(&self) -> Result<(), Status> {
        self.store.committed(self.store.last_submitted()).await.map_err(stored)
    }

    /// Takes a decision. The ticket, for [`Calls::stored`], is of its writes; none where there are none. Effects
    /// are under way.
    pub(crate) fn decide<T>(
        &self,
        control: &Control,
        decide: impl FnOnce(&mut Engine, UnixMs) -> evoke_core::Result<Step<T>>,
        more: impl FnOnce(&T) -> Vec<Write>,
    ) -> Result<(T, Option<Ticket>), Status> {
        self.decide_in(control, |state, now| decide(&mut state.engine, now), more)
    }

    fn decide_in<T>(
        &self,
        control: &Control,
        decide: impl FnOnce(&mut State, UnixMs) -> evoke_core::Result<Step<T>>,
        more: impl FnOnce(&T) -> Vec<Write>,
    ) -> Result<(T, Option<Ticket>), Status> {
        let (reply, mut submitted, deadline) = {
            let mut state = self.lock();
            let now = self.clock.now();
            let step = decide(&mut state, now)?;
            let mut writes: Vec<Write> = step.writes.into_iter().map(Write::from).collect();
            writes.extend(more(&step.reply));
            let mut outcome = Outcome::new(writes, step.grade);
            let State { engine, questions } = &mut *state;
            outcome.follow(step.effects, engine, questions, now);
            // Inside the lock: the order of decisions is the order of writes.
            (step.reply, outcome.submit(&self.store), engine.next_deadline())
        };
        // Outside the lock, and before others are woken who would only wait for it.
        drop(submitted.lead.take());
        self.perform_all(control, std::mem::take(&mut submitted.effects));
        let ticket = submitted.own.take();
        submitted.tell();
        if deadline.is_some_and(|at| at.0 < self.armed.load(Ordering::Acquire)) {
            self.rearm.notify_one();
        }
        Ok((reply, ticket))
    }

    /// A container's question for inputs: answered at once, or put where the decision finds it that has an
    /// answer.
    pub(crate) fn ask(&self, control: &Control, poll: PollRequest) -> Result<Asked, Status> {
        let ask = |state: &mut State, now| {
            state.questions.supersede(poll.task);
            let step = state.engine.poll_inputs(poll, now)?;
            let place = match step.reply {
                Claim::Wait { until } => Some(state.questions.wait(poll, until)),
                _ => None,
            };
            Ok(step.map(|claim| (claim, place)))
        };
        let ((claim, place), ticket) = self.decide_in(control, ask, |_| Vec::new())?;
        Ok(place.map_or(Asked::Answered(claim, ticket), Asked::Waits))
    }

    /// A question that waits is not waited for any more.
    pub(crate) fn withdraw(&self, control: &Control, task: TaskId, turn: u64) -> Result<(), Status> {
        let withdraw = |state: &mut State, now| {
            state.questions.withdraw(task, turn);
            Ok(state.engine.poll_dropped(task, now))
        };
        // The ticket is not waited for: the decision only moves a wake-up.
        self.decide_in(control, withdraw, |()| Vec::new()).map(|_| ())
    }

    /// Waits until the writes of a decision are stored; for one that only read, until what it read is.
    pub(crate) async fn stored(&self, control: &Control, ticket: Option<Ticket>) -> Result<(), Status> {
        match ticket {
            Some(ticket) => ticket.await.map_err(|error| control.refused(error)),
            None => self.settled().await,
        }
    }

    /// Takes a decision and waits until it is stored.
    pub(crate) async fn apply<T>(
        &self,
        control: &Control,
        decide: impl FnOnce(&mut Engine, UnixMs) -> evoke_core::Result<Step<T>>,
    ) -> Result<T, Status> {
        let (reply, ticket) = self.decide(control, decide, |_| Vec::new())?;
        self.stored(control, ticket).await?;
        Ok(reply)
    }

    /// Takes a decision for a client's request: what it answers is stored with its effect, so that the same
    /// request sent again has no second one.
    pub(crate) async fn answer<T, R: Message>(
        &self,
        control: &Control,
        context: &CallContext,
        decide: impl FnOnce(&mut Engine, UnixMs) -> evoke_core::Result<Step<T>>,
        reply: impl FnOnce(&T) -> R,
    ) -> Result<R, Status> {
        if self.store.is_saturated() {
            // New work waits here, where it holds nothing that others need.
            self.store.room().await;
        }
        let now = self.clock.now();
        let mut answer = None;
        let (_, ticket) = self.decide(control, decide, |value| {
            let message = reply(value);
            let kept = context.idempotency_key().map(|key| {
                let (key, rpc) = (key.to_string(), context.rpc.name.to_string());
                IdempotencyRow { key, rpc, reply: message.encode_to_vec(), at: now }.into()
            });
            answer = Some(message);
            kept.into_iter().collect()
        })?;
        self.stored(control, ticket).await?;
        answer.ok_or_else(|| Status::internal("the decision gave no answer"))
    }

    /// Does what a decision wants done outside.
    pub(crate) fn perform_all(&self, control: &Control, effects: Vec<Effect>) {
        for effect in effects {
            self.perform(control, effect);
        }
    }

    /// Has everybody who waits ask again.
    pub(crate) fn wake_everybody(&self) {
        self.calls.wake_all();
        self.lock().questions.ask_all_again();
        self.heartbeats.wake_all();
        self.rearm.notify_one();
    }

    fn perform(&self, control: &Control, effect: Effect) {
        match effect {
            Effect::WakeCall(call) => self.calls.wake(call),
            // The decision itself has answered the question that waited.
            Effect::WakeTask(_) => {}
            Effect::WakeHeartbeat(task) => self.heartbeats.wake(task),
            Effect::CurrentInput { task, current } => control.worker().set_current_input(task, current),
            Effect::Leased { lease, to } => control.web.line.tell(lease, to),
            Effect::PoolChanged(function) => control.pool_changed(function),
            Effect::AppIdle(app) => control.spawn("app-stopped", move |control| async move {
                if let Err(status) = control.app_stopped(app).await {
                    tracing::error!(%app, %status, "could not record that the app has stopped");
                }
            }),
            Effect::StartContainer { task, function_id, definition_id, gpus, reason, worker: _ } => {
                control.spawn("launch", move |control| async move {
                    control.launch(task, function_id, definition_id, gpus, reason).await;
                });
            }
            Effect::StopContainer { task, how, reason } => {
                let how = match how {
                    StopHow::Interrupt { grace_ms } => StopMode::Interrupt { grace_ms },
                    StopHow::Kill => StopMode::Kill,
                };
                tracing::debug!(%task, ?how, reason, "stopping container");
                control.spawn("stop", move |control| async move { control.worker().stop(task, how).await });
            }
        }
    }

    /// Wakes the engine at its deadlines. Ends with the server.
    pub(crate) async fn run_timer(&self, control: Arc<Control>) {
        loop {
            let deadline = self.look(Engine::next_deadline);
            self.armed.store(deadline.map_or(u64::MAX, |at| at.0), Ordering::Release);
            // A deadline that came in between the look and the store has notified by now or is seen here.
            let wait = match self.look(Engine::next_deadline) {
                Some(at) => Duration::from_millis(at.since(self.clock.now())),
                None => Duration::MAX,
            };
            if !wait.is_zero() {
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = self.rearm.notified() => continue,
                }
            }
            if let Err(status) = self.apply(&control, |engine, now| Ok(engine.tick(now))).await {
                tracing::error!(%status, "the store refused the engine's timed decisions");
            }
        }
    }

    pub(crate) async fn put_function(&self, control: &Control, conf: FunctionConf) -> Result<(), Status> {
        self.apply(control, |engine, now| Ok(engine.put_function(conf, now))).await
    }

    pub(crate) async fn stop_app(&self, control: &Control, app: AppId) -> Result<(), Status> {
        self.apply(control, |engine, now| Ok(engine.stop_app(app, now))).await
    }

    pub(crate) fn app_is_idle(&self, app: AppId) -> bool {
        self.look(|engine| engine.app_is_idle(app))
    }

    pub(crate) fn containers_of(&self, app: AppId) -> usize {
        self.look(|engine| engine.task_infos(Some(app)).len())
    }
}

impl Control {
    /// Stores writes that no client waits for with an answer of its own.
    pub(crate) async fn submit(&self, writes: Vec<Write>, grade: Grade) -> Result<(), Status> {
        self.store.submit(writes, grade).await.map_err(stored)
    }

    /// Stores writes together with the answer to the request that caused them.
    pub(crate) async fn commit<R: Message>(
        &self,
        context: &CallContext,
        mut writes: Vec<Write>,
        grade: Grade,
        reply: &R,
    ) -> Result<(), Status> {
        if let Some(key) = context.idempotency_key() {
            let (key, rpc) = (key.to_string(), context.rpc.name.to_string());
            writes.push(IdempotencyRow { key, rpc, reply: reply.encode_to_vec(), at: self.now() }.into());
        }
        self.submit(writes, grade).await
    }

    /// The answer that a request got before, if the client sends it again.
    pub(crate) async fn answered_before(
        &self,
        context: &CallContext,
    ) -> Result<Option<bytes::Bytes>, Status> {
        let Some(key) = context.idempotency_key().filter(|_| context.is_repeated()) else { return Ok(None) };
        // What the first try decided is submitted; it counts once it is stored.
        self.calls.settled().await?;
        let reply = self
            .store
            .idempotent_reply(key.to_string(), context.rpc.name.to_string(), self.now())
            .await
            .map_err(stored)?;
        match (context.rpc.name, reply) {
            ("DictPop", Some(reply)) => self.dict_popped_before(reply.into()).await.map(Some),
            (_, reply) => Ok(reply.map(Into::into)),
        }
    }
}
