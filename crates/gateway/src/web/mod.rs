//! Web functions: requests of the outside become messages to an application and its messages an answer.
//!
//! - `route`: which web function a request is for.
//! - `head`: what of a request's headers the application is told, and what the gateway says itself.
//! - `exchange`: the life of a request: admission, its beginning, the wait for an answer, being sent away.
//! - `upload`: the body on its way to the application.
//! - `reply`: the application's messages as a response.
//! - `waiting`: requests whose clients were sent away to ask again.
//! - `direct`: requests that go to a server inside of a container as they are.
//! - `handshake`, `socket`: the same for WebSockets.

mod direct;
mod exchange;
mod handshake;
mod head;
mod reply;
mod route;
mod socket;
mod upload;
mod waiting;

use evoke_proto::web::{ANSWER_MS_MAX, WebAddress, WebApps};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

use crate::Listener;
use crate::accept::{self, Room};
use crate::connection::{AnswerBody, Answers, Connection};
use crate::routes::text;

pub(crate) use reply::WebBody;

/// Connections at a time on one listener of a web function; further ones wait to be accepted.
const WEB_CONNECTIONS_MAX: u32 = 8_192;
/// Largest body of a request, in bytes: 4 GiB, as the official documentation of web endpoints has it.
const BODY_BYTES_MAX: u64 = 4 << 30;
/// How long a client may send nothing of a body that it began, in milliseconds.
const BODY_STALL_MS_MAX: u64 = 120_000;

/// A request whose client was sent away waits for it so long.
const PARKED_MAX: Duration = Duration::from_secs(10 * 60);

/// How long a client of a WebSocket may take nothing of what is sent to it, in milliseconds.
const WRITE_STALL_MS_MAX: u64 = 60_000;

/// What requests for web functions may take.
#[derive(Debug, Clone)]
pub struct WebLimits {
    /// A request that is not answered within this time is sent away, to ask again.
    pub answer: Duration,
    /// How long a request whose client was sent away waits for it.
    pub parked: Duration,
    /// Largest body of a request, in bytes.
    pub body_bytes: u64,
    /// How long a client may send nothing of a body that it began.
    pub body_stall: Duration,
    /// How long a client of a WebSocket may take nothing of what is sent to it.
    pub write_stall: Duration,
    /// Connections at a time on one listener; further ones wait to be accepted.
    pub connections: u32,
}

impl Default for WebLimits {
    fn default() -> Self {
        Self {
            answer: Duration::from_millis(ANSWER_MS_MAX),
            parked: PARKED_MAX,
            body_bytes: BODY_BYTES_MAX,
            body_stall: Duration::from_millis(BODY_STALL_MS_MAX),
            write_stall: Duration::from_millis(WRITE_STALL_MS_MAX),
            connections: WEB_CONNECTIONS_MAX,
        }
    }
}

/// Serves requests for web functions. Cheap to clone.
#[derive(Clone)]
pub struct WebIngress {
    inner: Arc<Inner>,
}

struct Inner {
    apps: Arc<dyn WebApps>,
    limits: WebLimits,
    waiting: waiting::Waiting,
    /// Connections to containers that no request has.
    pool: direct::Pool,
}

impl WebIngress {
    /// Serves the web functions that `apps` knows.
    pub fn new(apps: Arc<dyn WebApps>) -> Self {
        Self::with_limits(apps, WebLimits::default())
    }

    /// The same with other limits than the usual ones.
    pub fn with_limits(apps: Arc<dyn WebApps>, limits: WebLimits) -> Self {
        let waiting = waiting::Waiting::new(limits.parked);
        Self { inner: Arc::new(Inner { apps, limits, waiting, pool: direct::Pool::default() }) }
    }

    /// Serves `listener` until `stop` turns true (or its sender is gone), then lets the requests that were
    /// begun end, within a bound. A request whose host names no other web function is for the one at
    /// `default`.
    pub async fn serve(&self, listener: Listener, default: WebAddress, stop: watch::Receiver<bool>) {
        let room = Room::of(self.inner.limits.connections);
        let port = Port { web: self.clone(), default };
        accept::serve(listener, room, Arc::new(port), stop).await;
    }
}

/// What the connections of a web function's own listener are served with.
struct Port {
    web: WebIngress,
    default: WebAddress,
}

impl Answers for Port {
    async fn answer(&self, connection: &Arc<Connection>, request: Request<Incoming>) -> Response<AnswerBody> {
        match self.web.route_or(&request, &self.default) {
            Some(endpoint) => self.web.answer(endpoint, connection, request).await,
            None => text(StatusCode::NOT_FOUND, "There is no web function at this address.\n")
                .map(AnswerBody::Http),
        }
    }
}
