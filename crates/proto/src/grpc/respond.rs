//! Makes the HTTP answer of a call: head, messages, trailers.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bytes::{BufMut, Bytes, BytesMut};
use futures::StreamExt;
use http::{HeaderMap, HeaderName, HeaderValue, Response, header};
use http_body::{Body, Frame, SizeHint};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::time::{Instant, Sleep};

use crate::invoke::{DETAILS_BYTES_MAX, cut, deadline_exceeded};
use crate::{BoxStream, CallContext, Code, Status};

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC_DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");
const WARNING: HeaderName = HeaderName::from_static("x-modal-warning");
const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/grpc+proto");

/// Messages up to this size travel in one piece with their prefix, at the price of a copy.
const COPY_MAX: usize = 16 << 10;

/// What gRPC wants encoded: all but printable ASCII, and the percent sign itself.
const ENCODED: &AsciiSet = &CONTROLS.add(b'%');

/// The body of an answer.
pub struct GrpcBody {
    /// What is ready to be sent.
    ready: VecDeque<Frame<Bytes>>,
    source: Option<Box<Source>>,
}

/// Where further messages come from.
struct Source {
    stream: BoxStream<Result<Bytes, Status>>,
    context: CallContext,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl GrpcBody {
    /// No body at all.
    pub fn empty() -> Self {
        Self { ready: VecDeque::new(), source: None }
    }

    fn push_message(&mut self, message: Bytes) {
        let mut prefix =
            BytesMut::with_capacity(5 + if message.len() <= COPY_MAX { message.len() } else { 0 });
        prefix.put_u8(0);
        // Nothing that this server answers comes near the four GiB that the prefix can say.
        prefix.put_u32(message.len() as u32);
        if message.len() <= COPY_MAX {
            prefix.extend_from_slice(&message);
            self.ready.push_back(Frame::data(prefix.freeze()));
        } else {
            self.ready.push_back(Frame::data(prefix.freeze()));
            self.ready.push_back(Frame::data(message));
        }
    }

    fn finish(&mut self, result: Result<(), Status>, warnings: &[String]) {
        self.source = None;
        self.ready.push_back(Frame::trailers(trailers(result, warnings)));
    }
}

impl Body for GrpcBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(frame) = self.ready.pop_front() {
            return Poll::Ready(Some(Ok(frame)));
        }
        let Some(source) = &mut self.source else { return Poll::Ready(None) };
        let late = source.deadline.as_mut().is_some_and(|sleep| sleep.as_mut().poll(cx).is_ready());
        let item = if late {
            Some(Err(deadline_exceeded()))
        } else {
            match source.stream.poll_next_unpin(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(item) => item,
            }
        };
        let warnings = if matches!(item, Some(Ok(_))) { Vec::new() } else { source.context.warnings() };
        match item {
            Some(Ok(message)) => self.push_message(message),
            Some(Err(status)) => self.finish(Err(status), &warnings),
            None => self.finish(Ok(()), &warnings),
        }
        Poll::Ready(self.ready.pop_front().map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.ready.is_empty() && self.source.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        if self.is_end_stream() { SizeHint::with_exact(0) } else { SizeHint::default() }
    }
}

/// The answer of a call with one message.
pub fn unary(message: Bytes, warnings: &[String]) -> Response<GrpcBody> {
    let mut body = GrpcBody::empty();
    body.push_message(message);
    body.finish(Ok(()), warnings);
    respond(body)
}

/// The answer of a call with a stream of messages.
pub fn stream(
    stream: BoxStream<Result<Bytes, Status>>,
    context: CallContext,
    deadline: Option<Instant>,
) -> Response<GrpcBody> {
    let deadline = deadline.map(|at| Box::pin(tokio::time::sleep_until(at)));
    respond(GrpcBody { ready: VecDeque::new(), source: Some(Box::new(Source { stream, context, deadline })) })
}

/// The answer of a call that failed before its first message: only a head.
pub fn failure(status: Status, warnings: &[String]) -> Response<GrpcBody> {
    let mut response = respond(GrpcBody::empty());
    response.headers_mut().extend(trailers(Err(status), warnings));
    response
}

fn respond(body: GrpcBody) -> Response<GrpcBody> {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, CONTENT_TYPE);
    response
}

fn trailers(result: Result<(), Status>, warnings: &[String]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for warning in warnings {
        if let Some(value) = text(warning) {
            map.append(WARNING, value);
        }
    }
    let code = match &result {
        Ok(()) => Code::Ok,
        Err(status) => status.code,
    };
    map.insert(GRPC_STATUS, HeaderValue::from(code as u16));
    if let Err(status) = result {
        if let Some(value) = text(&status.message) {
            map.insert(GRPC_MESSAGE, value);
        }
        let details = status.details.filter(|details| details.len() <= DETAILS_BYTES_MAX);
        if let Some(Ok(value)) = details.map(|d| HeaderValue::from_str(&STANDARD_NO_PAD.encode(d))) {
            map.insert(GRPC_DETAILS, value);
        }
    }
    map
}

/// Text as a header value, cut to the bound. Always succeeds: encoded text is printable ASCII.
fn text(text: &str) -> Option<HeaderValue> {
    HeaderValue::from_str(&utf8_percent_encode(cut(text), ENCODED).to_string()).ok()
}
