//! Requests that go to a server inside of a container as they are: a reverse proxy.
//!
//! - `bell`: keeps a connection's wakes of its own task inside of it.
//! - `line`: connections, driven by whoever waits for their answer, and those that are kept for the next one.
//! - `body`: bodies both ways, and when a request is done.
//! - `parked`: an answer that takes too long, as an exchange that waits for its client to come back.
//! - `tunnel`: what becomes another protocol.

mod bell;
mod body;
mod line;
mod parked;
mod tunnel;

use evoke_core::{CallId, ErrorCode};
use evoke_proto::web::{DirectTarget, WebDirect, WebEnd, WebEndpoint};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri, Version};
use hyper::body::Incoming;
use std::future::poll_fn;
use std::pin::pin;
use tokio::sync::oneshot;

pub(crate) use body::{DirectBody, Slot};
pub(crate) use line::Pool;
pub(super) use tunnel::Upgrade;

use self::body::Sent;
use self::line::{Answering, Line, Unanswered};
use super::exchange::{Place, Said, sent_away};
use super::head::is_of_the_hop;
use super::{WebBody, WebIngress};
use crate::connection::AnswerBody;
use crate::routes::text;

/// A request whose answer is awaited.
struct Awaited {
    call: Option<CallId>,
    target: DirectTarget,
    slot: Slot,
    line: Line,
    answering: Answering,
}

impl WebIngress {
    /// Answers a request whose headers are clean by the server that it is for.
    pub(super) async fn pass(
        &self,
        endpoint: &WebEndpoint,
        place: &Place,
        parts: Parts,
        body: Incoming,
        direct: WebDirect,
    ) -> Result<Response<AnswerBody>, Box<Said>> {
        let WebDirect { call, target, headers, slot } = direct;
        let mut slot = Slot::new(slot);
        let limits = &self.inner.limits;
        let (sent, through) = Sent::of(body, limits.body_bytes, limits.body_stall);
        // What was sent may have had its effect, so that only what has none may be sent once more.
        let repeatable = through.is_none() && parts.method.is_idempotent();
        let request = request(parts, sent, headers);
        let kept = repeatable.then(|| clone(&request));
        let sent = self.send(&target, request, true).await;
        let (line, answering) = sent.map_err(|error| unreachable(call, &mut slot, &error))?;
        let mut awaited = Awaited { call, target, slot, line, answering };
        let mut kept = kept.filter(|_| awaited.line.used);
        let mut deadline = pin!(async {
            match call {
                Some(_) => {
                    body_is_through(through).await;
                    tokio::time::sleep(limits.answer).await;
                }
                // Nobody could come back for it.
                None => std::future::pending().await,
            }
        });
        loop {
            let answer = tokio::select! {
                answer = awaited.answer() => answer,
                () = &mut deadline => break,
            };
            let unanswered = match answer {
                Ok(answer) => return Ok(self.passed(answer, awaited).map(AnswerBody::Web)),
                Err(unanswered) => unanswered,
            };
            let again = unanswered.unsent.or_else(|| kept.take());
            let Some(request) = again.filter(|_| awaited.line.used) else {
                return Err(no_answer(&mut awaited, &unanswered.error).into());
            };
            // The connection was one that the server had given up; a new one tells whether it is there.
            let sent = self.send(&awaited.target, request, false).await;
            let (line, answering) = sent.map_err(|error| unreachable(call, &mut awaited.slot, &error))?;
            (awaited.line, awaited.answering) = (line, answering);
        }
        let Some(call) = awaited.call else {
            return Err(text(StatusCode::GATEWAY_TIMEOUT, "There was no answer in time.\n").into());
        };
        self.inner.waiting.park(endpoint, parked::exchange(call, awaited));
        Err(sent_away(place.to_ask_again(call)).into())
    }

