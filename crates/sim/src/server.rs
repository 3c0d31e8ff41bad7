//! The shell around the engine: submits what it decides, commits it a little later and in order, and only
//! then answers and acts. What is not committed when the server dies is lost.

use crate::clients::Request;
use crate::random::Random;
use crate::script::environment;
use crate::world::{Event, World};
use evoke_core::{CallId, Error, FunctionId, InputId, SeededEntropy, TaskId};
use evoke_engine::{
    Claim, Effect, Engine, Key, MapReply, OutputsPoll, OutputsQuery, PollRequest, Step, StopHow, WorkerId,
};
use evoke_store::calls::{self, OutputRow};
use evoke_store::{StoreError, Write};

/// What one step wants stored, and what follows once it is.
#[derive(Debug)]
pub(crate) struct Batch {
    writes: Vec<Write>,
    releases: Vec<Release>,
}

/// An answer or an action that waits for its commit.
#[derive(Debug, Clone)]
pub(crate) enum Release {
    Mapped {
        client: usize,
        request: u64,
        reply: Result<MapReply, Error>,
    },
    Put {
        client: usize,
        request: u64,
        reply: Result<Vec<(i32, InputId)>, Error>,
    },
    Done {
        client: usize,
        request: u64,
    },
    /// Outputs as found in memory; what memory lacks is read from the store.
    Polled {
        client: usize,
        request: u64,
        call: CallId,
        after: Key,
        poll: Option<OutputsPoll>,
    },
    Outputs {
        client: usize,
        request: u64,
        rows: Vec<OutputRow>,
        unfinished: u32,
    },
    Claimed {
        task: TaskId,
        key: u64,
        claim: Result<Claim, Error>,
    },
    Accepted {
        task: TaskId,
        put: u64,
        known: bool,
    },
    Start {
        task: TaskId,
        function: FunctionId,
        worker: WorkerId,
        gpus: Vec<String>,
    },
    Stop {
        task: TaskId,
        how: StopHow,
    },
    AppStopped,
}

/// Outputs in one answer at most; small, so that paging is exercised.
const OUTPUTS_MAX: usize = 3;

fn failed(what: &str, error: &StoreError) -> String {
    format!("{what}: {error:?}")
}

impl World {
    /// Takes over what a step decided.
    pub(crate) fn take<T>(&mut self, step: Step<T>, release: impl FnOnce(T) -> Option<Release>) {
        let Step { reply, writes, effects, grade: _ } = step;
        let mut releases: Vec<Release> = release(reply).into_iter().collect();
        for effect in effects {
            self.trace(&format!("{effect:?}"));
            if self.log {
                eprintln!("            {effect:?}");
            }
            match effect {
                Effect::StartContainer { task, function_id, worker, gpus, .. } => {
                    releases.push(Release::Start { task, function: function_id, worker, gpus });
                }
                Effect::StopContainer { task, how, .. } => releases.push(Release::Stop { task, how }),
                Effect::WakeCall(call) => self.wake_clients(call),
                // A wake-up finds the waiting poll, or nothing.
                Effect::WakeTask(task) => {
                    if self.polls.contains_key(&task) {
                        self.after(0, Event::Repoll(task));
                    }
                }
                Effect::WakeHeartbeat(task) => {
                    self.after(0, Event::Container(task, crate::world::Act::Heartbeat))
                }
                Effect::CurrentInput { .. } | Effect::AppIdle(_) | Effect::PoolChanged(_) => {}
                // No client here goes past the calls.
                Effect::Leased { .. } => {}
            }
        }
        let writes = writes.into_iter().map(Write::from).collect();
        self.uncommitted.push_back(Batch { writes, releases });
        if !self.commit_scheduled {
            self.commit_scheduled = true;
            let delay = self.random.between(0, 5);
            self.after(delay, Event::Commit);
        }
    }

    /// Commits some of what waits, in order.
    pub(crate) fn commit(&mut self) -> Result<(), String> {
        self.commit_scheduled = false;
        if self.uncommitted.is_empty() {
            return Ok(());
        }
        let n = self.random.between(1, self.uncommitted.len() as u64) as usize;
        let batches: Vec<Batch> = self.uncommitted.drain(..n).collect();
        let writes: Vec<&[Write]> = batches.iter().map(|batch| batch.writes.as_slice()).collect();
        for result in self.db.commit(&writes) {
            result.map_err(|error| failed("committing", &error))?;
        }
        for release in batches.into_iter().flat_map(|batch| batch.releases) {
            self.release(release)?;
        }
        if !self.uncommitted.is_empty() {
            self.commit_scheduled = true;
            let delay = self.random.between(0, 5);
            self.after(delay, Event::Commit);
        }
        Ok(())
    }

