//! One captured stream: a task that moves bytes from pipe to spool to control, and the handle to it.

use super::cut::{self, End};
use super::spool::{Spliced, Spool};
use super::tags::{Tag, Tags};
use bytes::Bytes;
use evoke_core::{AppId, Clock, FunctionId, TaskId, UnixMs};
use evoke_proto::worker::{Control, LogChunk, OutputFd};
use futures::future::BoxFuture;
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// Most bytes moved from a pipe by one call.
const SPLICE_BYTES_MAX: usize = 256 * 1024;
/// A pipe that holds more than this is emptied on a thread for blocking work, because a disk that cannot
/// keep up makes the writer wait.
const SPLICE_INLINE_MAX: u64 = 64 * 1024;
/// Most bytes of one stream on their way to control.
const BATCH_BYTES_MAX: usize = 256 * 1024;
/// Most bytes of one stream in its spool that control has not taken over; beyond it the pipe fills.
pub(crate) const SPOOL_AHEAD_MAX: u64 = 64 * 1024 * 1024;
/// How long an unfinished line waits for its rest: short enough for a prompt, long enough for a program that
/// writes a line in pieces while the machine is busy, so that lines of several containers are not mixed.
const PARTIAL_LINE_WAIT: Duration = Duration::from_millis(200);
/// First and longest pause after control or the disk refused bytes.
const RETRY_WAIT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// Refusals in a row, once the container is gone, after which the rest stays in the spool for the next start
/// of this process.
const TRIES_AFTER_END_MAX: u32 = 20;
/// Most moments of arrival remembered for bytes that are not shipped yet.
const ARRIVALS_MAX: usize = 1024;

/// Whose output a stream is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source {
    pub task: TaskId,
    pub app: AppId,
    pub function: FunctionId,
    pub fd: OutputFd,
}

/// What a capture needs.
pub(crate) struct CaptureConfig {
    pub source: Source,
    pub spool: Spool,
    /// Reading end of the pipe; `None` where only the spool is left.
    pub pipe: Option<OwnedFd>,
    /// How far control has taken the spool over.
    pub taken_over: u64,
    pub control: Arc<dyn Control>,
    pub clock: Arc<dyn Clock>,
}

/// How far a stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Progress {
    /// Control has taken over everything before this offset.
    shipped: u64,
    /// The task ended: with everything shipped, or leaving the rest in the spool.
    ended: bool,
}

/// Handle to the capture of one stream. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Capture {
    shared: Arc<Shared>,
    progress: watch::Receiver<Progress>,
}

struct Shared {
    book: Mutex<Book>,
    pipe: Option<AsyncFd<OwnedFd>>,
    wake: Notify,
}

/// What is known of the stream's bytes. The lock is held while bytes move from pipe to spool, so that what
/// is in the pipe and what is in the spool always add up.
struct Book {
    spool: Spool,
    tags: Tags,
    /// When the bytes from an offset on arrived.
    arrivals: VecDeque<(u64, UnixMs)>,
    /// Everything before this offset is to be shipped without waiting for the end of its line.
    flush_to: u64,
    /// Nothing comes out of the pipe any more.
    ended: bool,
    /// The container is gone: end even if something holds the pipe open.
    finish: bool,
}

impl Shared {
    fn book(&self) -> MutexGuard<'_, Book> {
        // A panic while the lock is held leaves offsets that are true: each is set after its bytes moved.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Offset behind the last byte that the container has written so far.
    fn end_of_written(&self, book: &Book) -> u64 {
        let in_pipe = self.pipe.as_ref().and_then(|pipe| rustix::io::ioctl_fionread(pipe.get_ref()).ok());
        book.spool.written() + in_pipe.unwrap_or(0)
    }

    fn splice(&self, now: UnixMs) -> io::Result<Spliced> {
        let Some(pipe) = &self.pipe else { return Ok(Spliced::Ended) };
        let mut book = self.book();
        let from = book.spool.written();
        let spliced = book.spool.splice_from(pipe.get_ref(), SPLICE_BYTES_MAX)?;
        if matches!(spliced, Spliced::Bytes(_))
            && book.arrivals.back().is_none_or(|last| last.1 != now)
            && book.arrivals.len() < ARRIVALS_MAX
        {
            book.arrivals.push_back((from, now));
        }
        Ok(spliced)
    }
}

