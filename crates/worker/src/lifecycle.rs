//! The life of one container as a pure state machine: from what has happened to what is to be done next.
//! It knows no runtime and no clock; `container.rs` carries its actions out.
//!
//! ```text
//! Preparing -> Recording -> Spawning -> Running -> Draining -> [Committing] -> Removing -> Finishing -> Gone
//!     |            |           |                                                  ^
//!     +------------+-----------+---- failed, or told to stop -----------------------+
//! ```

use evoke_core::{Error, Phase, UnixMs};
use serde::{Deserialize, Serialize};

/// How long a process may outlive SIGKILL before its container is removed around it.
const KILL_WAIT_MS: u64 = 5_000;

/// Where a container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// The runtime makes namespaces, root and guest.
    Preparing,
    /// The descriptors go to the store that outlives this process.
    Recording,
    /// The guest executes the program.
    Spawning,
    /// The program runs.
    Running,
    /// The program ended; its output is taken over.
    Draining,
    /// The container's changes become a layer.
    Committing,
    /// The runtime takes the container down.
    Removing,
    /// What was written last is taken over.
    Finishing,
    /// Nothing is left.
    Gone,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// The guest runs and waits.
    Started,
    /// The descriptors are safe.
    Recorded,
    /// The program was executed.
    Spawned,
    /// The action under way failed; for the user, with the reason.
    Failed(Error),
    /// The program said hello.
    Hello,
    /// The program asked for its first input.
    Ready,
    /// Someone wants the container stopped.
    Stop(Stop),
    /// A moment from [`Lifecycle::deadline`] has come.
    DeadlinePassed,
    /// The program ended.
    Exited(Exit),
    /// The guest is gone, and how the program ended is not known.
    Lost,
    /// The output up to the program's end is taken over.
    Drained,
    /// The layer exists.
    Committed,
    /// The runtime gave everything back.
    Removed,
    /// Nothing is left of the output.
    Finished,
}

/// How a container is to be stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Stop {
    /// SIGINT, then SIGKILL after the grace.
    Interrupt { grace_ms: u64 },
    /// SIGKILL.
    Kill,
}

/// How the program ended: by itself or by a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Exit {
    /// With this exit code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// Something to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Have the runtime start the container.
    Start,
    /// Put the descriptors where they outlive this process.
    RecordDescriptors,
    /// Have the guest execute the program.
    Spawn,
    /// Send the program SIGINT.
    Interrupt,
    /// Send the program SIGKILL.
    Kill,
    /// Write down what a later process must know.
    SaveRecord,
    /// Take the output over up to here.
    Drain,
    /// Make the container's changes a layer.
    Commit,
    /// Have the runtime take the container down; also where it never came up.
    Remove,
    /// Take the rest of the output over.
    Finish,
    /// Tell control that a phase was reached.
    Report(Phase),
    /// Tell control how it ended.
    ReportExit,
    /// Forget descriptors and files.
    Forget,
}

/// An event that cannot happen in this state: a defect of the executor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} cannot happen in {state:?}")]
pub(crate) struct IllegalTransition {
    pub state: State,
    pub event: Event,
}

/// Why we ended a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Ended {
    /// Control asked for it, or the machine stops.
    Asked,
    /// It was not ready in time.
    StartupTimeout,
}

/// What a later process knows of a container that lives on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Known {
    /// It has asked for its first input.
    pub ready: bool,
    /// It was told to stop.
    pub ended_by_us: Option<Ended>,
    /// Until when the stop lets it live.
    pub kill_at: Option<UnixMs>,
    /// How its program ended.
    pub exit: Option<Exit>,
}

/// The life of one container so far.
#[derive(Debug, Clone)]
pub(crate) struct Lifecycle {
    state: State,
    accepted_at: UnixMs,
    /// Time from acceptance to the first poll for input; 0 where there is no limit.
    startup_timeout_ms: u64,
    commits: bool,
    /// Set once we want it to end.
    pub ended_by_us: Option<Ended>,
    kill_at: Option<UnixMs>,
    /// SIGKILL was sent, at this time.
    killed_at: Option<UnixMs>,
    hello: bool,
    ready: bool,
    /// How the program ended, where that is known.
    pub exit: Option<Exit>,
    /// What failed, in words for the user.
    pub failure: Option<Error>,
}

