//! Containers' questions for inputs that wait. One that can be answered is answered in the very decision that
//! made it so, and stored with it: an input that finds a free container costs one commit, not two in a row.

use evoke_core::{TaskId, UnixMs};
use evoke_engine::{Claim, Effect, Engine, PollRequest, Step};
use evoke_proto::Status;
use evoke_store::{Grade, Lead, Store, Ticket, Write};
use std::collections::{HashMap, VecDeque};
use tokio::sync::oneshot;

/// What becomes of a question that waits.
#[derive(Debug)]
pub(crate) enum Answer {
    /// The engine has decided. The answer leaves once the ticket says that it is stored.
    Decided(Claim, Option<Ticket>),
    /// The engine has to be asked again.
    AskAgain,
    /// The container has asked again meanwhile: nobody listens to this answer.
    Superseded,
    /// The engine does not know the container any more.
    Refused(Status),
}

/// The questions that wait, at most one for each container. Guarded by the engine's lock, so that nothing is
/// decided between a question's being asked and its waiting.
#[derive(Debug, Default)]
pub(crate) struct Questions {
    waiting: HashMap<TaskId, Waiting>,
    turns: u64,
}

#[derive(Debug)]
struct Waiting {
    turn: u64,
    poll: PollRequest,
    answer: oneshot::Sender<Answer>,
}

/// Where a question waits.
#[derive(Debug)]
pub(crate) struct Place {
    /// Tells it from other questions of its container.
    pub(crate) turn: u64,
    /// Where its answer comes.
    pub(crate) answer: oneshot::Receiver<Answer>,
    /// When it must be asked again, if it has no answer by then.
    pub(crate) until: Option<UnixMs>,
}

/// An answer that was found for a question that waits.
struct Found {
    claim: Claim,
    answer: oneshot::Sender<Answer>,
    /// Which of the decision's batches has its writes; none where it has none.
    batch: Option<usize>,
}

impl Questions {
    /// Has a question wait that is its container's only one: see [`Questions::supersede`].
    pub(crate) fn wait(&mut self, poll: PollRequest, until: Option<UnixMs>) -> Place {
        self.turns += 1;
        let (sender, answer) = oneshot::channel();
        self.waiting.insert(poll.task, Waiting { turn: self.turns, poll, answer: sender });
        Place { turn: self.turns, answer, until }
    }

    /// Ends the container's question that waits, if one does: it was asked on a connection that is gone.
    pub(crate) fn supersede(&mut self, task: TaskId) {
        if let Some(older) = self.waiting.remove(&task) {
            tell(older.answer, Answer::Superseded);
        }
    }

    /// Takes one question back.
    pub(crate) fn withdraw(&mut self, task: TaskId, turn: u64) {
        if self.waiting.get(&task).is_some_and(|waiting| waiting.turn == turn) {
            self.waiting.remove(&task);
        }
    }

    /// Has every question asked again.
    pub(crate) fn ask_all_again(&mut self) {
        for (_, waiting) in self.waiting.drain() {
            tell(waiting.answer, Answer::AskAgain);
        }
    }
}

/// What a decision has led to: what must be stored and done, the waiting questions that it answers among it.
#[derive(Default)]
pub(crate) struct Outcome {
    batches: Vec<(Vec<Write>, Grade)>,
    /// Which of the batches has the decision's own writes.
    own: Option<usize>,
    effects: Vec<Effect>,
    found: Vec<Found>,
}

impl Outcome {
    /// Starts with a decision's own writes.
    pub(crate) fn new(writes: Vec<Write>, grade: Grade) -> Self {
        let mut outcome = Self::default();
        outcome.own = outcome.add(writes, grade);
        outcome
    }

    fn add(&mut self, writes: Vec<Write>, grade: Grade) -> Option<usize> {
        (!writes.is_empty()).then(|| {
            self.batches.push((writes, grade));
            self.batches.len() - 1
        })
    }

    /// Takes a decision's effects: each question that they wake is put to the engine again, and so on with what
    /// follows from that.
    pub(crate) fn follow(
        &mut self,
        effects: Vec<Effect>,
        engine: &mut Engine,
        questions: &mut Questions,
        now: UnixMs,
    ) {
        let mut effects = VecDeque::from(effects);
        while let Some(effect) = effects.pop_front() {
            let Effect::WakeTask(task) = effect else {
                self.effects.push(effect);
                continue;
            };
            let Some(waiting) = questions.waiting.remove(&task) else { continue };
            match engine.poll_inputs(waiting.poll, now) {
                Ok(Step { reply, writes, effects: more, grade }) => {
                    let batch = self.add(writes.into_iter().map(Write::from).collect(), grade);
                    effects.extend(more);
                    match reply {
                        Claim::Wait { until: None } => {
                            questions.waiting.insert(task, waiting);
                        }
                        Claim::Wait { until: Some(_) } => tell(waiting.answer, Answer::AskAgain),
                        claim => self.found.push(Found { claim, answer: waiting.answer, batch }),
                    }
                }
                Err(error) => tell(waiting.answer, Answer::Refused(error.into())),
            }
        }
    }

    /// Submits everything, in order and with nothing in between.
    pub(crate) fn submit(self, store: &Store) -> Submitted {
        let (mut tickets, mut lead) = (Vec::<Option<Ticket>>::new(), None);
        if !self.batches.is_empty() {
            let (submitted, first) = store.submit_all(self.batches);
            tickets.extend(submitted.into_iter().map(Some));
            lead = Some(first);
        }
        let mut ticket = |batch: Option<usize>| tickets.get_mut(batch?)?.take();
        let own = ticket(self.own);
        let found = self.found.into_iter();
        let answers =
            found.map(|found| (found.answer, Answer::Decided(found.claim, ticket(found.batch)))).collect();
        Submitted { own, lead, effects: self.effects, answers }
    }
}

/// A decision that is on its way into the store.
pub(crate) struct Submitted {
    /// Of the decision's own writes, if it had any.
    pub(crate) own: Option<Ticket>,
    /// Commits what is small, once it is dropped.
    pub(crate) lead: Option<Lead>,
    /// What must be done.
    pub(crate) effects: Vec<Effect>,
    answers: Vec<(oneshot::Sender<Answer>, Answer)>,
}

impl Submitted {
    /// Lets the answers go to the questions that have got one. The effects must be under way by then.
    pub(crate) fn tell(self) {
        for (waiting, answer) in self.answers {
            tell(waiting, answer);
        }
    }
}

/// Whoever asked may be gone meanwhile; an answer that gets lost is found again by the container's next question.
fn tell(waiting: oneshot::Sender<Answer>, answer: Answer) {
    drop(waiting.send(answer));
}
