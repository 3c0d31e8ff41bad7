//! Containers: each polls, runs inputs, answers, and ends in one of many ways.

use crate::script::Behaviour;
use crate::server::Release;
use crate::world::{Act, Event, World};
use bytes::Bytes;
use evoke_core::{Error, FunctionId, InputId, Phase, TaskId};
use evoke_engine::{
    Claim, Claimed, ContainerEvent, ContainerExit, ExitCause, NewOutput, PollRequest, ResultStatus, StopHow,
    WorkerId,
};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug)]
struct Run {
    retry_count: u32,
    slot: u64,
    behaviour: Behaviour,
}

/// A container.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) task: TaskId,
    function: usize,
    pub(crate) worker: WorkerId,
    gpus: Vec<String>,
    slots_max: usize,
    ready: bool,
    /// Its machine was given up, but it lives on.
    pub(crate) zombie: bool,
    pub(crate) dead: bool,
    kill_switch: bool,
    /// The question that is not answered.
    poll: Option<u64>,
    next: u64,
    slots: BTreeMap<u64, BTreeSet<InputId>>,
    runs: BTreeMap<InputId, Run>,
    /// Attempts that it has answered.
    answered: BTreeSet<(InputId, u32)>,
    /// Answers that the server has not accepted, each with the slot it will free.
    puts: BTreeMap<u64, (u64, NewOutput)>,
}

impl World {
    pub(crate) fn start_container(
        &mut self,
        task: TaskId,
        function: FunctionId,
        worker: WorkerId,
        gpus: Vec<String>,
    ) -> Result<(), String> {
        let Some(n) = self.script.functions.iter().position(|f| f.conf.id == function) else { return Ok(()) };
        if self.lost_workers.contains(&worker) || self.containers.contains_key(&task) {
            return Ok(());
        }
        // One that lives on where its machine was given up is stopped there before the machine comes back.
        let here = self.containers.values().filter(|c| c.worker == worker && !c.dead && !c.zombie);
        for other in here {
            if let Some(gpu) = other.gpus.iter().find(|gpu| gpus.contains(gpu)) {
                return Err(format!("{task} and {} have {gpu} of {worker:?}", other.task));
            }
        }
        self.summary.containers += 1;
        let container = Container {
            task,
            function: n,
            worker,
            gpus,
            slots_max: self.script.functions[n].conf.max_concurrent_inputs as usize,
            ready: false,
            zombie: false,
            dead: false,
            kill_switch: false,
            poll: None,
            next: 0,
            slots: BTreeMap::new(),
            runs: BTreeMap::new(),
            answered: BTreeSet::new(),
            puts: BTreeMap::new(),
        };
        self.containers.insert(task, container);
        let delay = self.random.between(1, 50);
        self.after(delay, Event::Container(task, Act::Executed));
        Ok(())
    }

    pub(crate) fn stop_container(&mut self, task: TaskId, how: StopHow) {
        let delay = match how {
            StopHow::Kill => self.random.between(0, 20),
            // One in five ignores the interrupt until it is killed.
            StopHow::Interrupt { grace_ms } if self.random.permille(200) => grace_ms,
            StopHow::Interrupt { .. } => self.random.between(0, 300),
        };
        if self.containers.get(&task).is_none_or(|c| c.dead) {
            // The worker has nothing of it: it says so.
            self.report(task, ContainerEvent::Exited(exit(None, None, false)));
            return;
        }
        let signal = matches!(how, StopHow::Kill).then_some(9);
        self.after(delay, Event::Container(task, Act::Exit { code: Some(0), signal, oom: false }));
    }

    /// The worker reports to the server, if there is one; a new server asks for itself.
    fn report(&mut self, task: TaskId, event: ContainerEvent) {
        let now = self.server_now();
        if let Some(engine) = &mut self.engine {
            let step = engine.container_event(task, event, now);
            self.take(step, |()| None);
        }
    }

