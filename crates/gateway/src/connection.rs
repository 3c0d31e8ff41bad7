//! Serves one connection, HTTP/2 or HTTP/1, to its end.

use bytes::Bytes;
use evoke_core::Error;
use evoke_proto::grpc::{GrpcBody, is_grpc};
use evoke_proto::{Peer, Service, grpc};
use http::{Request, Response};
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

use crate::ingress::Identity;
use crate::preface::{Version, detect};
use crate::routes::{HttpBody, HttpRoutes};
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

/// What a connection is served with: its listener's.
pub(crate) struct Context {
    pub identity: Identity,
    pub origin: Arc<str>,
    pub service: Arc<dyn Service>,
    pub http: Arc<dyn HttpRoutes>,
    pub authenticator: Arc<dyn Authenticator>,
    pub grpc: grpc::Grpc,
}

/// The body of an answer of either kind.
enum AnswerBody {
    Grpc(GrpcBody),
    Http(HttpBody),
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
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            AnswerBody::Grpc(body) => body.is_end_stream(),
            AnswerBody::Http(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            AnswerBody::Grpc(body) => body.size_hint(),
            AnswerBody::Http(body) => body.size_hint(),
        }
    }
}

impl Context {
    async fn answer(&self, peer: Peer, mut request: Request<Incoming>) -> Response<AnswerBody> {
        let principal = match self.identity {
            Identity::Container(task) => evoke_core::Principal::Container(task),
            Identity::Public => authenticate::principal(&*self.authenticator, request.headers_mut()),
        };
        // What comes over a unix socket names no address by which others could come.
        let origin = match peer {
            Peer::Net(_) => origin::of(&request, &self.origin),
            Peer::Unix | Peer::Local => self.origin.clone(),
        };
        let caller = grpc::Caller { principal, peer, origin };
        if is_grpc(request.headers()) {
            return self.grpc.serve(self.service.clone(), request, caller).await.map(AnswerBody::Grpc);
        }
        self.http.respond(request, &caller).await.map(AnswerBody::Http)
    }
}

/// Serves `stream` until it ends, or until `stop` turns true and what was begun is done.
pub(crate) async fn serve<S>(context: Arc<Context>, stream: S, peer: Peer, mut stop: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
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
    let service = service_fn(move |request| {
        let context = context.clone();
        async move { Ok::<_, Infallible>(context.answer(peer, request).await) }
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
        Version::Http1 => drive!(http1().serve_connection(io, service).with_upgrades()),
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
        .keep_alive_timeout(Duration::from_millis(KEEPALIVE_MS));
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
