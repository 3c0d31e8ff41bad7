//! Work that takes as long as a tree is large: done in children, so that the helper goes on serving.

use super::request::Reply;
use super::sys;
use crate::RuntimeError;
use rustix::pipe::{PipeFlags, pipe_with};
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Jobs at once.
const RUNNING_MAX: usize = 4;
/// Jobs that may wait.
const WAITING_MAX: usize = 4096;
/// Bytes of a job's answer at most.
const ANSWER_MAX: u64 = 1024 * 1024;
/// How much a job gives way to everything else.
const NICENESS: i32 = 10;

/// Who waits for an answer: the number of a client and of its request. Nobody waits for housekeeping.
pub(super) type Asker = Option<(u64, u64)>;
/// What a request comes to.
pub(super) type Outcome = Result<Reply, RuntimeError>;
/// A job's work on its descriptors; nothing else is open while it runs.
type Work = Box<dyn FnOnce(&[OwnedFd]) -> Outcome>;

/// What waits and what runs.
#[derive(Default)]
pub(super) struct Jobs {
    waiting: VecDeque<Waiting>,
    running: Vec<Running>,
}

struct Waiting {
    asker: Asker,
    fds: Vec<OwnedFd>,
    work: Work,
}

struct Running {
    asker: Asker,
    child: sys::Child,
    answer: OwnedFd,
}

impl Jobs {
    /// Queues `work` with the descriptors that it uses.
    pub(super) fn push(
        &mut self,
        asker: Asker,
        fds: Vec<OwnedFd>,
        work: impl FnOnce(&[OwnedFd]) -> Outcome + 'static,
    ) -> Result<(), RuntimeError> {
        if self.waiting.len() >= WAITING_MAX {
            return Err(RuntimeError::Exhausted("too much work on trees is waiting".to_owned()));
        }
        self.waiting.push_back(Waiting { asker, fds, work: Box::new(work) });
        Ok(())
    }

    /// Starts what may run. Returns the jobs that could not even be started.
    pub(super) fn start(&mut self) -> Vec<(Asker, Outcome)> {
        let mut failed = Vec::new();
        while self.running.len() < RUNNING_MAX {
            let Some(Waiting { asker, fds, work }) = self.waiting.pop_front() else { break };
            match spawn(&fds, work) {
                Ok((child, answer)) => self.running.push(Running { asker, child, answer }),
                Err(error) => failed.push((asker, Err(RuntimeError::step("starting a job", error)))),
            }
        }
        failed
    }

    /// The descriptors to poll: readable when a job is done.
    pub(super) fn poll_fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.running.iter().map(|job| job.answer.as_fd())
    }

    /// Whether nothing waits or runs.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Takes the outcome of the job whose descriptor is `index`-th of [`Self::poll_fds`].
    pub(super) fn finish(&mut self, index: usize) -> (Asker, Outcome) {
        let Running { asker, child, answer } = self.running.remove(index);
        let mut bytes = Vec::new();
        let read = std::fs::File::from(answer).take(ANSWER_MAX).read_to_end(&mut bytes);
        sys::wait(child.pid);
        let outcome = match read.map_err(serde_json::Error::io).and_then(|_| serde_json::from_slice(&bytes)) {
            Ok(outcome) => outcome,
            Err(_) => Err(RuntimeError::Step {
                step: "working on a tree".to_owned(),
                detail: "the job ended without an answer".to_owned(),
            }),
        };
        (asker, outcome)
    }
}

fn spawn(fds: &[OwnedFd], work: Work) -> std::io::Result<(sys::Child, OwnedFd)> {
    let (answer, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    let child = sys::fork_with(0, None, || {
        sys::die_with_parent();
        // SAFETY: changes the priority of this child.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS) };
        let mut keep: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        keep.push(writer.as_raw_fd());
        // Nothing that is closed here is ever used or dropped: the child ends by _exit.
        sys::close_all_but(&keep);
        let outcome = work(fds);
        let written = serde_json::to_vec(&outcome).map(|bytes| std::fs::File::from(writer).write_all(&bytes));
        i32::from(!matches!(written, Ok(Ok(()))))
    })?;
    Ok((child, answer))
}