    pub(crate) fn container_act(&mut self, task: TaskId, act: Act) -> Result<(), String> {
        let Some(container) = self.containers.get_mut(&task).filter(|c| !c.dead) else { return Ok(()) };
        let function = container.function;
        match act {
            Act::Executed => {
                let at = self.server_now();
                self.report(task, ContainerEvent::Phase(Phase::Exec, at));
                let script = &self.script.functions[function];
                let fails = script.broken || (self.faulty() && self.random.permille(script.failing_starts));
                let delay = self.random.between(1, self.script.functions[function].start_ms);
                let act = if fails { Act::FailsToStart } else { Act::Ready };
                self.after(delay, Event::Container(task, act));
                Ok(())
            }
            Act::Ready => {
                container.ready = true;
                self.container_poll(task)
            }
            Act::FailsToStart => self.fail_to_start(task),
            Act::Poll => self.container_poll(task),
            Act::Done(input, retry_count) => self.finish_run(task, input, retry_count),
            Act::Put(put) => {
                if let Some((_, output)) = container.puts.get(&put).cloned() {
                    if self.engine.is_some() {
                        self.server_put(task, put, vec![output]);
                    } else {
                        let delay = self.random.between(50, 700);
                        self.after(delay, Event::Container(task, Act::Put(put)));
                    }
                }
                Ok(())
            }
            Act::Heartbeat => self.heartbeat(task),
            Act::Exit { code, signal, oom } => {
                container.dead = true;
                if !container.zombie {
                    self.report(task, ContainerEvent::Exited(exit(code, signal, oom)));
                }
                Ok(())
            }
        }
    }

    fn fail_to_start(&mut self, task: TaskId) -> Result<(), String> {
        let now = self.server_now();
        let reports = self.random.permille(500);
        if let (Some(engine), true) = (&mut self.engine, reports) {
            let step =
                engine.task_result(task, ResultStatus::Failure, Bytes::from_static(b"import error"), now);
            self.take(step, |()| None);
        }
        let delay = self.random.between(0, 50);
        let act = Act::Exit { code: Some(if reports { 0 } else { 1 }), signal: None, oom: false };
        self.after(delay, Event::Container(task, act));
        Ok(())
    }

    /// Asks for inputs if there is a free slot, or repeats the question that is not answered.
    fn container_poll(&mut self, task: TaskId) -> Result<(), String> {
        let up = self.engine.is_some();
        let delay = self.random.between(50, 700);
        let Some(container) = self.containers.get_mut(&task) else { return Ok(()) };
        if container.kill_switch || (container.poll.is_none() && container.slots.len() >= container.slots_max)
        {
            return Ok(());
        }
        let key = match container.poll {
            Some(key) => key,
            None => {
                container.next += 1;
                let key = container.next;
                container.poll = Some(key);
                key
            }
        };
        if !up {
            self.after(delay, Event::Container(task, Act::Poll));
            return Ok(());
        }
        self.park_poll(PollRequest { task, key, max: u32::MAX })
    }

    fn claimed(&mut self, task: TaskId, key: u64, claim: Result<Claim, Error>) -> Result<(), String> {
        let Some(container) = self.containers.get_mut(&task).filter(|c| !c.dead) else { return Ok(()) };
        if container.poll != Some(key) {
            return Ok(());
        }
        container.poll = None;
        match claim {
            Ok(Claim::Inputs(inputs)) => self.run_inputs(task, inputs),
            Ok(Claim::KillSwitch) => {
                container.kill_switch = true;
                self.leave_if_done(task);
                Ok(())
            }
            Ok(Claim::Wait { .. }) => Err("a wait was answered".into()),
            Err(_) => {
                // Fenced, or its machine was given up: the client ends.
                self.after(0, Event::Container(task, Act::Exit { code: Some(1), signal: None, oom: false }));
                Ok(())
            }
        }
    }