impl Capture {
    /// Starts capturing. The returned future is the work; it ends when everything is shipped after the
    /// pipe's end or after [`Capture::finish`].
    pub(crate) fn new(config: CaptureConfig) -> io::Result<(Self, impl Future<Output = ()> + Send)> {
        let CaptureConfig { source, spool, pipe, taken_over, control, clock } = config;
        let pipe = match pipe {
            Some(fd) => {
                rustix::io::ioctl_fionbio(&fd, true)?;
                Some(evoke_runtime::fds::watch(fd, Interest::READABLE)?)
            }
            None => None,
        };
        let shipped = taken_over.min(spool.written());
        let ended = pipe.is_none();
        let book =
            Book { spool, tags: Tags::new(), arrivals: VecDeque::new(), flush_to: 0, ended, finish: ended };
        let shared = Arc::new(Shared { book: Mutex::new(book), pipe, wake: Notify::new() });
        let (sender, progress) = watch::channel(Progress { shipped, ended: false });
        let shipper = Shipper {
            shared: shared.clone(),
            source,
            control,
            clock,
            cut: shipped,
            shipped,
            partial_since: None,
            late: false,
            ship_pause: None,
            fill_pause: None,
            again: None,
            refused: 0,
            sender,
        };
        Ok((Self { shared, progress }, shipper.run()))
    }

    /// What the container writes from now on belongs to `tag`; what it has written so far, the bytes in the
    /// pipe included, keeps the tag of before.
    pub(crate) fn set_tag(&self, tag: Tag) {
        self.mark_end(tag);
    }

    /// Ends the range of the tag in force behind what the container has written so far, and has that shipped
    /// without waiting for the end of its line. The offset of that end.
    fn mark_end(&self, tag: Tag) -> u64 {
        let mut book = self.shared.book();
        let end = self.shared.end_of_written(&book);
        book.flush_to = book.flush_to.max(end);
        book.tags.set(end, tag);
        drop(book);
        // Most calls write nothing: then there is nothing to wake up for.
        if self.progress.borrow().shipped < end {
            self.shared.wake.notify_one();
        }
        end
    }

    /// Waits until everything that the container has written so far is with control. What it writes
    /// meanwhile is not waited for, and belongs to no input until the next [`Capture::set_tag`].
    pub(crate) async fn drain(&self) {
        let target = self.mark_end(None);
        let mut progress = self.progress.clone();
        // An error means that the task is gone, and with it what could be waited for.
        let _ = progress.wait_for(|p| p.ended || p.shipped >= target).await;
    }

    /// The container is gone: ships what is left and ends. `true` when all of it was shipped, and the spool
    /// is removed; `false` when control refused, and the rest stays in the spool.
    pub(crate) async fn finish(&self) -> bool {
        self.shared.book().finish = true;
        self.shared.wake.notify_one();
        let mut progress = self.progress.clone();
        let shipped = match progress.wait_for(|p| p.ended).await {
            Ok(last) => last.shipped,
            Err(_) => return false,
        };
        let book = self.shared.book();
        if shipped < book.spool.written() {
            return false;
        }
        if let Err(error) = book.spool.remove() {
            tracing::warn!(%error, "the spool of a finished container could not be removed");
        }
        true
    }
}

/// The task behind a [`Capture`].
struct Shipper {
    shared: Arc<Shared>,
    source: Source,
    control: Arc<dyn Control>,
    clock: Arc<dyn Clock>,
    /// Bytes before this offset were cut into chunks and handed to control.
    cut: u64,
    /// Bytes before this offset were taken over by control.
    shipped: u64,
    /// Since when an unfinished line waits; `None` where none does or its wait is over.
    partial_since: Option<Instant>,
    /// An unfinished line has waited long enough.
    late: bool,
    /// Until when nothing is asked of control, after it refused.
    ship_pause: Option<Instant>,
    /// Until when nothing is asked of the spool, after it refused.
    fill_pause: Option<Instant>,
    /// The batch that control refused.
    again: Option<Vec<LogChunk>>,
    /// Refusals in a row.
    refused: u32,
    sender: watch::Sender<Progress>,
}

