//! Bodies of direct requests: the client's on its way in, the server's on its way out.

use bytes::Bytes;
use evoke_core::{Error, ErrorCode};
use evoke_proto::web::{DirectSlot, DirectTarget, WebEnd};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep, sleep};

use super::line::{Line, Pool};
use super::{Time, timed_out};

/// The body of a request on its way to a server.
pub(super) enum Sent {
    /// There is none.
    Nothing,
    /// It comes from the client.
    Client(Box<FromClient>),
}

pub(super) struct FromClient {
    body: Incoming,
    left: u64,
    stall: Duration,
    stalled: Pin<Box<Sleep>>,
    waits: bool,
    /// Tells by its end that the body is through.
    _through: oneshot::Sender<()>,
}

impl Sent {
    /// The body of a client, with what tells that it is through where there is one at all.
    pub(super) fn of(
        body: Incoming,
        bytes_max: u64,
        stall: Duration,
    ) -> (Self, Option<oneshot::Receiver<()>>) {
        if body.is_end_stream() {
            return (Sent::Nothing, None);
        }
        let (through, is_through) = oneshot::channel();
        let stalled = Box::pin(sleep(stall));
        let body = FromClient { body, left: bytes_max, stall, stalled, waits: false, _through: through };
        (Sent::Client(Box::new(body)), Some(is_through))
    }
}

impl Body for Sent {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let body = match self.get_mut() {
            Sent::Nothing => return Poll::Ready(None),
            Sent::Client(body) => body,
        };
        let frame = match Pin::new(&mut body.body).poll_frame(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                if !body.waits {
                    body.waits = true;
                    body.stalled.as_mut().reset(Instant::now() + body.stall);
                }
                std::task::ready!(body.stalled.as_mut().poll(cx));
                return Poll::Ready(Some(Err(Error::new(
                    ErrorCode::DeadlineExceeded,
                    "The request's body did not come in time",
                ))));
            }
        };
        body.waits = false;
        Poll::Ready(match frame {
            Some(Ok(frame)) => {
                let length = frame.data_ref().map_or(0, |data| data.len() as u64);
                match body.left.checked_sub(length) {
                    Some(left) => {
                        body.left = left;
                        Some(Ok(frame))
                    }
                    None => {
                        Some(Err(Error::new(ErrorCode::ResourceExhausted, "The request's body is too large")))
                    }
                }
            }
            Some(Err(error)) => Some(Err(Error::invalid(format!("The request's body broke off: {error}")))),
            None => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Sent::Nothing => true,
            Sent::Client(body) => body.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Sent::Nothing => SizeHint::with_exact(0),
            Sent::Client(body) => body.body.size_hint(),
        }
    }
}

/// What a request holds of its container; given back as cancelled where nothing else was said.
pub(crate) struct Slot(Option<Box<dyn DirectSlot>>);

impl Slot {
    pub(super) fn new(slot: Box<dyn DirectSlot>) -> Self {
        Self(Some(slot))
    }

    pub(crate) fn ended(&mut self, end: WebEnd) {
        if let Some(slot) = self.0.take() {
            slot.ended(end);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.ended(WebEnd::Cancelled);
    }
}

/// The body of a server's answer. It drives the connection that it comes by.
pub(crate) struct DirectBody {
    body: Incoming,
    /// None once the answer is complete or broke off.
    line: Option<Line>,
    pool: Pool,
    target: DirectTarget,
    slot: Slot,
    time: Time,
}

impl DirectBody {
    pub(super) fn new(
        body: Incoming,
        line: Line,
        pool: Pool,
        target: DirectTarget,
        slot: Slot,
        time: Time,
    ) -> Self {
        let mut body = Self { body, line: Some(line), pool, target, slot, time };
        if body.body.is_end_stream() {
            body.complete();
        }
        body
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let Some(line) = &mut self.line else { return Poll::Ready(None) };
        let body = &mut self.body;
        let frame = line.drive(cx, |cx| Pin::new(&mut *body).poll_frame(cx));
        if frame.is_pending() && line.is_ended() {
            return Poll::Ready(Some(Err(self.broken("its connection ended".to_owned()))));
        }
        match frame {
            Poll::Ready(None) => {
                self.complete();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(self.broken(error.to_string())))),
            Poll::Ready(Some(Ok(frame))) => {
                if self.body.is_end_stream() {
                    self.complete();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Pending => self.time.poll_over(cx).map(|()| {
                self.line = None;
                self.slot.ended(timed_out());
                Some(Err(Error::new(ErrorCode::DeadlineExceeded, "The answer did not end in its time")))
            }),
        }
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }

    fn complete(&mut self) {
        if let Some(line) = self.line.take() {
            self.slot.ended(WebEnd::Done);
            self.pool.keep(&self.target, line);
        }
    }

    fn broken(&mut self, why: String) -> Error {
        self.line = None;
        let why = format!("The answer of the application's server broke off: {why}");
        self.slot.ended(WebEnd::Failed(why.clone()));
        Error::internal(why)
    }
}
