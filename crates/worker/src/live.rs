//! The descriptors of one living container in use: its guest, its captured output, its served listeners.

use crate::fd_keeper::Part;
use crate::forward::ContainerService;
use crate::output::{Capture, CaptureConfig, Source, Spool, spool_path};
use crate::prepare;
use crate::record::Record;
use crate::registry::Entry;
use crate::tasks::{self, TaskKind};
use crate::volumes::{Background, Volumes};
use crate::worker::Shared;
use evoke_proto::worker::{ContainerListener, OutputFd};
use evoke_runtime::{Guest, Started};
use rustix::pipe::PipeFlags;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::sync::watch;

/// Capacity asked for a container's output pipes, in bytes.
const PIPE_BYTES: usize = 1024 * 1024;
/// Containers up to which pipes are enlarged. The kernel grants each user a total, and shrinks all further
/// pipes to almost nothing beyond it.
const LARGE_PIPES_CONTAINERS_MAX: usize = 16;
/// How long the init of a container that was told to end may take.
const INIT_END_WAIT: Duration = Duration::from_secs(10);
/// Longest time for which the end of a container waits for its last output to be taken over.
const FINISH_WAIT_MAX: Duration = Duration::from_secs(60);

/// A living container's descriptors.
pub(crate) struct Live {
    pub guest: Guest,
    pidfd: Option<OwnedFd>,
    captures: [Capture; 2],
    /// Writing ends of the output pipes, until the program has them.
    pub stdio: Option<(OwnedFd, OwnedFd)>,
    /// Tells the listeners to stop.
    stop: watch::Sender<bool>,
    /// Commits what is written to volumes.
    background: Option<Background>,
}

/// All descriptors of one container, complete.
pub(crate) struct Parts {
    pub pidfd: OwnedFd,
    pub control: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
    pub http: OwnedFd,
    pub unix: OwnedFd,
}

impl Parts {
    /// From what the runtime gave, with new pipes; the second part are the pipes' writing ends.
    pub(crate) fn from_started(
        started: Started,
        containers: usize,
    ) -> io::Result<(Self, (OwnedFd, OwnedFd))> {
        let Ok([http, unix]) = <[OwnedFd; 2]>::try_from(started.listeners) else {
            return Err(io::Error::other("the runtime opened other listeners than asked for"));
        };
        let large = containers <= LARGE_PIPES_CONTAINERS_MAX;
        let (stdout, stdout_writer) = output_pipe(large)?;
        let (stderr, stderr_writer) = output_pipe(large)?;
        let parts = Self { pidfd: started.pidfd, control: started.control, stdout, stderr, http, unix };
        Ok((parts, (stdout_writer, stderr_writer)))
    }

    /// From what was kept for us; none where something is missing.
    pub(crate) fn from_kept(mut kept: HashMap<Part, OwnedFd>) -> Option<Self> {
        let mut take = |part| kept.remove(&part);
        Some(Self {
            pidfd: take(Part::Pidfd)?,
            control: take(Part::Control)?,
            stdout: take(Part::Stdout)?,
            stderr: take(Part::Stderr)?,
            http: take(Part::Http)?,
            unix: take(Part::Unix)?,
        })
    }

    /// Duplicates to be kept beyond this process.
    pub(crate) fn duplicates(&self) -> io::Result<Vec<(Part, OwnedFd)>> {
        let parts = [
            (Part::Pidfd, &self.pidfd),
            (Part::Control, &self.control),
            (Part::Stdout, &self.stdout),
            (Part::Stderr, &self.stderr),
            (Part::Http, &self.http),
            (Part::Unix, &self.unix),
        ];
        parts.into_iter().map(|(part, fd)| Ok((part, fd.try_clone()?))).collect()
    }
}

fn output_pipe(large: bool) -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    if large {
        // A refusal leaves a smaller pipe, which only makes a fast writer wait more often.
        let _ = rustix::pipe::fcntl_setpipe_size(&writer, PIPE_BYTES);
    }
    Ok((reader, writer))
}

