//! One connection: reads frames, begins calls, and tells each what concerns it.

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use http::HeaderMap;
use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use super::answer::{Answer, Credit};
use super::codec::{self, Frame, Kind, PREFACE};
use super::{CALLS_MAX, MESSAGE_FREE, WRITES_MAX};
use crate::grpc::Grpc;
use crate::invoke::{self, Budget, Caller, MESSAGE_BYTES_MAX, message_too_large};
use crate::{CallContext, Service, Status};

/// How long a connection may take until it has said `Hello`, in milliseconds.
const HELLO_MS_MAX: u64 = 30_000;
/// How long what is still to be written may take once the connection is over, in milliseconds.
const FAREWELL_MS_MAX: u64 = 2_000;
/// Room for one read, in bytes; what a frame needs beyond it is made when it comes.
const READ_BYTES: usize = 16 << 10;
/// What is written in one go, in bytes, unless a single frame is longer.
const WRITE_BYTES: usize = 256 << 10;

/// Serves the calls of a connection, from its preface on, until it ends, or until `stop` and what was begun is
/// done. Memory for large messages is that of the listener's gRPC.
pub async fn serve<S>(
    grpc: &Grpc,
    service: Arc<dyn Service>,
    stream: S,
    caller: Caller,
    stop: impl Future<Output = ()>,
) where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (mut reader, writer) = tokio::io::split(stream);
    let (out, frames) = mpsc::channel(WRITES_MAX);
    let mut writing = JoinSet::new();
    writing.spawn(write(writer, frames));
    let mut connection = Connection::new(service, caller, grpc.budget().clone(), out.clone());
    let ended = connection.run(&mut reader, stop).await;
    // Calls that were begun end with their connection, and with them what would still be written for them.
    connection.running.shutdown().await;
    drop(connection);
    if let Err(fault) = ended {
        tracing::debug!(fault, "a connection of frames is ended");
        // A writer that is gone has nobody to tell.
        let _ = out.send(codec::encode(Kind::Fault, 0, fault.as_bytes())).await;
    }
    drop(out);
    // Whoever does not read any more does not get the rest.
    let _ = tokio::time::timeout(Duration::from_millis(FAREWELL_MS_MAX), writing.join_next()).await;
}

/// Writes what comes, as much at a time as there is.
async fn write<W: AsyncWrite + Unpin>(mut writer: W, mut frames: mpsc::Receiver<Bytes>) {
    let (mut batch, mut together) = (Vec::with_capacity(WRITES_MAX), BytesMut::new());
    while frames.recv_many(&mut batch, WRITES_MAX).await > 0 {
        for (place, frame) in batch.iter().enumerate() {
            together.extend_from_slice(frame);
            if together.len() < WRITE_BYTES && place + 1 < batch.len() {
                continue;
            }
            if let Err(error) = writer.write_all(&together).await {
                return tracing::debug!(%error, "the other end of a connection of frames went away");
            }
            // What one large answer needed is not kept for the small ones.
            together = if together.capacity() > WRITE_BYTES { BytesMut::new() } else { cleared(together) };
        }
        batch.clear();
    }
    // Whoever closed first is not interested in our end.
    let _ = writer.shutdown().await;
}

fn cleared(mut buffer: BytesMut) -> BytesMut {
    buffer.clear();
    buffer
}

/// A call that was begun and has not ended.
struct Open {
    context: CallContext,
    deadline: Option<Instant>,
    credit: Arc<Credit>,
    arriving: Arriving,
    /// Where the messages of a stream of requests go; closed by the caller's `End`.
    requests: Option<mpsc::Sender<(Bytes, Option<OwnedSemaphorePermit>)>>,
    running: Option<AbortHandle>,
}

/// What has come of a message.
enum Arriving {
    Nothing,
    /// Announced, waiting for memory.
    Announced(usize),
    Parts {
        length: usize,
        gathered: BytesMut,
        permit: Option<OwnedSemaphorePermit>,
    },
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            running.abort();
        }
    }
}

type Claim = BoxFuture<'static, (u32, Option<OwnedSemaphorePermit>)>;

struct Connection {
    service: Arc<dyn Service>,
    caller: Caller,
    budget: Budget,
    out: mpsc::Sender<Bytes>,
    /// What all requests have; none before the `Hello`.
    headers: Option<HeaderMap>,
    calls: HashMap<u32, Open>,
    /// The highest number of a call so far.
    last: u32,
    running: JoinSet<u32>,
    /// Calls whose announced message waits for memory.
    claims: FuturesUnordered<Claim>,
    stopping: bool,
}

impl Connection {
    fn new(service: Arc<dyn Service>, caller: Caller, budget: Budget, out: mpsc::Sender<Bytes>) -> Self {
        Self {
            service,
            caller,
            budget,
            out,
            headers: None,
            calls: HashMap::new(),
            last: 0,
            running: JoinSet::new(),
            claims: FuturesUnordered::new(),
            stopping: false,
        }
    }

