//! An application's messages as the response that they make, or the reason why they make none.

use bytes::Bytes;
use evoke_core::{CallId, Error};
use evoke_proto::web::{FromApp, WebEnd, WebExchange};
use http::response::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use super::direct::{DirectBody, Slot};
use super::head::is_of_the_hop;
use super::upload::{Upload, Uploaded};
use super::waiting::Passing;

/// How long an application may go on with an answer that has no body, in milliseconds.
const DRAIN_MS_MAX: u64 = 10_000;

/// The body of a web function's answer.
pub(crate) enum WebBody {
    /// There is none.
    Empty,
    /// It comes by messages.
    Messages(Box<MessagesBody>),
    /// It comes from a server as it is.
    Direct(Box<DirectBody>),
    /// It comes from a server that refused to become something else than HTTP.
    Refusal(Box<(Incoming, Slot)>),
    /// It is copied on its way.
    Passing(Box<Passing>),
}

impl Body for WebBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match self.get_mut() {
            WebBody::Empty => Poll::Ready(None),
            WebBody::Messages(body) => body.poll(cx),
            WebBody::Direct(body) => body.poll(cx),
            WebBody::Passing(body) => body.poll(cx),
            WebBody::Refusal(refusal) => {
                let (body, slot) = &mut **refusal;
                let frame = ready!(Pin::new(&mut *body).poll_frame(cx));
                if frame.is_none() || body.is_end_stream() {
                    slot.ended(WebEnd::Done);
                }
                Poll::Ready(frame.map(|frame| frame.map_err(|error| Error::internal(error.to_string()))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            WebBody::Empty => true,
            WebBody::Messages(body) => body.awaits == Awaits::Nothing,
            WebBody::Direct(body) => body.is_end_stream(),
            WebBody::Passing(body) => body.is_end_stream(),
            WebBody::Refusal(refusal) => refusal.0.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            WebBody::Empty => SizeHint::with_exact(0),
            WebBody::Messages(body) => body.left.map(SizeHint::with_exact).unwrap_or_default(),
            WebBody::Direct(body) => body.size_hint(),
            WebBody::Passing(body) => body.size_hint(),
            WebBody::Refusal(refusal) => refusal.0.size_hint(),
        }
    }
}

/// The response that an application began, with its body to come.
pub(super) fn begin(
    exchange: WebExchange,
    upload: Option<Upload>,
    method: &Method,
    start: (u16, Vec<(Bytes, Bytes)>, bool),
) -> Result<Response<WebBody>, String> {
    let (status, headers, trailers) = start;
    let (parts, length) = head(status, headers)?;
    let bodiless = *method == Method::HEAD
        || matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        || length == Some(0);
    let body = if bodiless {
        tokio::spawn(drain(exchange, upload));
        WebBody::Empty
    } else {
        let call = exchange.call;
        let exchange = Some(exchange);
        let body = MessagesBody {
            exchange,
            call,
            upload,
            left: length,
            awaits: Awaits::Body,
            trailers,
            is_complete: false,
        };
        WebBody::Messages(Box::new(body))
    };
    Ok(Response::from_parts(parts, body))
}

/// Takes what an application still says after an answer that has no body, so that it is not told that its
/// client is gone before it is done.
async fn drain(mut exchange: WebExchange, upload: Option<Upload>) {
    let rest = async {
        loop {
            match exchange.from_app.recv().await {
                None | Some(FromApp::Ended(_)) => return,
                Some(_) => {}
            }
        }
    };
    // Who takes longer is told after all.
    let _ = tokio::time::timeout(Duration::from_millis(DRAIN_MS_MAX), rest).await;
    if let Some(upload) = upload {
        upload.finish();
    }
}

fn head(status: u16, given: Vec<(Bytes, Bytes)>) -> Result<(Parts, Option<u64>), String> {
    let status = match StatusCode::from_u16(status) {
        Ok(code) if !code.is_informational() => code,
        _ => return Err(format!("answered with the status {status}")),
    };
    let (mut parts, ()) = Response::new(()).into_parts();
    parts.headers = headers(given)?;
    let length = content_length(&parts.headers)?;
    if status == StatusCode::NO_CONTENT {
        parts.headers.remove(header::CONTENT_LENGTH);
    } else if let Some(length) = length {
        parts.headers.insert(header::CONTENT_LENGTH, length.into());
    }
    parts.status = status;
    Ok((parts, length))
}

/// Headers or trailers of an application.
pub(super) fn headers(given: Vec<(Bytes, Bytes)>) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::with_capacity(given.len());
    for (name, value) in given {
        let shown = || String::from_utf8_lossy(&name).escape_debug().to_string();
        let name = HeaderName::from_bytes(&name)
            .map_err(|_| format!("answered with a header of the name {:?}", shown()))?;
        let value = HeaderValue::from_bytes(value.trim_ascii())
            .map_err(|_| format!("answered with a header `{name}` whose value is no header's value"))?;
        if !is_of_the_hop(&name) {
            headers.append(name, value);
        }
    }
    Ok(headers)
}

fn content_length(headers: &HeaderMap) -> Result<Option<u64>, String> {
    let mut found = None;
    for value in headers.get_all(header::CONTENT_LENGTH) {
        let digits = value.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        let length = digits.and_then(|digits| digits.parse::<u64>().ok());
        match (length, found) {
            (None, _) => return Err(format!("answered with the content length {value:?}")),
            (Some(length), Some(other)) if length != other => {
                return Err(format!("answered with two content lengths, {other} and {length}"));
            }
            _ => found = length,
        }
    }
    Ok(found)
}