impl Live {
    /// Puts the descriptors to use: captures output from `offsets` on (what control has of stdout and
    /// stderr) and serves the listeners.
    pub(crate) fn open(
        shared: &Arc<Shared>,
        entry: &Arc<Entry>,
        record: &Record,
        parts: Parts,
        offsets: (u64, u64),
    ) -> io::Result<Self> {
        let guest = Guest::new(parts.control)?;
        let captures = [
            capture(shared, record, OutputFd::Stdout, Some(parts.stdout), offsets.0)?,
            capture(shared, record, OutputFd::Stderr, Some(parts.stderr), offsets.1)?,
        ];
        entry.set_captures(captures.clone());
        let (stop, stopped) = watch::channel(false);
        let listeners = [
            ContainerListener::Tcp(nonblocking(parts.http)?.into()),
            ContainerListener::Unix(nonblocking(parts.unix)?.into()),
        ];
        for listener in listeners {
            serve(shared, entry, listener, stopped.clone());
        }
        let volumes = Volumes::of(shared, record, Some(guest.clone()));
        let background = volumes.as_ref().and_then(Volumes::commit_in_background);
        entry.set_volumes(volumes);
        Ok(Self { guest, pidfd: Some(parts.pidfd), captures, stdio: None, stop, background })
    }

    /// Another descriptor of the container's init.
    pub(crate) fn init(&self) -> io::Result<OwnedFd> {
        let ended = || io::Error::other("its init was ended before");
        self.pidfd.as_ref().ok_or_else(ended)?.try_clone()
    }

    /// Stops serving and closes what would keep the output open.
    pub(crate) fn close(&mut self) {
        self.stop.send_replace(true);
        self.background = None;
        self.stdio = None;
    }

    /// The work of shipping the rest of the output; `true` when nothing is left of it.
    pub(crate) fn finish(&self) -> impl Future<Output = bool> + Send + 'static {
        let [stdout, stderr] = self.captures.clone();
        async move {
            let both = async { tokio::join!(stdout.finish(), stderr.finish()) };
            matches!(tokio::time::timeout(FINISH_WAIT_MAX, both).await, Ok((true, true)))
        }
    }

    /// The work of ending the container's init and with it every process of the container.
    pub(crate) fn end_init(&mut self) -> impl Future<Output = io::Result<()>> + Send + 'static {
        let (guest, pidfd) = (self.guest.clone(), self.pidfd.take());
        async move {
            // One that is gone already needs no telling.
            let _ = guest.shutdown(Duration::ZERO).await;
            let pidfd = pidfd.ok_or_else(|| io::Error::other("its init was ended before"))?;
            let pidfd = evoke_runtime::fds::watch(pidfd, Interest::READABLE)?;
            let ended = tokio::time::timeout(INIT_END_WAIT, pidfd.readable()).await;
            ended.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?.map(drop)
        }
    }
}

/// Starts capturing one stream of a container; without a pipe only what its spool still holds.
pub(crate) fn capture(
    shared: &Shared,
    record: &Record,
    fd: OutputFd,
    pipe: Option<OwnedFd>,
    taken_over: u64,
) -> io::Result<Capture> {
    let (capture, work) = Capture::new(CaptureConfig {
        source: Source { task: record.task, app: record.app, function: record.function, fd },
        spool: Spool::open(spool_path(&shared.config.spool_folder, record.task, fd))?,
        pipe,
        taken_over,
        control: shared.deps.control.clone(),
        clock: shared.deps.clock.clone(),
    })?;
    tasks::spawn(TaskKind::Capture, record.task, work);
    Ok(capture)
}

fn nonblocking(fd: OwnedFd) -> io::Result<OwnedFd> {
    rustix::io::ioctl_fionbio(fd.as_fd(), true)?;
    Ok(fd)
}

fn serve(shared: &Shared, entry: &Arc<Entry>, listener: ContainerListener, stopped: watch::Receiver<bool>) {
    let service = Arc::new(ContainerService { entry: entry.clone(), control: shared.deps.control.clone() });
    let (ingress, task) = (shared.deps.ingress.clone(), entry.task);
    let served = async move {
        let origin = prepare::origin().into();
        if let Err(error) = ingress.serve_container(task, listener, origin, service, stopped).await {
            tracing::error!(%task, %error, "a container's listener is not served");
        }
    };
    tasks::spawn(TaskKind::Listener, entry.task, served);
}