    fn release(&mut self, release: Release) -> Result<(), String> {
        match release {
            Release::Start { task, function, worker, gpus } => {
                return self.start_container(task, function, worker, gpus);
            }
            Release::Stop { task, how } => {
                self.stop_container(task, how);
                return Ok(());
            }
            Release::AppStopped => {
                self.app_stopped = true;
                return Ok(());
            }
            _ => {}
        }
        let answer = match release {
            Release::Polled { client, request, call, after, poll } => {
                self.complete_poll(client, request, call, after, poll)?
            }
            Release::Claimed { task, key, claim: Ok(Claim::Inputs(mut inputs)) } => {
                for claimed in &mut inputs {
                    if claimed.input.is_none() {
                        claimed.input = calls::input_payload(self.db.connection(), &claimed.input_id)
                            .map_err(|error| failed("reading a payload", &error.into()))?;
                    }
                }
                Release::Claimed { task, key, claim: Ok(Claim::Inputs(inputs)) }
            }
            other => other,
        };
        if let Release::Mapped { client, request, .. }
        | Release::Put { client, request, .. }
        | Release::Done { client, request } = &answer
        {
            self.in_flight.remove(&(*client, *request));
            self.answered.insert((*client, *request), answer.clone());
        }
        self.send(answer);
        Ok(())
    }

    /// Sends an answer over the network.
    fn send(&mut self, answer: Release) {
        if self.faulty() && self.random.permille(self.script.lost_answers) {
            self.lose(answer);
        } else {
            let delay = self.random.between(0, 3);
            self.after(delay, Event::Answer { epoch: self.epoch, release: Box::new(answer) });
        }
    }

    fn complete_poll(
        &mut self,
        client: usize,
        request: u64,
        call: CallId,
        after: Key,
        poll: Option<OutputsPoll>,
    ) -> Result<Release, String> {
        let db = self.db.connection();
        let read = |query: &OutputsQuery| {
            calls::outputs(db, query).map_err(|error| failed("reading outputs", &error.into()))
        };
        let max = OUTPUTS_MAX as u32;
        let (rows, unfinished) = match poll {
            Some(poll) => match poll.load {
                Some(query) => (read(&query)?, poll.unfinished),
                None => {
                    let mut rows = Vec::new();
                    for output in &poll.outputs {
                        match &output.row {
                            Some(row) => rows.push(row.as_ref().clone()),
                            None => {
                                let key = evoke_store::calls::keys::split(&call).key;
                                let query =
                                    OutputsQuery { call: key, after: output.entry - 1, range: None, max: 1 };
                                rows.extend(read(&query)?);
                            }
                        }
                    }
                    (rows, poll.unfinished)
                }
            },
            None => {
                let view = calls::call_by_id(db, &call)
                    .map_err(|error| failed("reading a call", &error.into()))?
                    .ok_or_else(|| format!("{call} was acknowledged and is not stored"))?;
                (read(&OutputsQuery { call: view.row.key, after, range: None, max })?, view.unfinished)
            }
        };
        Ok(Release::Outputs { client, request, rows, unfinished })
    }

    /// A client's request reaches the server.
    pub(crate) fn serve(&mut self, client: usize, id: u64, request: &Request) {
        if let Some(answer) = self.answered.get(&(client, id)).cloned() {
            self.send(answer);
            return;
        }
        if self.in_flight.contains(&(client, id)) {
            return;
        }
        let now = self.server_now();
        let Some(engine) = &mut self.engine else { return };
        let done = Release::Done { client, request: id };
        if !matches!(request, Request::Poll { .. }) {
            self.in_flight.insert((client, id));
        }
        match request {
            Request::Map(map) => match engine.map(map.clone(), now) {
                Ok(step) => {
                    self.take(step, |reply| Some(Release::Mapped { client, request: id, reply: Ok(reply) }));
                }
                Err(error) => self.answer(Release::Mapped { client, request: id, reply: Err(error) }),
            },
            Request::Put { call, inputs } => match engine.put_inputs(*call, inputs.clone(), now) {
                Ok(step) => self.take(step, |ids| Some(Release::Put { client, request: id, reply: Ok(ids) })),
                Err(error) => self.answer(Release::Put { client, request: id, reply: Err(error) }),
            },
            Request::Finish { call, inputs } => match engine.finish_inputs(*call, *inputs, now) {
                Ok(step) => self.take(step, |()| Some(done)),
                Err(_) => self.answer(done),
            },
            Request::Cancel { call, terminate } => match engine.cancel(*call, *terminate, now) {
                Ok(step) => self.take(step, |()| Some(done)),
                Err(_) => self.answer(done),
            },
            Request::Clear { call } => {
                let step = engine.clear_outputs(*call, now);
                self.take(step, |()| Some(done));
            }
            Request::Poll { call, after } => {
                let poll = engine.poll_outputs(*call, *after, None, OUTPUTS_MAX, now);
                let (call, after) = (*call, *after);
                self.answer(Release::Polled { client, request: id, call, after, poll });
            }
        }
    }