    /// Until the connection ends; an error is what was wrong with it.
    async fn run<R: AsyncRead + Unpin>(
        &mut self,
        reader: &mut R,
        stop: impl Future<Output = ()>,
    ) -> Result<(), String> {
        let mut preface = [0; PREFACE.len()];
        let hello_until = Instant::now() + Duration::from_millis(HELLO_MS_MAX);
        match tokio::time::timeout_at(hello_until, reader.read_exact(&mut preface)).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => return Ok(()),
        }
        // Ours tells a caller of another version which one it would have to be.
        self.send(Bytes::from_static(&PREFACE)).await;
        if preface != PREFACE {
            return Ok(());
        }
        let (mut stop, mut no_hello) = (pin!(stop), pin!(tokio::time::sleep_until(hello_until)));
        let mut arrived = BytesMut::with_capacity(READ_BYTES);
        loop {
            while let Some(frame) = codec::decode(&mut arrived)? {
                self.take(frame).await?;
            }
            if self.stopping && self.calls.is_empty() {
                return Ok(());
            }
            arrived.reserve(READ_BYTES);
            let out = self.out.clone();
            tokio::select! {
                read = reader.read_buf(&mut arrived) => {
                    // A connection that breaks off is one that ends.
                    if read.unwrap_or(0) == 0 {
                        return Ok(());
                    }
                }
                Some(ended) = self.running.join_next(), if !self.running.is_empty() => {
                    // An error is a call that was taken back.
                    if let Ok(call) = ended {
                        self.calls.remove(&call);
                    }
                }
                Some((call, permit)) = self.claims.next(), if !self.claims.is_empty() => {
                    self.grant(call, permit).await;
                }
                () = stop.as_mut(), if !self.stopping => self.stopping = true,
                () = no_hello.as_mut(), if self.headers.is_none() => {
                    return Err(format!("no greeting within {} s", HELLO_MS_MAX / 1000));
                }
                () = out.closed() => return Ok(()),
            }
        }
    }

    async fn take(&mut self, frame: Frame) -> Result<(), String> {
        let Frame { kind, call, body } = frame;
        if self.headers.is_none() {
            if kind != Kind::Hello {
                return Err("a connection begins with a greeting".into());
            }
            self.headers = Some(codec::read_headers(body)?);
            let mut ours = (MESSAGE_BYTES_MAX as u32).to_le_bytes().to_vec();
            ours.extend((CALLS_MAX as u32).to_le_bytes());
            self.send(codec::encode(Kind::Hello, 0, &ours)).await;
            return Ok(());
        }
        match kind {
            Kind::Request => return self.begin(call, body).await,
            Kind::Hello | Kind::Reply | Kind::Fault => {
                return Err(format!("a caller does not send a frame of kind {}", kind as u8));
            }
            _ if call > self.last => return Err(format!("there is no call {call} yet")),
            _ => {}
        }
        // What comes for a call that has ended was sent before the caller knew.
        let Some(open) = self.calls.get_mut(&call) else { return Ok(()) };
        match kind {
            Kind::Message => self.announced(call, body).await?,
            Kind::Part => {
                let Arriving::Parts { length, gathered, .. } = &mut open.arriving else {
                    return Err(format!("call {call} sent a part of no message"));
                };
                if gathered.len() + body.len() > *length {
                    return Err(format!("call {call} sent more than the {length} bytes that it announced"));
                }
                gathered.extend_from_slice(&body);
                if gathered.len() == *length {
                    self.complete(call).await?;
                }
            }
            Kind::End => match (&open.running, &open.arriving) {
                (Some(_), Arriving::Nothing) => open.requests = None,
                (None, Arriving::Nothing) => {
                    self.refuse(call, &Status::invalid("The request has no message")).await;
                }
                _ => return Err(format!("call {call} ended within a message")),
            },
            Kind::Grant => open.credit.add(codec::read_grant(body)?),
            // The others were refused above.
            _ => drop(self.calls.remove(&call)),
        }
        Ok(())
    }

    /// A call begins.
    async fn begin(&mut self, call: u32, body: Bytes) -> Result<(), String> {
        if call <= self.last {
            return Err(format!("call {call} was begun before"));
        }
        self.last = call;
        let (path, own) = codec::read_request(body)?;
        if self.stopping || self.calls.len() >= CALLS_MAX {
            let why = if self.stopping { "The server is stopping" } else { "Too many calls at a time" };
            self.refuse(call, &Status::unavailable(why)).await;
            return Ok(());
        }
        let mut headers = self.headers.clone().unwrap_or_default();
        headers.extend(own);
        let (rpc, deadline) = match invoke::find(&path, &headers, &self.caller.principal) {
            Ok(found) => found,
            Err(status) => {
                self.refuse(call, &status).await;
                return Ok(());
            }
        };
        let open = Open {
            context: self.caller.clone().calls(rpc, headers),
            deadline,
            credit: Credit::new(),
            arriving: Arriving::Nothing,
            requests: None,
            running: None,
        };
        self.calls.insert(call, open);
        if rpc.kind.client_streams() {
            self.start_stream(call);
        }
        Ok(())
    }

    /// A message is announced: small ones are there, large ones need memory first.
    async fn announced(&mut self, call: u32, body: Bytes) -> Result<(), String> {
        let (length, first) = codec::read_message(body)?;
        let Some(open) = self.calls.get_mut(&call) else { return Ok(()) };
        let is_over = open.running.is_some() && open.requests.is_none();
        if is_over || !matches!(open.arriving, Arriving::Nothing) {
            return Err(format!("call {call} announced a message too many"));
        }
        if length > MESSAGE_BYTES_MAX {
            self.refuse(call, &message_too_large(length)).await;
            return Ok(());
        }
        if length > MESSAGE_FREE {
            if !first.is_empty() {
                return Err(format!("call {call} sent a large message without asking"));
            }
            open.arriving = Arriving::Announced(length);
            let budget = self.budget.clone();
            self.claims.push(Box::pin(async move { (call, budget.take(length).await) }));
            return Ok(());
        }
        if first.len() != length {
            return Err(format!("call {call} announced {length} bytes and sent {}", first.len()));
        }
        self.message(call, first, None)
    }

    /// There is memory for an announced message.
    async fn grant(&mut self, call: u32, permit: Option<OwnedSemaphorePermit>) {
        let Some(open) = self.calls.get_mut(&call) else { return };
        if let Arriving::Announced(length) = open.arriving {
            open.arriving = Arriving::Parts { length, gathered: BytesMut::new(), permit };
            self.send(codec::encode(Kind::Grant, call, &(length as u32).to_le_bytes())).await;
        }
    }

    /// All parts are there.
    async fn complete(&mut self, call: u32) -> Result<(), String> {
        let Some(open) = self.calls.get_mut(&call) else { return Ok(()) };
        match std::mem::replace(&mut open.arriving, Arriving::Nothing) {
            Arriving::Parts { gathered, permit, .. } => self.message(call, gathered.freeze(), permit),
            Arriving::Nothing | Arriving::Announced(_) => Ok(()),
        }
    }

    /// A message goes to its call.
    fn message(
        &mut self,
        call: u32,
        message: Bytes,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Result<(), String> {
        let Some(open) = self.calls.get_mut(&call) else { return Ok(()) };
        if let Some(requests) = &open.requests {
            return match requests.try_send((message, permit)) {
                Err(mpsc::error::TrySendError::Full(_)) => {
                    Err(format!("call {call} sent a message before the last one was taken"))
                }
                // A handler that wants no more is about to answer.
                Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
            };
        }
        let (service, context, deadline) = (self.service.clone(), open.context.clone(), open.deadline);
        let answer = Answer { call, out: self.out.clone(), credit: open.credit.clone() };
        let called = context.clone();
        open.running = Some(self.running.spawn(async move {
            // The message's share of the memory is kept until the call is done.
            let call = async move {
                let reply = service.call(called, message).await;
                drop(permit);
                reply
            };
            let number = answer.call;
            answer.give(context, deadline, call).await;
            number
        }));
        Ok(())
    }

    /// A call whose requests are a stream starts before there is any. Each is granted once the one before it
    /// was taken.
    fn start_stream(&mut self, call: u32) {
        let Some(open) = self.calls.get_mut(&call) else { return };
        let (service, context, deadline) = (self.service.clone(), open.context.clone(), open.deadline);
        let answer = Answer { call, out: self.out.clone(), credit: open.credit.clone() };
        let (requests, taken) = mpsc::channel(1);
        open.requests = Some(requests);
        let out = self.out.clone();
        let messages =
            futures::stream::unfold((taken, out, None), move |(mut taken, out, held)| async move {
                // The last message's share of the memory is kept until another one is asked for.
                drop::<Option<OwnedSemaphorePermit>>(held);
                let (message, permit) = taken.recv().await?;
                // A connection that is gone ends the call by itself.
                let _ = out.send(codec::encode(Kind::Grant, call, &0_u32.to_le_bytes())).await;
                Some((Ok(message), (taken, out, permit)))
            });
        let called = context.clone();
        open.running = Some(self.running.spawn(async move {
            let call = async move { service.call_streaming(called, messages.boxed()).await };
            let number = answer.call;
            answer.give(context, deadline, call).await;
            number
        }));
    }

    /// Ends a call that has not begun to run.
    async fn refuse(&mut self, call: u32, status: &Status) {
        self.calls.remove(&call);
        tracing::debug!(call, code = ?status.code, message = status.message, "call refused");
        self.send(codec::end(call, Some(status), &[])).await;
    }

    fn send(&self, frame: Bytes) -> impl Future<Output = ()> + use<> {
        let out = self.out.clone();
        async move {
            // A writer that is gone ends the connection, which `run` sees.
            let _ = out.send(frame).await;
        }
    }
}