/// A batch, and what control said to it.
type Answer = (Vec<LogChunk>, Result<(), evoke_core::Error>);
/// A batch that control is taking over.
type InFlight = BoxFuture<'static, Answer>;
/// The pipe has something to read, or ended.
type Readable<'a> = io::Result<AsyncFdReadyGuard<'a, OwnedFd>>;

impl Shipper {
    async fn run(mut self) {
        let shared = self.shared.clone();
        let mut in_flight: Option<InFlight> = None;
        loop {
            self.notice_end();
            if in_flight.is_none() && self.ship_pause.is_none() {
                in_flight = self.ship();
            }
            if in_flight.is_none() && (self.is_done() || self.gives_up()) {
                break;
            }
            let fills = self.wants_bytes();
            let timer = self.next_timer(in_flight.is_some());
            tokio::select! {
                answer = settled(&mut in_flight), if in_flight.is_some() => {
                    in_flight = None;
                    self.settle(answer);
                }
                guard = readable(&shared), if fills => {
                    if let Err(error) = self.fill(guard).await {
                        self.fill_pause = Some(self.refusal("moving output into the spool", &error));
                    }
                }
                () = until(timer), if timer.is_some() => self.time_passed(),
                () = shared.wake.notified() => {}
            }
        }
        self.sender.send_replace(Progress { shipped: self.shipped, ended: true });
    }

    /// Hands the next batch to control: the refused one, else what can be cut now.
    fn ship(&mut self) -> Option<InFlight> {
        let batch = match self.next_batch() {
            Ok(batch) if batch.is_empty() => return None,
            Ok(batch) => batch,
            Err(error) => {
                self.ship_pause = Some(self.refusal("reading the spool", &error));
                return None;
            }
        };
        let control = self.control.clone();
        Some(Box::pin(async move {
            let answer = control.append_logs(batch.clone()).await;
            (batch, answer)
        }))
    }

    /// Whether the pipe is to be read now.
    fn wants_bytes(&self) -> bool {
        let book = self.shared.book();
        !book.ended && self.fill_pause.is_none() && book.spool.written() - self.shipped < SPOOL_AHEAD_MAX
    }

    /// Once the container is gone an empty pipe is an ended one, whoever still holds it.
    fn notice_end(&self) {
        let mut book = self.shared.book();
        if book.finish && !book.ended && self.shared.end_of_written(&book) == book.spool.written() {
            book.ended = true;
        }
    }

    fn is_done(&self) -> bool {
        let book = self.shared.book();
        book.ended && self.shipped == book.spool.written()
    }

    fn gives_up(&self) -> bool {
        self.refused >= TRIES_AFTER_END_MAX && self.shared.book().finish
    }

    /// The moment at which something is to be done if nothing happens before.
    fn next_timer(&self, in_flight: bool) -> Option<Instant> {
        // A late line can only be cut once the batch before it is settled.
        let late = self.partial_since.filter(|_| !in_flight).map(|since| since + PARTIAL_LINE_WAIT);
        [late, self.ship_pause, self.fill_pause].into_iter().flatten().min()
    }

    fn time_passed(&mut self) {
        let now = Instant::now();
        if self.partial_since.is_some_and(|since| since + PARTIAL_LINE_WAIT <= now) {
            self.partial_since = None;
            self.late = true;
        }
        self.ship_pause = self.ship_pause.filter(|until| *until > now);
        self.fill_pause = self.fill_pause.filter(|until| *until > now);
    }

    /// Moves what is in the pipe into the spool.
    async fn fill(&mut self, guard: Readable<'_>) -> io::Result<()> {
        let mut guard = guard?;
        let now = self.clock.now();
        let spliced = if rustix::io::ioctl_fionread(guard.get_inner())? > SPLICE_INLINE_MAX {
            let shared = self.shared.clone();
            tokio::task::spawn_blocking(move || shared.splice(now)).await.map_err(io::Error::other)??
        } else {
            self.shared.splice(now)?
        };
        match spliced {
            Spliced::Bytes(_) => {
                self.partial_since.get_or_insert_with(Instant::now);
            }
            // Bytes that came after the guard was made keep the pipe readable.
            Spliced::Empty => guard.clear_ready(),
            Spliced::Ended => self.shared.book().ended = true,
        }
        Ok(())
    }

