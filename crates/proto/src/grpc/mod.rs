//! gRPC over HTTP/2: serves a [`Service`] to one listener's requests.
//!
//! Deadlines (`grpc-timeout`) and callers that go away drop the service's future. Compression is refused.
//! What callers of one listener make the server hold in memory is bounded together, so that one container
//! cannot use up the memory of all.

mod read;
mod respond;

use bytes::{Buf, Bytes};
use futures::StreamExt;
use http::{HeaderMap, Request, Response, StatusCode, Version, header};
use http_body::Body;
use http_body_util::BodyExt;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use crate::invoke::{BUFFERED_BYTES_MAX, Caller, MESSAGE_BYTES_MAX};
pub use respond::GrpcBody;

use crate::invoke::{self, Budget};
use crate::{CallContext, Reply, Service, Status};
use read::MessageReader;

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
    /// What frames of the same listener share with it.
    pub(crate) fn budget(&self) -> &Budget {
        &self.budget
    }

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
        let checked = invoke::find(head.uri.path(), &head.headers, &caller.principal);
        let (found, deadline) = match checked {
            Ok(checked) => checked,
            Err(status) => {
                drain(&mut body).await;
                return respond::failure(status, &[]);
            }
        };
        let context = caller.calls(found, head.headers);
        match invoke::run(found, deadline, self.run(service, context.clone(), body)).await {
            Ok(Reply::Unary(message)) => respond::unary(message, &context.warnings()),
            Ok(Reply::Stream(stream)) => respond::stream(stream, context, deadline),
            Err(status) => respond::failure(status, &context.warnings()),
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

#[cfg(test)]
mod tests;