    /// An answer that stores nothing; it still waits for everything decided before it.
    fn answer(&mut self, release: Release) {
        let step =
            Step { reply: (), writes: Vec::new(), effects: Vec::new(), grade: evoke_engine::Grade::Written };
        self.take(step, |()| Some(release));
    }

    /// A container's question for inputs reaches the server, or is asked again there.
    pub(crate) fn server_poll(&mut self, task: TaskId) -> Result<(), String> {
        let now = self.server_now();
        let Some(request) = self.polls.get(&task).copied() else { return Ok(()) };
        let Some(engine) = &mut self.engine else { return Ok(()) };
        let claimed = |claim| Some(Release::Claimed { task, key: request.key, claim });
        match engine.poll_inputs(request, now) {
            Ok(step) => {
                if let Claim::Wait { until } = &step.reply {
                    if let Some(until) = *until {
                        let at = until.0.saturating_sub(self.skew_ms);
                        self.after(at.saturating_sub(self.now.0), Event::Repoll(task));
                    }
                    self.take(step, |_| None);
                } else {
                    self.polls.remove(&task);
                    self.take(step, |claim| claimed(Ok(claim)));
                }
            }
            Err(error) => {
                self.polls.remove(&task);
                if let Some(release) = claimed(Err(error)) {
                    self.answer(release);
                }
            }
        }
        Ok(())
    }

    pub(crate) fn park_poll(&mut self, request: PollRequest) -> Result<(), String> {
        self.polls.insert(request.task, request);
        self.server_poll(request.task)
    }

    /// A container's answers reach the server.
    pub(crate) fn server_put(&mut self, task: TaskId, put: u64, outputs: Vec<evoke_engine::NewOutput>) {
        let now = self.server_now();
        let Some(engine) = &mut self.engine else { return };
        match engine.put_outputs(task, outputs, now) {
            Ok(step) => self.take(step, |_| Some(Release::Accepted { task, put, known: true })),
            Err(_) => self.answer(Release::Accepted { task, put, known: false }),
        }
    }

    /// A new server: everything it knows comes from the store.
    pub(crate) fn start_server(&mut self) -> Result<(), String> {
        if self.engine.is_some() {
            return Ok(());
        }
        let now = self.server_now();
        let entropy = Random::seed(&mut self.random);
        let mut engine = Engine::new(self.script.conf.clone(), Box::new(SeededEntropy::new(entropy)));
        let recovered =
            calls::recover(self.db.connection()).map_err(|error| failed("recovering", &error.into()))?;
        let mut steps = Vec::new();
        for worker in self.script.workers.iter().filter(|w| !self.lost_workers.contains(&w.id)) {
            steps.push(engine.put_worker(*worker, self.script.gpus.clone(), now));
        }
        steps.push(engine.put_limits(environment(), self.script.limits, now));
        if !self.app_stopped {
            for function in &self.script.functions {
                steps.push(engine.put_function(function.conf.clone(), now));
            }
        }
        steps.push(engine.recover(recovered, now));
        self.engine = Some(engine);
        for step in steps {
            self.take(step, |()| None);
        }
        let delay = self.random.between(0, 300);
        self.after(delay, Event::Adopt { epoch: self.epoch });
        Ok(())
    }

    /// The workers have said which containers live.
    pub(crate) fn adopt(&mut self, epoch: u64) -> Result<(), String> {
        let now = self.server_now();
        let alive: Vec<TaskId> =
            self.containers.values().filter(|c| !c.dead && !c.zombie).map(|c| c.task).collect();
        let Some(engine) = self.engine.as_mut().filter(|_| epoch == self.epoch) else { return Ok(()) };
        let step = engine.adopt(&alive, now);
        self.take(step, |()| None);
        Ok(())
    }
}
