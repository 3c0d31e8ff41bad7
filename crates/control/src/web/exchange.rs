//! Requests of web functions under way by messages: each is a call with one input, whose body goes to the container
//! and whose response comes back as chunks. They pass by in memory: nobody could take them up after a crash,
//! because the connection that waits for them is gone with the server.

use super::messages;
use crate::invocations::encoded;
use crate::results::{client_item, group_of};
use crate::{Control, parse_id};
use bytes::Bytes;
use evoke_core::{BlobId, CallId, Error, TaskId};
use evoke_engine::{CallType, Invocation, MapRequest, NewInput, ResultStatus};
use evoke_proto::web::{FromApp, ToApp, WebEnd, WebEndpoint, WebExchange, WebHead};
use evoke_proto::{BoxStream, Status, api};
use evoke_store::Ticket;
use evoke_store::calls::OutputRow;
use futures::StreamExt;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Messages that wait for a slow reader, each way. Pieces of bodies are at most a few MiB.
const MESSAGES_WAITING_MAX: usize = 4;
/// The official container gives up on a request whose first message does not come within 5 s; where the body's
/// first piece takes longer than this, an empty piece goes ahead.
const FIRST_MESSAGE_MAX: Duration = Duration::from_secs(1);
/// The close code of a WebSocket whose client went away without a word (RFC 6455).
const ABNORMAL: u16 = 1006;

/// Requests under way.
#[derive(Debug, Default)]
pub(crate) struct Exchanges {
    running: Mutex<HashMap<CallId, Arc<Exchange>>>,
}

/// Control's ends of one request.
#[derive(Debug)]
struct Exchange {
    inbox: tokio::sync::Mutex<Inbox>,
    outbox: mpsc::Sender<FromApp>,
    /// The last chunk that arrived from the container.
    last_out: AtomicU64,
    /// The call is over.
    over: watch::Sender<bool>,
}

#[derive(Debug)]
struct Inbox {
    messages: mpsc::Receiver<ToApp>,
    /// The last chunk that went to the container.
    last_in: u64,
    websocket: bool,
    /// The application was told that its client is gone.
    disconnected: bool,
}

impl Inbox {
    /// The next message to the application; none while there is nothing more to be said.
    async fn next(&mut self) -> Option<ToApp> {
        if self.disconnected {
            return None;
        }
        let message = if self.last_in == 0 && !self.websocket {
            match tokio::time::timeout(FIRST_MESSAGE_MAX, self.messages.recv()).await {
                Ok(message) => message,
                Err(_) => Some(ToApp::Body(Bytes::new(), true)),
            }
        } else {
            self.messages.recv().await
        };
        let message = message.unwrap_or(ToApp::Disconnect(self.websocket.then_some(ABNORMAL)));
        self.disconnected = matches!(message, ToApp::Disconnect(_));
        Some(message)
    }
}

impl Exchanges {
    fn running(&self) -> MutexGuard<'_, HashMap<CallId, Arc<Exchange>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, call: CallId) -> Option<Arc<Exchange>> {
        self.running().get(&call).cloned()
    }
}

impl Control {
    /// Makes a request an input of its function.
    pub(crate) fn begin_web(
        self: &Arc<Self>,
        endpoint: &WebEndpoint,
        head: &WebHead,
        args: Bytes,
    ) -> Result<WebExchange, Error> {
        let (to_app, messages) = mpsc::channel(MESSAGES_WAITING_MAX);
        let (outbox, from_app) = mpsc::channel(MESSAGES_WAITING_MAX);
        let inbox = Inbox { messages, last_in: 0, websocket: head.websocket.is_some(), disconnected: false };
        let (over, _) = watch::channel(false);
        let exchange = Arc::new(Exchange { inbox: inbox.into(), outbox, last_out: AtomicU64::new(0), over });
        let input = api::FunctionInput {
            args_oneof: Some(api::function_input::ArgsOneof::Args(args)),
            data_format: api::DataFormat::Pickle as i32,
            method_name: Some(endpoint.method.clone()),
            ..Default::default()
        };
        let map = MapRequest {
            function_id: endpoint.function,
            call_type: CallType::Web,
            invocation: Invocation::SyncLegacy,
            parent_input: None,
            inputs: vec![NewInput { idx: 0, group: group_of(&endpoint.method), input: encoded(&input) }],
            return_exceptions: false,
        };
        let decided = self.calls.decide(
            self,
            |engine, now| engine.map(map, now),
            |reply| {
                // Before any container can ask for it.
                self.web.exchanges.running().insert(reply.call_id, exchange.clone());
                Vec::new()
            },
        );
        let (reply, ticket) = decided?;
        let call = reply.call_id;
        self.spawn("web-request", move |control| async move {
            let end = control.web_end(call, &exchange, ticket).await;
            exchange.over.send_replace(true);
            // Nobody who waits any more is fine.
            let _ = exchange.outbox.send(FromApp::Ended(end)).await;
            control.web.exchanges.running().remove(&call);
        });
        Ok(WebExchange { call, to_app, from_app })
    }

