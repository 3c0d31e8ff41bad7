//! Serves one connection, HTTP/2, HTTP/1 or a container's frames, to its end.

use bytes::Bytes;
use evoke_core::Error;
use evoke_proto::grpc::{GrpcBody, is_grpc};
use evoke_proto::{Peer, Service, frames, grpc};
use http::{HeaderValue, Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use crate::accept::Permit;
use crate::ingress::Identity;
use crate::preface::{Version, detect};
use crate::routes::{HttpBody, HttpRoutes};
use crate::web::{WebBody, WebIngress};
use crate::wire::Watch;
use crate::{Authenticator, authenticate, origin};

/// How long a connection may take to say which version it speaks, and an HTTP/1 connection to send the head
/// of its next request, in milliseconds.
const HEAD_MS_MAX: u64 = 30_000;
/// Size of all headers of one request, in bytes.
const HEAD_BYTES_MAX: u32 = 64 << 10;
/// Requests at a time on one HTTP/2 connection. A client that waits for many results has a call open for
/// each of them.
const STREAMS_MAX: u32 = 16_384;
/// Bytes that one request, and one connection, may send ahead of their being read.
const STREAM_WINDOW: u32 = 8 << 20;
const CONNECTION_WINDOW: u32 = 64 << 20;
/// Largest HTTP/2 frame taken, in bytes.
const FRAME_BYTES_MAX: u32 = 1 << 20;
/// Bytes of an answer that are buffered for a slow reader, per request.
const SEND_BUFFER_BYTES_MAX: usize = 2 << 20;
/// Requests that a client took back and that are not yet forgotten; a client that cancels a large map takes
/// back that many at once. More end the connection.
const RESET_STREAMS_MAX: usize = 4_096;
/// A silent HTTP/2 connection is asked after this time whether it is there, and has as long to answer.
const KEEPALIVE_MS: u64 = 30_000;

/// Answers the requests of a listener's connections.
pub(crate) trait Answers: Send + Sync + 'static {
    /// Answers one request; what goes wrong is in the answer.
    fn answer(
        &self,
        connection: &Arc<Connection>,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<AnswerBody>> + Send;

    /// What a connection of frames is served with; none where nobody who may use them comes this way.
    fn frames(&self, _peer: Peer) -> Option<Calls> {
        None
    }
}

/// What the calls of a connection of frames are served with.
pub(crate) struct Calls {
    grpc: grpc::Grpc,
    service: Arc<dyn Service>,
    caller: grpc::Caller,
}

/// What is known of a connection.
pub(crate) struct Connection {
    /// The other end.
    pub peer: Peer,
    /// The address of the other end, as a header says it.
    pub client: Option<HeaderValue>,
    /// Tells when the other end closes, where that can be told.
    pub watch: Option<Watch>,
    /// Turns true when the listener stops.
    pub stop: watch::Receiver<bool>,
    /// Its place among the connections of its listener. Whatever outlives the connection as HTTP (a WebSocket)
    /// holds it too.
    _permit: Permit,
}

impl Connection {
    pub(crate) fn new(
        peer: Peer,
        watch: Option<Watch>,
        stop: watch::Receiver<bool>,
        permit: Permit,
    ) -> Arc<Self> {
        let client = match peer {
            Peer::Net(address) => HeaderValue::try_from(address.ip().to_canonical().to_string()).ok(),
            Peer::Unix | Peer::Local => None,
        };
        Arc::new(Self { peer, client, watch, stop, _permit: permit })
    }
}

/// What a connection to the platform is served with: its listener's.
pub(crate) struct Context {
    pub identity: Identity,
    pub origin: Arc<str>,
    pub port: Option<u16>,
    pub service: Arc<dyn Service>,
    pub http: Arc<dyn HttpRoutes>,
    pub authenticator: Arc<dyn Authenticator>,
    pub grpc: grpc::Grpc,
    pub web: Option<WebIngress>,
}

/// The body of an answer of each kind.
pub(crate) enum AnswerBody {
    Grpc(GrpcBody),
    Http(HttpBody),
    Web(WebBody),
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match self.get_mut() {
            AnswerBody::Grpc(body) => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
            AnswerBody::Http(body) => Pin::new(body).poll_frame(cx),
            AnswerBody::Web(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            AnswerBody::Grpc(body) => body.is_end_stream(),
            AnswerBody::Http(body) => body.is_end_stream(),
            AnswerBody::Web(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            AnswerBody::Grpc(body) => body.size_hint(),
            AnswerBody::Http(body) => body.size_hint(),
            AnswerBody::Web(body) => body.size_hint(),
        }
    }
}

impl Answers for Context {
    async fn answer(
        &self,
        connection: &Arc<Connection>,
        mut request: Request<Incoming>,
    ) -> Response<AnswerBody> {
        let grpc = is_grpc(request.headers());
        // RPCs of the platform are the many; they are never looked up among the web functions.
        if let Some(web) = self.web.as_ref().filter(|_| !(grpc && is_platform_rpc(request.uri().path())))
            && let Some(endpoint) = web.route(&request, self.port)
        {
            return web.answer(endpoint, connection, request).await;
        }
        let principal = match self.identity {
            Identity::Container(task) => evoke_core::Principal::Container(task),
            Identity::Public => authenticate::principal(&*self.authenticator, request.headers_mut()),
        };
        // What comes over a unix socket names no address by which others could come.
        let origin = match connection.peer {
            Peer::Net(_) => origin::of(&request, &self.origin),
            Peer::Unix | Peer::Local => self.origin.clone(),
        };
        let caller = grpc::Caller { principal, peer: connection.peer, origin };
        if grpc {
            return self.grpc.serve(self.service.clone(), request, caller).await.map(AnswerBody::Grpc);
        }
        self.http.respond(request, &caller).await.map(AnswerBody::Http)
    }

    /// Frames come from containers alone: on the public listener a token says who asks, which they do not carry.
    fn frames(&self, peer: Peer) -> Option<Calls> {
        let Identity::Container(task) = self.identity else { return None };
        let principal = evoke_core::Principal::Container(task);
        let caller = grpc::Caller { principal, peer, origin: self.origin.clone() };
        Some(Calls { grpc: self.grpc.clone(), service: self.service.clone(), caller })
    }
}

fn is_platform_rpc(path: &str) -> bool {
    path.starts_with("/modal.")
}

/// Serves `stream` until it ends, or until its listener stops and what was begun is done.
pub(crate) async fn serve<S, A>(answers: Arc<A>, stream: S, connection: Arc<Connection>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    A: Answers,
{
    let (peer, mut stop) = (connection.peer, connection.stop.clone());
    let detected = tokio::select! {
        detected = tokio::time::timeout(Duration::from_millis(HEAD_MS_MAX), detect(stream)) => detected,
        () = stopped(&mut stop) => return,
    };
    let (version, stream) = match detected {
        Ok(Ok(Some(found))) => found,
        Ok(Ok(None)) => return,
        Ok(Err(error)) => return tracing::debug!(?peer, %error, "connection broke off"),
        Err(_elapsed) => return tracing::debug!(?peer, "connection said nothing"),
    };
    if let (Version::Frames, Some(calls)) = (version, answers.frames(peer)) {
        return frames::serve(&calls.grpc, calls.service, stream, calls.caller, stopped(&mut stop)).await;
    }
    let shared = Arc::new((answers, connection));
    let service = service_fn(move |request| {
        let shared = shared.clone();
        async move { Ok::<_, Infallible>(shared.0.answer(&shared.1, request).await) }
    });
    // The two kinds of connection share no type, only this pattern.
    macro_rules! drive {
        ($connection:expr) => {{
            let mut connection = pin!($connection);
            tokio::select! {
                ended = connection.as_mut() => ended,
                () = stopped(&mut stop) => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            }
        }};
    }
    let io = TokioIo::new(stream);
    let ended = match version {
        Version::Http2 => drive!(http2().serve_connection(io, service)),
        Version::Http1 | Version::Frames => drive!(http1().serve_connection(io, service).with_upgrades()),
    };
    if let Err(error) = ended {
        tracing::debug!(?peer, %error, "connection ended early");
    }
}

fn http2() -> hyper::server::conn::http2::Builder<TokioExecutor> {
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_BYTES_MAX)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX)
        .max_send_buf_size(SEND_BUFFER_BYTES_MAX)
        .max_pending_accept_reset_streams(RESET_STREAMS_MAX)
        .max_local_error_reset_streams(RESET_STREAMS_MAX)
        .keep_alive_interval(Duration::from_millis(KEEPALIVE_MS))
        .keep_alive_timeout(Duration::from_millis(KEEPALIVE_MS))
        // For WebSockets.
        .enable_connect_protocol();
    builder
}

fn http1() -> hyper::server::conn::http1::Builder {
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(HEAD_MS_MAX))
        .max_header_size(HEAD_BYTES_MAX as usize);
    builder
}

/// Resolves once `stop` is true, or once nobody is left to make it true.
pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, which counts as the signal.
    let _ = stop.wait_for(|stop| *stop).await;
}
