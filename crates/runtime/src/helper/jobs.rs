//! Work that takes as long as a tree is large: done in children, so that the helper goes on serving.

use super::sys;
use crate::RuntimeError;
use crate::helper::request::Reply;
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

/// Who waits for a job: a client and the number of its request; nobody for housekeeping.
pub(super) type Asker = Option<(u64, u64)>;

type Outcome = Result<Reply, RuntimeError>;
type Work = Box<dyn FnOnce() -> Outcome>;

/// What waits and what runs.
#[derive(Default)]
pub(super) struct Jobs {
    waiting: VecDeque<(Asker, Vec<OwnedFd>, Work)>,
    running: Vec<Running>,
}

struct Running {
    asker: Asker,
    child: sys::Child,
    answer: OwnedFd,
}

impl Jobs {
    /// Queues `work`, which may use the descriptors `keep` and nothing else that is open here.
    pub(super) fn push(
        &mut self,
        asker: Asker,
        keep: Vec<OwnedFd>,
        work: impl FnOnce(&[BorrowedFd<'_>]) -> Outcome + 'static,
    ) -> Result<(), RuntimeError> {
        if self.waiting.len() >= WAITING_MAX {
            return Err(RuntimeError::Exhausted("too much work on trees is waiting".to_owned()));
        }
        let copies: Result<Vec<_>, _> = keep.iter().map(OwnedFd::try_clone).collect();
        let copies = copies.map_err(|error| RuntimeError::step("keeping descriptors for a job", error))?;
        let work: Work = Box::new(move || {
            let borrowed: Vec<_> = copies.iter().map(AsFd::as_fd).collect();
            work(&borrowed)
        });
        // The closure's own copies must survive as well, and they are what the child keeps open.
        self.waiting.push_back((asker, keep, work));
        Ok(())
    }

    /// Starts what may run. Returns the askers of jobs that could not even be started.
    pub(super) fn start(&mut self) -> Vec<(Asker, Outcome)> {
        let mut failed = Vec::new();
        while self.running.len() < RUNNING_MAX {
            let Some((asker, keep, work)) = self.waiting.pop_front() else { break };
            match spawn(work) {
                Ok((child, answer)) => self.running.push(Running { asker, child, answer }),
                Err(error) => failed.push((asker, Err(RuntimeError::step("starting a job", error)))),
            }
            drop(keep);
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
        let Running { asker, child, answer } = self.running.swap_remove(index);
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

fn spawn(work: Work) -> std::io::Result<(sys::Child, OwnedFd)> {
    let (answer, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    let child = sys::fork_with(0, None, || {
        sys::die_with_parent();
        // Requests come first.
        // SAFETY: changes the priority of this child.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 10) };
        let outcome = work();
        let written = serde_json::to_vec(&outcome).map(|bytes| std::fs::File::from(writer).write_all(&bytes));
        i32::from(!matches!(written, Ok(Ok(()))))
    })?;
    Ok((child, answer))
}

/// In a job's child: closes every descriptor of the helper's that the job does not use.
pub(super) fn keep_only(fds: &[BorrowedFd<'_>]) -> Vec<i32> {
    fds.iter().map(AsRawFd::as_raw_fd).collect()
}
