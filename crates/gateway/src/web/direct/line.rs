//! Connections to servers inside of containers. Whoever has one drives it: there is no task behind it, so that
//! a request passes through without being handed from one thread to another.

use evoke_proto::web::DirectTarget;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use std::collections::HashMap;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, sleep_until, timeout};

use super::bell::Bell;
use super::body::Sent;

/// How long a server may take to accept a connection, in milliseconds.
const CONNECT_MS_MAX: u64 = 10_000;
/// How long a connection without a request is kept, in milliseconds: less than servers do, which close theirs
/// after 2 s (gunicorn) or 5 s (uvicorn, Node).
const IDLE_MS_MAX: u64 = 1_500;
/// Connections without a request that are kept for one target.
const IDLE_MAX: usize = 256;
/// Size of all headers of an answer, in bytes, and their number.
const HEAD_BYTES_MAX: usize = 256 << 10;
const HEADERS_MAX: usize = 256;

/// A connection by either kind of socket.
pub(super) enum Wire {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Wire {
    pub(super) async fn to(target: &DirectTarget) -> io::Result<Self> {
        let connecting = async {
            match target {
                DirectTarget::Tcp(address) => {
                    let stream = TcpStream::connect(address).await?;
                    // Only latency is lost where this fails.
                    let _ = stream.set_nodelay(true);
                    Ok(Wire::Tcp(stream))
                }
                DirectTarget::Unix(path) => UnixStream::connect(path).await.map(Wire::Unix),
            }
        };
        timeout(Duration::from_millis(CONNECT_MS_MAX), connecting).await?
    }
}

/// Calls a method of the stream inside.
macro_rules! inner {
    ($self:ident, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Wire::Tcp($stream) => $call,
            Wire::Unix($stream) => $call,
        }
    };
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        inner!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        inner!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        inner!(self, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }
    fn is_write_vectored(&self) -> bool {
        true
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        inner!(self, stream => Pin::new(stream).poll_flush(cx))
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        inner!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

pub(super) fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.max_header_size(HEAD_BYTES_MAX).max_headers(HEADERS_MAX);
    builder
}

/// A connection that carries one request at a time.
pub(super) struct Line {
    sender: SendRequest<Sent>,
    connection: Connection<TokioIo<Wire>, Sent>,
    bell: Bell,
    /// The other end closed, or something broke.
    ended: bool,
    /// Whether it has carried a request before.
    pub(super) used: bool,
}

/// What became of a request that got no answer.
pub(super) struct Unanswered {
    pub(super) error: hyper::Error,
    /// The request, where none of it was sent.
    pub(super) unsent: Option<Request<Sent>>,
}

/// An answer that is awaited.
pub(super) type Answering = Pin<Box<dyn Future<Output = Result<Response<Incoming>, Unanswered>> + Send>>;

impl Line {
    pub(super) async fn to(target: &DirectTarget) -> io::Result<Self> {
        let io = TokioIo::new(Wire::to(target).await?);
        let (sender, connection) = builder().handshake(io).await.map_err(io::Error::other)?;
        Ok(Self { sender, connection, bell: Bell::new(), ended: false, used: false })
    }

    /// Moves bytes, as far as there are any to be moved, and asks `wanted` for what they made.
    pub(super) fn drive<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut wanted: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let Self { connection, bell, ended, .. } = self;
        bell.poll(cx, |cx| {
            let made = wanted(cx);
            if made.is_ready() || *ended {
                return made;
            }
            *ended = Pin::new(&mut *connection).poll(cx).is_ready();
            wanted(cx)
        })
    }

    pub(super) fn is_ended(&self) -> bool {
        self.ended
    }

    /// Sends a request; the answer comes while the line is driven, which has to begin at once.
    pub(super) fn send(&mut self, request: Request<Sent>) -> Answering {
        let Self { sender, bell, .. } = self;
        let answering = bell.quietly(|| sender.try_send_request(request));
        Box::pin(async move {
            answering.await.map_err(|mut unanswered| {
                let unsent = unanswered.take_message();
                Unanswered { error: unanswered.into_error(), unsent }
            })
        })
    }

    /// Drives it until its answer is there.
    pub(super) fn poll_answer(
        &mut self,
        answering: &mut Answering,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Response<Incoming>, Unanswered>> {
        self.drive(cx, |cx| answering.as_mut().poll(cx))
    }

    /// Whether it can carry another request.
    fn is_free(&mut self, cx: &mut Context<'_>) -> bool {
        let _: Poll<()> = self.drive(cx, |_| Poll::Pending);
        !self.ended && self.sender.is_ready()
    }
}

struct Idle {
    line: Line,
    since: Instant,
}

/// Connections without a request, by where they lead. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Pool {
    idle: Arc<Mutex<HashMap<DirectTarget, Vec<Idle>>>>,
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, HashMap<DirectTarget, Vec<Idle>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection that is there already, the one that was used last.
    pub(super) async fn take(&self, target: &DirectTarget) -> Option<Line> {
        loop {
            let mut line = self.lock().get_mut(target)?.pop()?.line;
            // With the task's own waker: what the server said since, above all that it closed, is heard here.
            let free = std::future::poll_fn(|cx| Poll::Ready(line.is_free(cx))).await;
            if free {
                return Some(line);
            }
        }
    }

    /// Keeps a connection whose answer is complete.
    pub(super) fn keep(&self, target: &DirectTarget, mut line: Line) {
        // It has to notice that its answer is complete; nobody waits for anything of it.
        if !line.is_free(&mut Context::from_waker(Waker::noop())) {
            return;
        }
        line.used = true;
        let mut idle = self.lock();
        let first = idle.is_empty();
        match idle.get_mut(target) {
            Some(lines) if lines.len() >= IDLE_MAX => {}
            Some(lines) => lines.push(Idle { line, since: Instant::now() }),
            None => {
                idle.insert(target.clone(), vec![Idle { line, since: Instant::now() }]);
            }
        }
        drop(idle);
        if first {
            tokio::spawn(self.clone().close_old());
        }
    }

    /// Closes what is idle for too long, as long as there is anything.
    async fn close_old(self) {
        loop {
            let limit = Duration::from_millis(IDLE_MS_MAX);
            let oldest = {
                let mut idle = self.lock();
                let now = Instant::now();
                idle.retain(|_, lines| {
                    let old = lines.partition_point(|idle| now.duration_since(idle.since) >= limit);
                    lines.drain(..old);
                    !lines.is_empty()
                });
                idle.values().filter_map(|lines| lines.first()).map(|idle| idle.since).min()
            };
            let Some(oldest) = oldest else { return };
            let mut due = pin!(sleep_until(oldest + limit));
            due.as_mut().await;
        }
    }
}
