//! What becomes of a call, however it travels: it is found, admitted, bounded by its deadline, and a handler
//! that panics fails its call and nothing else.

use evoke_core::Principal;
use futures::FutureExt;
use http::HeaderMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::rpc::{self, Rpc};
use crate::{CallContext, Code, Peer, Reply, Status, timeout};

/// Largest message accepted, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 256 << 20;
/// Bytes of request messages held at a time for the callers of one listener; further calls wait.
pub const BUFFERED_BYTES_MAX: usize = 1 << 30;
/// Text of a failure or a warning that is sent, in bytes before encoding: clients bound what they take.
pub(crate) const TEXT_BYTES_MAX: usize = 4 << 10;
/// Details of a failure that are sent, in bytes before encoding.
pub(crate) const DETAILS_BYTES_MAX: usize = 12 << 10;

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

impl Caller {
    /// The context of a call of this caller's.
    pub(crate) fn calls(self, rpc: &'static Rpc, headers: HeaderMap) -> CallContext {
        CallContext::new(rpc, self.principal, headers, self.peer, self.origin)
    }
}

/// What can be decided from a request's head alone, before any of its messages is taken: the RPC of this path,
/// if this caller may call it, and when the call's time is over.
pub(crate) fn find(
    path: &str,
    headers: &HeaderMap,
    principal: &Principal,
) -> Result<(&'static Rpc, Option<Instant>), Status> {
    let found = rpc::find(path).ok_or_else(|| Status::unimplemented(path))?;
    found.authorize(principal)?;
    let deadline = match headers.get("grpc-timeout") {
        Some(value) => {
            let timeout = timeout::parse(value.as_bytes())
                .ok_or_else(|| Status::invalid("The header grpc-timeout does not parse"))?;
            Some(Instant::now() + timeout)
        }
        None => None,
    };
    Ok((found, deadline))
}

/// Runs a call to its reply, within its deadline.
pub(crate) async fn run(
    rpc: &'static Rpc,
    deadline: Option<Instant>,
    call: impl Future<Output = Result<Reply, Status>>,
) -> Result<Reply, Status> {
    let call = AssertUnwindSafe(call).catch_unwind();
    let outcome = match deadline {
        Some(at) => tokio::time::timeout_at(at, call).await,
        None => Ok(call.await),
    };
    let result = match outcome {
        Ok(Ok(result)) => result,
        Ok(Err(_panic)) => {
            tracing::error!(rpc = rpc.name, "a handler panicked");
            Err(Status::internal(format!("{} failed unexpectedly; the server's log says why", rpc.name)))
        }
        Err(_elapsed) => Err(deadline_exceeded()),
    };
    if let Err(status) = &result {
        tracing::debug!(rpc = rpc.name, code = ?status.code, message = status.message, "call failed");
    }
    result
}

/// The failure of a call whose time is over.
pub(crate) fn deadline_exceeded() -> Status {
    Status::new(Code::DeadlineExceeded, "The deadline that the client set passed")
}

/// The failure of a call whose message is too large.
pub(crate) fn message_too_large(length: usize) -> Status {
    // The words of the status are what the client looks for.
    Status::invalid(format!(
        "A message of {length} bytes is over the limit of {MESSAGE_BYTES_MAX} (status = '413')"
    ))
}

/// Text cut to what is sent of it.
pub(crate) fn cut(text: &str) -> &str {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// The memory that the messages of one listener may take.
#[derive(Debug, Clone)]
pub(crate) struct Budget(Arc<Semaphore>);

/// One permit of the budget, in bytes.
pub(crate) const BUDGET_UNIT: usize = 1 << 10;
/// Messages up to this size are not counted, in bytes; the bound on concurrent calls bounds them.
pub(crate) const BUDGET_FREE: usize = 64 << 10;

impl Budget {
    pub(crate) fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes / BUDGET_UNIT)))
    }

    /// Waits until `bytes` may be held.
    pub(crate) async fn take(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        if bytes <= BUDGET_FREE {
            return None;
        }
        // The size is under MESSAGE_BYTES_MAX, so its units fit; the semaphore is never closed.
        let units = u32::try_from(bytes.div_ceil(BUDGET_UNIT)).unwrap_or(u32::MAX);
        self.0.clone().acquire_many_owned(units).await.ok()
    }
}
