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
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Sleep, sleep};

pub(crate) use body::{DirectBody, Slot};
pub(crate) use line::Pool;
pub(super) use tunnel::Upgrade;

use self::body::Sent;
use self::line::{Answering, Line, Unanswered};
use super::exchange::{Place, Said, ended, sent_away};
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
    /// What is left of its time.
    time: Time,
}

/// The time that a request has in all; none where nobody bounds it.
struct Time(Option<Pin<Box<Sleep>>>);

impl Time {
    fn of(timeout: Option<Duration>) -> Self {
        Self(timeout.map(|timeout| Box::pin(sleep(timeout))))
    }

    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().map_or(Poll::Pending, |sleep| sleep.as_mut().poll(cx))
    }

    async fn over(&mut self) {
        poll_fn(|cx| self.poll_over(cx)).await;
    }
}

/// The end of a request whose time is over.
fn timed_out() -> WebEnd {
    WebEnd::TimedOut("it took longer than its function allows".to_owned())
}

/// What became of a request that was to be passed on.
pub(super) enum Passed {
    /// This.
    To(Result<Response<AnswerBody>, Box<Said>>),
    /// Its server cannot be reached, nothing was sent, and another container may have it.
    Nowhere(Box<(Parts, Incoming)>),
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
    ) -> Passed {
        let line = match self.line(&direct.target).await {
            Ok(line) => line,
            Err(error) if direct.call.is_some() => {
                direct.slot.ended(WebEnd::Unreachable(error.to_string()));
                return Passed::Nowhere(Box::new((parts, body)));
            }
            Err(error) => return Passed::To(Err(unreachable(None, &mut Slot::new(direct.slot), &error))),
        };
        Passed::To(self.pass_by(line, endpoint, place, parts, body, direct).await)
    }

    async fn pass_by(
        &self,
        mut line: Line,
        endpoint: &WebEndpoint,
        place: &Place,
        parts: Parts,
        body: Incoming,
        direct: WebDirect,
    ) -> Result<Response<AnswerBody>, Box<Said>> {
        let WebDirect { call, target, timeout, headers, slot } = direct;
        let slot = Slot::new(slot);
        let limits = &self.inner.limits;
        let (sent, through) = Sent::of(body, limits.body_bytes, limits.body_stall);
        // What was sent may have had its effect, so that only what has none may be sent once more. What is a call
        // is tried once.
        let repeatable = call.is_none() && through.is_none() && parts.method.is_idempotent();
        let request = request(parts, sent, headers);
        let kept = repeatable.then(|| clone(&request));
        let answering = line.send(request);
        let mut awaited = Awaited { call, target, slot, line, answering, time: Time::of(timeout) };
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
            let Some(answer) = answer else {
                let end = timed_out();
                let said = match call {
                    Some(call) => ended(call, &end),
                    None => text(StatusCode::GATEWAY_TIMEOUT, "There was no answer in time.\n"),
                };
                awaited.slot.ended(end);
                return Err(said.into());
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
            let line = Line::to(&awaited.target).await;
            awaited.line = line.map_err(|error| unreachable(call, &mut awaited.slot, &error))?;
            awaited.answering = awaited.line.send(request);
        }
        let Some(call) = awaited.call else {
            return Err(text(StatusCode::GATEWAY_TIMEOUT, "There was no answer in time.\n").into());
        };
        self.inner.waiting.park(endpoint, parked::exchange(call, awaited));
        Err(sent_away(place.to_ask_again(call)).into())
    }

    /// A connection to a server, one that is there already if there is.
    async fn line(&self, target: &DirectTarget) -> std::io::Result<Line> {
        match self.inner.pool.take(target).await {
            Some(line) => Ok(line),
            None => Line::to(target).await,
        }
    }

    fn passed(&self, answer: Response<Incoming>, awaited: Awaited) -> Response<WebBody> {
        let (mut parts, body) = answer.into_parts();
        of_the_answer(&mut parts.headers);
        parts.version = Version::HTTP_11;
        let Awaited { target, slot, line, time, .. } = awaited;
        let body = DirectBody::new(body, line, self.inner.pool.clone(), target, slot, time);
        Response::from_parts(parts, WebBody::Direct(Box::new(body)))
    }
}

impl Awaited {
    /// The answer, or none in time.
    async fn answer(&mut self) -> Option<Result<Response<Incoming>, Unanswered>> {
        poll_fn(|cx| match self.line.poll_answer(&mut self.answering, cx) {
            Poll::Ready(answer) => Poll::Ready(Some(answer)),
            Poll::Pending => self.time.poll_over(cx).map(|()| None),
        })
        .await
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
    let end = WebEnd::Failed(format!("its server gave no answer: {error}"));
    let said = awaited.call.map(|call| ended(call, &end));
    awaited.slot.ended(end);
    if let Some(said) = said {
        return said;
    }
    text(StatusCode::BAD_GATEWAY, format!("The application's server gave no answer{named}.\n"))
}

fn unreachable(call: Option<CallId>, slot: &mut Slot, error: &std::io::Error) -> Box<Said> {
    let end = WebEnd::Failed(format!("its server cannot be reached: {error}"));
    let said = call.map(|call| ended(call, &end));
    slot.ended(end);
    if let Some(said) = said {
        return said.into();
    }
    let named = named(call);
    text(StatusCode::BAD_GATEWAY, format!("The application's server cannot be reached{named}: {error}.\n"))
        .into()
}

fn named(call: Option<CallId>) -> String {
    call.map(|call| format!(" ({call})")).unwrap_or_default()
}
