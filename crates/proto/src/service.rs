//! What serves calls, independent of how they travel.

use bytes::Bytes;
use evoke_core::Principal;
use futures::Stream;
use http::HeaderMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use crate::Status;
use crate::rpc::Rpc;

/// A stream that may be sent between threads.
pub type BoxStream<T> = Pin<Box<dyn Stream<Item = T> + Send>>;

/// Warnings kept for one call.
const WARNINGS_MAX: usize = 16;

/// Everything about a call but its body. Cheap to clone.
#[derive(Debug, Clone)]
pub struct CallContext {
    /// What is called.
    pub rpc: &'static Rpc,
    /// Who calls.
    pub principal: Principal,
    /// The request's headers.
    pub metadata: HeaderMap,
    /// Where the call came from.
    pub peer: Peer,
    /// The address by which the caller reached us, such as `http://127.0.0.1:8100`, without a slash at the
    /// end: the base of every URL that this caller is given.
    pub origin: Arc<str>,
    warnings: Arc<Mutex<Vec<String>>>,
}

impl CallContext {
    /// A context without warnings.
    pub fn new(
        rpc: &'static Rpc,
        principal: Principal,
        metadata: HeaderMap,
        peer: Peer,
        origin: Arc<str>,
    ) -> Self {
        Self { rpc, principal, metadata, peer, origin, warnings: Arc::default() }
    }

    /// The value of a header, where it is there and is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.metadata.get(name).and_then(|value| value.to_str().ok())
    }

    /// The key under which a retried call must have no second effect.
    pub fn idempotency_key(&self) -> Option<&str> {
        self.header("x-idempotency-key")
    }

    /// Whether the client has sent this request before and got no answer.
    pub fn is_repeated(&self) -> bool {
        self.header("x-retry-attempt").is_some_and(|attempt| attempt != "0")
    }

    /// Has the client show `text` to its user. Warnings over the bound are dropped.
    pub fn warn(&self, text: impl Into<String>) {
        let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        if warnings.len() < WARNINGS_MAX {
            warnings.push(text.into());
        }
    }

    /// The warnings so far.
    pub fn warnings(&self) -> Vec<String> {
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// An address.
    Net(SocketAddr),
    /// A process on this machine.
    Unix,
    /// This process itself.
    Local,
}

/// What a call answers.
pub enum Reply {
    /// One message, serialized.
    Unary(Bytes),
    /// Messages, serialized; an error ends the stream. Dropped when the caller goes away.
    Stream(BoxStream<Result<Bytes, Status>>),
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Reply::Unary(body) => write!(f, "Unary({} bytes)", body.len()),
            Reply::Stream(_) => f.write_str("Stream"),
        }
    }
}

/// Serves calls. The future is dropped when the caller goes away or its deadline passes, so an effect that
/// must be whole belongs in a task of its own.
#[async_trait::async_trait]
pub trait Service: Send + Sync {
    /// Serves a call with one request message.
    async fn call(&self, context: CallContext, body: Bytes) -> Result<Reply, Status>;

    /// Serves a call whose request is a stream of messages.
    async fn call_streaming(
        &self,
        context: CallContext,
        _body: BoxStream<Result<Bytes, Status>>,
    ) -> Result<Reply, Status> {
        Err(Status::unimplemented(context.rpc.name))
    }
}

#[async_trait::async_trait]
impl<S: Service + ?Sized> Service for Arc<S> {
    async fn call(&self, context: CallContext, body: Bytes) -> Result<Reply, Status> {
        (**self).call(context, body).await
    }
    async fn call_streaming(
        &self,
        context: CallContext,
        body: BoxStream<Result<Bytes, Status>>,
    ) -> Result<Reply, Status> {
        (**self).call_streaming(context, body).await
    }
}
