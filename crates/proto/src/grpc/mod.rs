//! gRPC over HTTP/2: serves a [`Service`] to one listener's requests.
//!
//! Deadlines (`grpc-timeout`) and callers that go away drop the service's future. Compression is refused.
//! What callers of one listener make the server hold in memory is bounded together, so that one container
//! cannot use up the memory of all.

mod read;
mod respond;
mod timeout;

use bytes::{Buf, Bytes};
use evoke_core::Principal;
use futures::{FutureExt, StreamExt};
use http::{HeaderMap, Request, Response, StatusCode, Version, header};
use http_body::Body;
use http_body_util::BodyExt;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

pub use respond::GrpcBody;

use crate::{CallContext, Code, Peer, Reply, Service, Status, rpc};
use read::MessageReader;

/// Largest message accepted, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 256 << 20;
/// Bytes of request messages held at a time for the callers of one listener; further calls wait.
pub const BUFFERED_BYTES_MAX: usize = 1 << 30;
/// Body of a refused request that is read before answering, in bytes: a client that is answered and reset
/// while it still sends may miss the answer.
const DRAIN_BYTES_MAX: usize = 64 << 10;
/// How long such a body may take, in milliseconds.
const DRAIN_MS_MAX: u64 = 2_000;

/// Serves the gRPC requests of one listener.
#[derive(Debug, Clone)]
pub struct Grpc {
    budget: Budget,
}

/// Where a request came from, as its listener knows.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Who asks.
    pub principal: Principal,
    /// The other end.
    pub peer: Peer,
    /// The base address by which the caller reaches this server; see [`CallContext::origin`].
    pub origin: Arc<str>,
}

impl Default for Grpc {
    fn default() -> Self {
        Self { budget: Budget::new(BUFFERED_BYTES_MAX) }
    }
}

/// Whether a request wants gRPC.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).map(|value| value.as_bytes()).unwrap_or_default();
    match content_type.strip_prefix(b"application/grpc") {
        Some(rest) => rest.is_empty() || rest.starts_with(b"+proto") || rest.starts_with(b";"),
        None => false,
    }
}

impl Grpc {
    /// Answers one request. Never fails: what goes wrong is in the answer.
    pub async fn serve<B>(
        &self,
        service: Arc<dyn Service>,
        request: Request<B>,
        caller: Caller,
    ) -> Response<GrpcBody>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: fmt::Display,
    {
        if request.version() < Version::HTTP_2 {
            let mut response = Response::new(GrpcBody::empty());
            *response.status_mut() = StatusCode::HTTP_VERSION_NOT_SUPPORTED;
            return response;
        }
        let (head, mut body) = request.into_parts();
        let checked = check(&head, &caller.principal);
        let (found, deadline) = match checked {
            Ok(checked) => checked,
            Err(status) => {
                drain(&mut body).await;
                return respond::failure(status, &[]);
            }
        };
        let context = CallContext::new(found, caller.principal, head.headers, caller.peer, caller.origin);
        let call = AssertUnwindSafe(self.run(service, context.clone(), body)).catch_unwind();
        let outcome = match deadline {
            Some(at) => tokio::time::timeout_at(at, call).await,
            None => Ok(call.await),
        };
        let result = match outcome {
            Ok(Ok(result)) => result,
            Ok(Err(_panic)) => {
                tracing::error!(rpc = found.name, "a handler panicked");
                Err(Status::internal(format!(
                    "{} failed unexpectedly; the server's log says why",
                    found.name
                )))
            }
            Err(_elapsed) => Err(deadline_exceeded()),
        };
        match result {
            Ok(Reply::Unary(message)) => respond::unary(message, &context.warnings()),
            Ok(Reply::Stream(stream)) => respond::stream(stream, context, deadline),
            Err(status) => {
                tracing::debug!(rpc = found.name, code = ?status.code, message = status.message, "call failed");
                respond::failure(status, &context.warnings())
            }
        }
    }

    async fn run<B>(&self, service: Arc<dyn Service>, context: CallContext, body: B) -> Result<Reply, Status>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: fmt::Display,
    {
        let mut reader = MessageReader::new(body, self.budget.clone());
        if context.rpc.kind.client_streams() {
            return service.call_streaming(context, reader.into_stream().boxed()).await;
        }
        let only = reader.next().await?;
        // Reading to the end lets the connection know that the request was taken whole.
        let message = match (only, reader.next().await?) {
            (Some(message), None) => message,
            (None, _) => return Err(Status::invalid("The request has no message")),
            (Some(_), Some(_)) => return Err(Status::invalid("The request has more than one message")),
        };
        // The reader holds the message's share of the budget until the call is done.
        let reply = service.call(context, message).await;
        drop(reader);
        reply
    }
}

type Checked = (&'static rpc::Rpc, Option<Instant>);

/// What can be decided from the head alone, before any of the body is taken.
fn check(head: &http::request::Parts, principal: &Principal) -> Result<Checked, Status> {
    let path = head.uri.path();
    let found = rpc::find(path).ok_or_else(|| Status::unimplemented(path))?;
    found.authorize(principal)?;
    let deadline = match head.headers.get("grpc-timeout") {
        Some(value) => {
            let timeout = timeout::parse(value.as_bytes())
                .ok_or_else(|| Status::invalid("The header grpc-timeout does not parse"))?;
            Some(Instant::now() + timeout)
        }
        None => None,
    };
    Ok((found, deadline))
}

fn deadline_exceeded() -> Status {
    Status::new(Code::DeadlineExceeded, "The deadline that the client set passed")
}

async fn drain<B: Body + Unpin>(body: &mut B) {
    let read = async {
        let mut seen = 0;
        while let Some(Ok(frame)) = body.frame().await {
            seen += frame.data_ref().map_or(0, Buf::remaining);
            if seen > DRAIN_BYTES_MAX {
                break;
            }
        }
    };
    // Running out of time is as good as the end: the answer follows.
    let _ = tokio::time::timeout(Duration::from_millis(DRAIN_MS_MAX), read).await;
}

/// The memory that the messages of one listener may take.
#[derive(Debug, Clone)]
struct Budget(Arc<Semaphore>);

/// One permit of the budget, in bytes.
const BUDGET_UNIT: usize = 1 << 10;
/// Messages up to this size are not counted, in bytes; the bound on concurrent streams bounds them.
const BUDGET_FREE: usize = 64 << 10;

impl Budget {
    fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes / BUDGET_UNIT)))
    }

    /// Waits until `bytes` may be held.
    async fn take(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        if bytes <= BUDGET_FREE {
            return None;
        }
        // The size is under MESSAGE_BYTES_MAX, so its units fit; the semaphore is never closed.
        let units = u32::try_from(bytes.div_ceil(BUDGET_UNIT)).unwrap_or(u32::MAX);
        self.0.clone().acquire_many_owned(units).await.ok()
    }
}

#[cfg(test)]
mod tests;