    /// Cuts the next batch out of the spool; empty where it is better to wait.
    fn next_batch(&mut self) -> io::Result<Vec<LogChunk>> {
        if let Some(batch) = self.again.take() {
            return Ok(batch);
        }
        let book = self.shared.book();
        let written = book.spool.written();
        let late = std::mem::take(&mut self.late);
        if self.cut == written {
            self.partial_since = None;
            return Ok(Vec::new());
        }
        let start = self.cut;
        let bytes = Bytes::from(book.spool.read(start, BATCH_BYTES_MAX)?);
        let read_to = start + bytes.len() as u64;
        let mut chunks = Vec::new();
        while self.cut < read_to {
            let (tag, range_end) = book.tags.at(self.cut);
            let flush = Some(book.flush_to).filter(|to| *to > self.cut);
            let stream_end = Some(written).filter(|_| book.ended);
            let wall =
                [range_end, flush, stream_end].into_iter().flatten().min().filter(|end| *end <= read_to);
            let end = match wall {
                Some(_) => End::Closed,
                None if late && read_to == written => End::Late,
                None => End::Open,
            };
            let from = (self.cut - start) as usize;
            let to = (wall.unwrap_or(read_to) - start) as usize;
            let len = cut::next_chunk(&bytes[from..to], end);
            if len == 0 {
                break;
            }
            let data = bytes.slice(from..from + len);
            chunks.push(self.source.chunk(self.cut, book.arrived(self.cut, &*self.clock), tag, data));
            self.cut += len as u64;
        }
        if !chunks.is_empty() {
            self.partial_since = (self.cut < written).then(Instant::now);
        }
        Ok(chunks)
    }

    /// Control answered for the batch that was under way. A refused one comes again unchanged, because what
    /// was refused may yet have been kept.
    fn settle(&mut self, (batch, answer): Answer) {
        if let Err(error) = answer {
            self.again = Some(batch);
            self.ship_pause = Some(self.refusal("handing output to control", &error));
            return;
        }
        self.refused = 0;
        self.shipped = self.cut;
        let mut book = self.shared.book();
        book.forget_before(self.shipped);
        drop(book);
        self.sender.send_replace(Progress { shipped: self.shipped, ended: false });
    }

    /// Notes a refusal; until when to wait before the next attempt.
    fn refusal(&mut self, what: &'static str, error: &dyn std::error::Error) -> Instant {
        if self.refused == 0 {
            tracing::warn!(task = %self.source.task, fd = ?self.source.fd, %error,
                "{what} failed; the container's output waits");
        }
        let wait = RETRY_WAIT.0.saturating_mul(1 << self.refused.min(10)).min(RETRY_WAIT.1);
        self.refused = self.refused.saturating_add(1);
        Instant::now() + wait
    }
}

impl Book {
    /// When the byte at `offset` arrived; for bytes from before a restart, now.
    fn arrived(&self, offset: u64, clock: &dyn Clock) -> UnixMs {
        let next = self.arrivals.partition_point(|arrival| arrival.0 <= offset);
        let own = next.checked_sub(1).and_then(|own| self.arrivals.get(own));
        own.map_or_else(|| clock.now(), |arrival| arrival.1)
    }

    fn forget_before(&mut self, shipped: u64) {
        self.tags.forget_before(shipped);
        while self.arrivals.get(1).is_some_and(|next| next.0 <= shipped) {
            self.arrivals.pop_front();
        }
        self.spool.give_back(shipped);
    }
}

impl Source {
    fn chunk(&self, spool_offset: u64, at: UnixMs, tag: Tag, data: Bytes) -> LogChunk {
        LogChunk {
            task: self.task,
            app: self.app,
            function: self.function,
            fd: self.fd,
            spool_offset,
            at_ms: at,
            call: tag.map(|tag| tag.0),
            input: tag.map(|tag| tag.1),
            data,
        }
    }
}

/// The answer for the batch under way.
async fn settled(in_flight: &mut Option<InFlight>) -> Answer {
    match in_flight {
        Some(answer) => answer.await,
        None => std::future::pending().await,
    }
}

/// Resolves when the pipe has bytes or ended.
async fn readable(shared: &Shared) -> Readable<'_> {
    match &shared.pipe {
        Some(pipe) => pipe.readable().await,
        None => std::future::pending().await,
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "kill_tests.rs"]
mod kill_tests;