    fn run_inputs(&mut self, task: TaskId, inputs: Vec<Claimed>) -> Result<(), String> {
        let Some(container) = self.containers.get_mut(&task) else { return Ok(()) };
        let conf = &self.script.functions[container.function].conf;
        if inputs.len() > conf.batch_max_size.max(1) as usize {
            return Err(format!("{task} got {} inputs at once", inputs.len()));
        }
        container.next += 1;
        let slot = container.next;
        let mut new = BTreeSet::new();
        let mut dones = Vec::new();
        for input in inputs {
            let (id, retry_count) = (input.input_id, input.retry_count);
            if container.runs.get(&id).is_some_and(|run| run.retry_count == retry_count) {
                continue;
            }
            if container.answered.contains(&(id, retry_count)) {
                return Err(format!("{task} got {id} again after it had answered attempt {retry_count}"));
            }
            let payload = input.input.ok_or_else(|| format!("{id} has no payload"))?;
            let behaviour = Behaviour::from_byte(payload.first().copied().unwrap_or_default());
            self.behaviours.insert(id, behaviour);
            new.insert(id);
            container.runs.insert(id, Run { retry_count, slot, behaviour });
            dones.push((id, retry_count));
        }
        if !new.is_empty() {
            container.slots.insert(slot, new);
        }
        if container.slots.len() > container.slots_max {
            return Err(format!(
                "{task} works on {} inputs of {}",
                container.slots.len(),
                container.slots_max
            ));
        }
        let run_ms = self.script.functions[container.function].run_ms;
        if self.script.functions[container.function].conf.single_use {
            container.kill_switch = true;
        }
        for (id, retry_count) in dones {
            self.summary.runs += 1;
            self.runs.entry(id).or_default().push((task, retry_count));
            let delay = self.random.between(1, run_ms);
            self.after(delay, Event::Container(task, Act::Done(id, retry_count)));
        }
        self.leave_if_done(task);
        self.container_poll(task)
    }

    fn finish_run(&mut self, task: TaskId, id: InputId, retry_count: u32) -> Result<(), String> {
        let sudden = self.faulty() && self.random.permille(self.script.sudden_deaths);
        let first = self.runs.get(&id).is_none_or(|runs| runs.len() <= 1);
        let Some(container) = self.containers.get_mut(&task) else { return Ok(()) };
        let Some(run) = container.runs.get(&id).filter(|run| run.retry_count == retry_count) else {
            return Ok(());
        };
        let dies = |code, signal, oom| Event::Container(task, Act::Exit { code, signal, oom });
        match run.behaviour {
            _ if sudden => self.after(0, dies(None, Some(11), false)),
            Behaviour::Hangs => {}
            Behaviour::KillsContainer => self.after(0, dies(Some(1), None, false)),
            Behaviour::KillsContainerOnce if first => self.after(0, dies(Some(1), None, false)),
            Behaviour::OutOfMemory => self.after(0, dies(None, Some(9), true)),
            Behaviour::Fails => self.answer_input(task, id, ResultStatus::Failure),
            Behaviour::FailsOnce if retry_count == 0 => self.answer_input(task, id, ResultStatus::Failure),
            _ => self.answer_input(task, id, ResultStatus::Success),
        }
        Ok(())
    }

    /// The container answers an input; the slot is free once the server has accepted it.
    fn answer_input(&mut self, task: TaskId, id: InputId, status: ResultStatus) {
        let Some(container) = self.containers.get_mut(&task) else { return };
        let Some(run) = container.runs.get(&id) else { return };
        if !container.answered.insert((id, run.retry_count)) {
            return;
        }
        container.next += 1;
        let put = container.next;
        let output = NewOutput {
            input_id: id,
            status,
            result: Bytes::from(format!("{task} {}", run.retry_count)),
            retry_count: run.retry_count,
            started: None,
        };
        container.puts.insert(put, (run.slot, output));
        self.after(0, Event::Container(task, Act::Put(put)));
    }