    /// Begins to send a request, by a connection that is there already where `kept`.
    async fn send(
        &self,
        target: &DirectTarget,
        request: Request<Sent>,
        kept: bool,
    ) -> std::io::Result<(Line, Answering)> {
        let there = if kept { self.inner.pool.take(target).await } else { None };
        let mut line = match there {
            Some(line) => line,
            None => Line::to(target).await?,
        };
        let answering = line.send(request);
        Ok((line, answering))
    }

    fn passed(&self, answer: Response<Incoming>, awaited: Awaited) -> Response<WebBody> {
        let (mut parts, body) = answer.into_parts();
        of_the_answer(&mut parts.headers);
        parts.version = Version::HTTP_11;
        let Awaited { target, slot, line, .. } = awaited;
        let body = DirectBody::new(body, line, self.inner.pool.clone(), target, slot);
        Response::from_parts(parts, WebBody::Direct(Box::new(body)))
    }
}

impl Awaited {
    async fn answer(&mut self) -> Result<Response<Incoming>, Unanswered> {
        poll_fn(|cx| self.line.poll_answer(&mut self.answering, cx)).await
    }
}

async fn body_is_through(through: Option<oneshot::Receiver<()>>) {
    if let Some(through) = through {
        // Its end is what it tells.
        let _ = through.await;
    }
}

/// The request as its server gets it.
fn request(mut parts: Parts, body: Sent, headers: Vec<(&'static str, String)>) -> Request<Sent> {
    for (name, value) in headers {
        let name = HeaderName::from_static(name);
        match HeaderValue::try_from(value) {
            Ok(value) => {
                parts.headers.insert(name, value);
            }
            // What cannot be said is not left to the client to say.
            Err(_) => {
                parts.headers.remove(name);
            }
        }
    }
    // A server is asked for a path; for whose it is, it is told by the host.
    if parts.uri.authority().is_some() {
        let path = parts.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
        parts.uri = Uri::from(path);
    }
    parts.version = Version::HTTP_11;
    parts.extensions.clear();
    Request::from_parts(parts, body)
}

/// A request without a body once more.
fn clone(request: &Request<Sent>) -> Request<Sent> {
    let mut copy = Request::new(Sent::Nothing);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    copy
}

/// Takes away what of an answer's headers is only for us.
fn of_the_answer(headers: &mut HeaderMap) {
    let named = super::head::named_by_connection(headers);
    let of_the_hop: Vec<HeaderName> = headers.keys().filter(|name| is_of_the_hop(name)).cloned().collect();
    for name in named.into_iter().chain(of_the_hop) {
        headers.remove(name);
    }
}

fn no_answer(awaited: &mut Awaited, error: &hyper::Error) -> Said {
    let named = named(awaited.call);
    tracing::debug!(call = named, %error, "a server gave no answer");
    let ours = std::error::Error::source(error).and_then(|source| source.downcast_ref::<evoke_core::Error>());
    if let Some(ours) = ours.filter(|_| error.is_user()) {
        // The client's body, not the server, is what broke.
        awaited.slot.ended(WebEnd::Cancelled);
        let status = match ours.code {
            ErrorCode::ResourceExhausted => StatusCode::PAYLOAD_TOO_LARGE,
            ErrorCode::DeadlineExceeded => StatusCode::REQUEST_TIMEOUT,
            _ => StatusCode::BAD_REQUEST,
        };
        return text(status, format!("{ours}\n"));
    }
    awaited.slot.ended(WebEnd::Failed(format!("its server gave no answer: {error}")));
    text(StatusCode::BAD_GATEWAY, format!("The application's server gave no answer{named}.\n"))
}

fn unreachable(call: Option<CallId>, slot: &mut Slot, error: &std::io::Error) -> Box<Said> {
    slot.ended(WebEnd::Failed(format!("its server cannot be reached: {error}")));
    let named = named(call);
    text(StatusCode::BAD_GATEWAY, format!("The application's server cannot be reached{named}: {error}.\n"))
        .into()
}

fn named(call: Option<CallId>) -> String {
    call.map(|call| format!(" ({call})")).unwrap_or_default()
}