impl Lifecycle {
    /// A container accepted at `accepted_at`, and what to do first.
    pub(crate) fn accept(accepted_at: UnixMs, startup_timeout_ms: u64, commits: bool) -> (Self, Vec<Action>) {
        let life = Self {
            state: State::Preparing,
            accepted_at,
            startup_timeout_ms,
            commits,
            ended_by_us: None,
            kill_at: None,
            killed_at: None,
            hello: false,
            ready: false,
            exit: None,
            failure: None,
        };
        (life, vec![Action::Start])
    }

    /// A container that an earlier process of ours started, as that wrote it down, and what to do first.
    pub(crate) fn adopt(
        accepted_at: UnixMs,
        startup_timeout_ms: u64,
        commits: bool,
        known: Known,
    ) -> (Self, Vec<Action>) {
        let (mut life, _) = Self::accept(accepted_at, startup_timeout_ms, commits);
        life.ready = known.ready;
        life.hello = known.ready;
        life.ended_by_us = known.ended_by_us;
        life.kill_at = known.kill_at;
        life.exit = known.exit;
        if life.exit.is_some() {
            life.state = State::Draining;
            return (life, vec![Action::Drain]);
        }
        life.state = State::Running;
        if life.ended_by_us.is_some() && life.kill_at.is_none() {
            // It was to be killed at once.
            life.kill_at = Some(accepted_at);
        }
        (life, Vec::new())
    }

    /// Where it is.
    pub(crate) fn state(&self) -> State {
        self.state
    }

    /// What a later process must know to go on.
    pub(crate) fn known(&self) -> Known {
        let Self { ready, ended_by_us, kill_at, exit, .. } = *self;
        Known { ready, ended_by_us, kill_at, exit }
    }

    /// Whether it was ended because it was not ready in time.
    pub(crate) fn timed_out(&self) -> bool {
        self.ended_by_us == Some(Ended::StartupTimeout)
    }

    /// Whether SIGKILL came from us.
    pub(crate) fn was_killed(&self) -> bool {
        self.killed_at.is_some()
    }

    /// When [`Event::DeadlinePassed`] is due.
    pub(crate) fn deadline(&self) -> Option<UnixMs> {
        use State::{Preparing, Recording, Running, Spawning};
        if !matches!(self.state, Preparing | Recording | Spawning | Running) {
            return None;
        }
        let startup = self.startup_deadline().filter(|_| self.ended_by_us.is_none());
        let running = self.state == Running;
        let kill = self.kill_at.filter(|_| running && self.killed_at.is_none());
        let give_up = self.killed_at.filter(|_| running).map(|at| at.plus_ms(KILL_WAIT_MS));
        [startup, kill, give_up].into_iter().flatten().min()
    }

    fn startup_deadline(&self) -> Option<UnixMs> {
        let limited = self.startup_timeout_ms > 0 && !self.ready;
        limited.then(|| self.accepted_at.plus_ms(self.startup_timeout_ms))
    }