    fn accepted(&mut self, task: TaskId, put: u64, known: bool) -> Result<(), String> {
        let Some(container) = self.containers.get_mut(&task).filter(|c| !c.dead) else { return Ok(()) };
        let Some((slot, output)) = container.puts.remove(&put) else { return Ok(()) };
        if !known {
            self.after(0, Event::Container(task, Act::Exit { code: Some(1), signal: None, oom: false }));
            return Ok(());
        }
        let id = output.input_id;
        // A retry may have arrived in another slot before this answer was accepted; it stays.
        if container.runs.get(&id).is_some_and(|run| run.retry_count == output.retry_count) {
            container.runs.remove(&id);
        }
        if let Some(inputs) = container.slots.get_mut(&slot) {
            inputs.remove(&id);
            if inputs.is_empty() {
                container.slots.remove(&slot);
            }
        }
        self.leave_if_done(task);
        match self.containers.get(&task) {
            Some(container) if container.poll.is_none() => self.container_poll(task),
            _ => Ok(()),
        }
    }

    fn leave_if_done(&mut self, task: TaskId) {
        let Some(container) = self.containers.get(&task) else { return };
        if container.kill_switch && container.slots.is_empty() {
            let delay = self.random.between(0, 200);
            self.after(delay, Event::Container(task, Act::Exit { code: Some(0), signal: None, oom: false }));
        }
    }

    fn heartbeat(&mut self, task: TaskId) -> Result<(), String> {
        let cancelled = match &self.engine {
            Some(engine) => engine.cancelled_inputs(task),
            None => Vec::new(),
        };
        for id in &cancelled {
            if self.random.permille(600) {
                self.answer_input(task, *id, ResultStatus::Terminated);
            }
        }
        if !cancelled.is_empty() || self.engine.is_none() {
            self.after(1_000, Event::Container(task, Act::Heartbeat));
        }
        Ok(())
    }

    /// An answer arrives.
    pub(crate) fn deliver(&mut self, release: Release) -> Result<(), String> {
        match release {
            Release::Claimed { task, key, claim } => self.claimed(task, key, claim),
            Release::Accepted { task, put, known } => self.accepted(task, put, known),
            other => self.client_answer(other),
        }
    }

    /// An answer is lost with its connection; clients repeat by themselves, containers at once.
    pub(crate) fn lose(&mut self, release: Release) {
        let delay = self.random.between(50, 700);
        match release {
            Release::Claimed { task, .. } => self.after(delay, Event::Container(task, Act::Poll)),
            Release::Accepted { task, put, .. } => self.after(delay, Event::Container(task, Act::Put(put))),
            _ => {}
        }
    }

    /// All connections of containers broke: they ask again.
    pub(crate) fn reconnect_containers(&mut self) {
        let mut again = Vec::new();
        for container in self.containers.values().filter(|c| !c.dead) {
            if container.poll.is_some() {
                again.push((container.task, Act::Poll));
            }
            again.extend(container.puts.keys().map(|put| (container.task, Act::Put(*put))));
            again.push((container.task, Act::Heartbeat));
        }
        for (task, act) in again {
            let delay = self.random.between(50, 700);
            self.after(delay, Event::Container(task, act));
        }
    }

    /// Containers whose poll waits at the server.
    pub(crate) fn parked(&self) -> Vec<TaskId> {
        self.polls.keys().copied().collect()
    }

    pub(crate) fn resend_poll(&mut self, task: TaskId) {
        let delay = self.random.between(50, 700);
        self.after(delay, Event::Container(task, Act::Poll));
    }
}

fn exit(code: Option<i32>, signal: Option<i32>, oom: bool) -> ContainerExit {
    ContainerExit { oom, code, signal, cause: ExitCause::Program, text: "the program ended".into() }
}