    /// Waits for the end of a request. One whose client leaves before a container has it is not begun.
    async fn web_end(&self, call: CallId, exchange: &Exchange, ticket: Option<Ticket>) -> WebEnd {
        if let Err(status) = self.calls.stored(self, ticket).await {
            return WebEnd::Failed(status.message);
        }
        let mut client_left = false;
        loop {
            let waiter = self.calls.calls.register(call);
            let woken = waiter.woken();
            match self.output_rows(call, 0, None, 1).await {
                Ok((rows, _)) if !rows.is_empty() => return end_of(&rows[0]),
                Ok(_) => {}
                Err(status) => return WebEnd::Failed(status.message),
            }
            tokio::select! {
                () = woken => {}
                () = exchange.outbox.closed(), if !client_left => {
                    client_left = true;
                    let waits = self.calls.look(|engine| engine.call_info(call)).is_some_and(|info| info.running == 0);
                    if waits && let Err(status) = self.calls.apply(self, |engine, now| engine.cancel(call, false, now)).await {
                        tracing::warn!(%call, %status, "a request without a client could not be cancelled");
                    }
                }
            }
        }
    }

    /// The request's side of a call's chunks, if the call is a request under way here.
    pub(crate) fn web_chunks(&self, call: CallId) -> Option<BoxStream<Result<api::DataChunk, Status>>> {
        let exchange = self.web.exchanges.get(call)?;
        let over = exchange.over.subscribe();
        let chunks = futures::stream::unfold((exchange, over), |(exchange, mut over)| async move {
            let next = async {
                let mut inbox = exchange.inbox.lock().await;
                let message = inbox.next().await?;
                inbox.last_in += 1;
                Some(messages::chunk(inbox.last_in, message, inbox.websocket))
            };
            // The container asks again at once if this ends before its call does.
            let next = async {
                match next.await {
                    Some(chunk) => chunk,
                    None => std::future::pending().await,
                }
            };
            let chunk = tokio::select! {
                chunk = next => Some(chunk),
                // Whether it was told or its sender is gone: the call is over.
                _ = over.wait_for(|over| *over) => None,
            };
            chunk.map(|chunk| (Ok(chunk), (exchange, over)))
        });
        Some(chunks.boxed())
    }

    /// Chunks of a response; false where the call is no request under way here. It returns once the client has
    /// taken them, so that an application is never far ahead of it.
    pub(crate) async fn put_web_chunks(
        &self,
        task: TaskId,
        call: CallId,
        chunks: &[api::DataChunk],
    ) -> Result<bool, Status> {
        let Some(exchange) = self.web.exchanges.get(call) else { return Ok(false) };
        if !self.calls.look(|engine| engine.works_on(task, call)) {
            // A container that was too late, or has no business with it.
            return Ok(true);
        }
        for chunk in chunks {
            if exchange.last_out.fetch_max(chunk.index, Ordering::AcqRel) >= chunk.index {
                continue;
            }
            let data = match &chunk.data_oneof {
                Some(api::data_chunk::DataOneof::Data(data)) => data.clone(),
                Some(api::data_chunk::DataOneof::DataBlobId(blob)) => {
                    self.whole_blob(parse_id(blob)?).await?
                }
                None => Bytes::new(),
            };
            if exchange.outbox.send(messages::message(data)?).await.is_err() {
                // The client is gone, which the application learns the other way.
                return Ok(true);
            }
        }
        Ok(true)
    }

    async fn whole_blob(&self, blob: BlobId) -> Result<Bytes, Status> {
        let blobs = self.blobs.clone();
        let read = move || -> Result<Vec<u8>, Error> {
            use std::io::Read;
            let (mut file, size) = blobs.open_blob(blob).map_err(Error::from)?;
            let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
            file.read_to_end(&mut bytes)
                .map_err(|error| Error::internal(format!("reading {blob}: {error}")))?;
            Ok(bytes)
        };
        let bytes = tokio::task::spawn_blocking(read).await;
        let bytes = bytes.map_err(|error| Status::internal(format!("reading {blob}: {error}")))??;
        Ok(bytes.into())
    }
}

/// How a call ended, to a web client.
fn end_of(row: &OutputRow) -> WebEnd {
    let text = || {
        let result = client_item(row).result.unwrap_or_default();
        result.exception
    };
    match row.status {
        ResultStatus::Success => WebEnd::Done,
        ResultStatus::Terminated => WebEnd::Cancelled,
        ResultStatus::Timeout => WebEnd::TimedOut(text()),
        _ => WebEnd::Failed(text()),
    }
}