    /// Takes `event` in; what to do now.
    pub(crate) fn step(&mut self, event: Event, now: UnixMs) -> Result<Vec<Action>, IllegalTransition> {
        use State::*;
        Ok(match (self.state, event) {
            (Preparing, Event::Started) => {
                self.proceed(Recording, vec![Action::Report(Phase::Slot), Action::RecordDescriptors])
            }
            (Recording, Event::Recorded) => self.proceed(Spawning, vec![Action::Spawn]),
            (Spawning, Event::Spawned) => self.spawned(now),
            // In Running: an earlier process died before it could execute the program.
            (Preparing | Recording | Spawning | Running, Event::Failed(what)) => {
                self.failure = Some(what);
                self.enter(Removing, vec![Action::Remove])
            }

            (Spawning | Running, Event::Hello) if !self.hello => {
                self.hello = true;
                vec![Action::Report(Phase::Hello)]
            }
            (Spawning | Running, Event::Ready) if !self.ready => {
                self.ready = true;
                vec![Action::Report(Phase::Ready), Action::SaveRecord]
            }
            (_, Event::Hello | Event::Ready) => vec![],

            (Preparing | Recording | Spawning | Running, Event::Stop(how)) => {
                self.stop(how, Ended::Asked, now)
            }
            (_, Event::Stop(_)) => vec![],
            (_, Event::DeadlinePassed) => self.deadline_passed(now),

            (Running, Event::Exited(exit)) => {
                self.exit = Some(exit);
                let saved = vec![Action::Report(Phase::Exited), Action::SaveRecord, Action::Drain];
                self.enter(Draining, saved)
            }
            (Running, Event::Lost) => {
                self.enter(Draining, vec![Action::Report(Phase::Exited), Action::Drain])
            }
            // The guest goes when the container is removed.
            (Draining | Committing | Removing | Finishing | Gone, Event::Lost | Event::Exited(_)) => vec![],
            // The action under way fails by itself when the container is gone.
            (Preparing | Recording | Spawning, Event::Lost) => vec![],

            (Draining, Event::Drained | Event::Failed(_)) => {
                if self.commits && self.exit == Some(Exit::Code(0)) && self.ended_by_us.is_none() {
                    self.enter(Committing, vec![Action::Commit])
                } else {
                    self.enter(Removing, vec![Action::Remove])
                }
            }
            (Committing, Event::Committed) => self.enter(Removing, vec![Action::Remove]),
            (Committing, Event::Failed(what)) => {
                self.failure = Some(what);
                self.enter(Removing, vec![Action::Remove])
            }
            // What the runtime could not remove, the sweep of the next start does.
            (Removing, Event::Removed | Event::Failed(_)) => self.enter(Finishing, vec![Action::Finish]),
            (Finishing, Event::Finished | Event::Failed(_)) => {
                // Forgotten only once it is reported: a process of ours that dies in between reports again.
                let last = vec![Action::Report(Phase::Removed), Action::ReportExit, Action::Forget];
                self.enter(Gone, last)
            }
            (state, event) => return Err(IllegalTransition { state, event }),
        })
    }

    fn enter(&mut self, state: State, actions: Vec<Action>) -> Vec<Action> {
        self.state = state;
        actions
    }

    /// Goes on with the start, unless it was told to stop meanwhile.
    fn proceed(&mut self, state: State, actions: Vec<Action>) -> Vec<Action> {
        if self.ended_by_us.is_some() {
            return self.enter(State::Removing, vec![Action::Remove]);
        }
        self.enter(state, actions)
    }

    fn spawned(&mut self, now: UnixMs) -> Vec<Action> {
        self.state = State::Running;
        let mut actions = vec![Action::Report(Phase::Exec)];
        if self.ended_by_us.is_some() {
            // Told to stop while it was being executed: it has done nothing yet that a grace would serve.
            self.killed_at = Some(now);
            actions.push(Action::Kill);
        }
        actions
    }

    fn stop(&mut self, how: Stop, why: Ended, now: UnixMs) -> Vec<Action> {
        let mut actions = Vec::new();
        let first = self.ended_by_us.is_none();
        if first {
            self.ended_by_us = Some(why);
            actions.push(Action::Report(Phase::Stopping));
        }
        if self.state != State::Running || self.killed_at.is_some() {
            return actions;
        }
        match how {
            // Nothing of the user's runs yet that a grace would serve; SIGINT would only make the interpreter
            // print where in its own start it was.
            Stop::Interrupt { .. } if !self.hello => {
                self.killed_at = Some(now);
                actions.push(Action::Kill);
            }
            Stop::Interrupt { grace_ms } => {
                let until = now.plus_ms(grace_ms);
                // A later request can only shorten the grace.
                self.kill_at = Some(self.kill_at.map_or(until, |at| at.min(until)));
                if first {
                    actions.push(Action::Interrupt);
                }
                actions.push(Action::SaveRecord);
            }
            Stop::Kill => {
                self.killed_at = Some(now);
                actions.push(Action::Kill);
            }
        }
        actions
    }

    fn deadline_passed(&mut self, now: UnixMs) -> Vec<Action> {
        if self.deadline().is_none_or(|at| at > now) {
            return vec![];
        }
        match (self.state, self.killed_at) {
            // It survived SIGKILL: only removing the container helps.
            (State::Running, Some(_)) => {
                self.enter(State::Draining, vec![Action::Report(Phase::Exited), Action::Drain])
            }
            (State::Running, None) if self.ended_by_us.is_some() => {
                self.killed_at = Some(now);
                vec![Action::Kill]
            }
            _ => self.stop(Stop::Kill, Ended::StartupTimeout, now),
        }
    }
}

#[cfg(test)]
#[path = "lifecycle_tests.rs"]
mod tests;