/// What of an answer is still to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Awaits {
    Body,
    Trailers,
    Nothing,
}

/// A body that comes by messages.
pub(crate) struct MessagesBody {
    /// None once it is left to be drained.
    exchange: Option<WebExchange>,
    call: CallId,
    upload: Option<Upload>,
    /// What is left of the length that the application gave.
    left: Option<u64>,
    awaits: Awaits,
    trailers: bool,
    /// The application said all of it.
    is_complete: bool,
}

impl MessagesBody {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if self.awaits == Awaits::Nothing {
            return Poll::Ready(None);
        }
        if let Some(Poll::Ready(ended)) = self.upload.as_mut().map(|upload| upload.poll(cx)) {
            self.upload = None;
            match ended {
                Uploaded::Whole => {}
                Uploaded::Gone => return self.cut("its client went away"),
                Uploaded::TooLarge => return self.cut("its request's body was too large"),
                Uploaded::Stalled => return self.cut("its client stopped sending"),
            }
        }
        loop {
            let Some(exchange) = &mut self.exchange else { return Poll::Ready(None) };
            let message = ready!(exchange.from_app.poll_recv(cx));
            match (message, self.awaits) {
                (Some(FromApp::Body(bytes, more)), Awaits::Body) => match self.body(bytes, more) {
                    Ok(None) if self.awaits == Awaits::Nothing => return Poll::Ready(None),
                    Ok(None) => {}
                    Ok(Some(bytes)) => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
                    Err(why) => return self.garbage(&why),
                },
                (Some(FromApp::Trailers(given, more)), Awaits::Trailers) => {
                    if !more {
                        self.awaits = Awaits::Nothing;
                        self.is_complete = true;
                    }
                    return match headers(given) {
                        Ok(trailers) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                        Err(why) => self.garbage(&why),
                    };
                }
                (Some(FromApp::Ended(WebEnd::Done)), Awaits::Trailers) => {
                    self.awaits = Awaits::Nothing;
                    return Poll::Ready(None);
                }
                (Some(FromApp::Ended(WebEnd::Done)), _) => {
                    return self.garbage("returned before its answer was complete");
                }
                (Some(FromApp::Ended(WebEnd::Failed(why) | WebEnd::TimedOut(why))), _) => {
                    return self.cut(&why);
                }
                (Some(FromApp::Ended(WebEnd::Cancelled)), _) => return self.cut("it was cancelled"),
                (Some(other), _) => return self.garbage(&out_of_place(&other)),
                (None, _) => return self.cut("what became of it is not known"),
            }
        }
    }

    fn body(&mut self, bytes: Bytes, more: bool) -> Result<Option<Bytes>, String> {
        if let Some(left) = &mut self.left {
            *left = left
                .checked_sub(bytes.len() as u64)
                .ok_or("answered with more than the content length that it gave")?;
            if !more && *left > 0 {
                return Err(format!("answered with {left} bytes less than the content length that it gave"));
            }
        }
        if !more {
            self.awaits = if self.trailers { Awaits::Trailers } else { Awaits::Nothing };
            self.is_complete = !self.trailers;
        }
        Ok((!bytes.is_empty()).then_some(bytes))
    }

    /// The application broke the rules, after the client was told the status: all that can be done is not to
    /// let it look complete.
    fn garbage(&mut self, why: &str) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        warn_of(self.call, why);
        self.cut(why)
    }

    fn cut(&mut self, why: &str) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        tracing::debug!(call = %self.call, why, "an answer is broken off");
        self.awaits = Awaits::Nothing;
        Poll::Ready(Some(Err(Error::internal(format!("The answer is broken off: {why}")))))
    }
}

impl Drop for MessagesBody {
    /// Nobody asks for what comes behind the last byte of a body whose length is known: it is the client that has
    /// all of it, not one that left.
    fn drop(&mut self) {
        if self.is_complete
            && let Some(upload) = self.upload.take()
        {
            upload.finish();
        } else if self.left == Some(0)
            && self.awaits != Awaits::Nothing
            && let Some(exchange) = self.exchange.take()
        {
            tokio::spawn(drain(exchange, self.upload.take()));
        }
    }
}

/// Says in the log that an application broke the rules.
pub(super) fn warn_of(call: CallId, why: &str) {
    tracing::warn!(%call, "a web function {why}");
}

/// What a message out of its turn is called.
pub(super) fn out_of_place(message: &FromApp) -> String {
    let name = match message {
        FromApp::Start { .. } => "a second beginning of its answer",
        FromApp::Body(..) => "a body before its answer began, or after it was complete",
        FromApp::Trailers(..) => "trailers that it had not announced",
        FromApp::Accept { .. } | FromApp::Text(_) | FromApp::Binary(_) | FromApp::Close(..) => {
            "a message of a WebSocket where there is none"
        }
        FromApp::Ended(_) => "its end",
    };
    format!("sent {name}")
}

/// How an application ended whose last message did not come.
pub(super) fn unknown_end() -> WebEnd {
    WebEnd::Failed("its end was never told".to_owned())
}
