//! What clients ask of calls: make one, add inputs, wait for outputs and chunks, cancel, count.

use crate::chunk_readers::READERS_WAIT_MAX;
use crate::containers::task_of;
use crate::results::{client_item, group_of};
use crate::{Control, parse_id, stored};
use bytes::Bytes;
use evoke_core::{CallId, InputId};
use evoke_engine::{CallType, Direction, Invocation, Key, MapRequest, NewInput, OutputsQuery, ResultStatus};
use evoke_proto::{BoxStream, CallContext, Code, Status, api};
use evoke_store::calls::{self, OutputRow};
use futures::StreamExt;
use prost::Message;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Unfinished inputs that a map's client may have outstanding. The client's own default.
const INPUTS_OUTSTANDING_MAX: u32 = 1000;
/// Outputs in one reply.
const OUTPUTS_PER_REPLY_MAX: usize = 1000;
/// Bytes of outputs in one reply, after which it is sent as it is.
const OUTPUT_BYTES_PER_REPLY: usize = 16 << 20;
/// The longest that one poll is held (seconds), whatever the client asks for.
const POLL_SECS_MAX: f32 = 60.0;
/// Chunks read from the store at a time.
const CHUNKS_PER_READ: u32 = 64;
/// `((), {})` in pickle's protocol 4.
const NO_ARGUMENTS: &[u8] = b"\x80\x04)}\x86.";

impl Control {
    pub(crate) async fn function_map(
        self: Arc<Self>,
        context: CallContext,
        request: api::FunctionMapRequest,
    ) -> Result<api::FunctionMapResponse, Status> {
        let function = self.function(&request.function_id)?;
        let invocation = invocation_of(request.function_call_invocation_type());
        let map = MapRequest {
            function_id: function.id,
            call_type: match request.function_call_type() {
                api::FunctionCallType::Map => CallType::Map,
                _ => CallType::Unary,
            },
            invocation,
            parent_input: request.parent_input_id.parse::<InputId>().ok(),
            inputs: new_inputs(&request.pipelined_inputs)?,
            return_exceptions: request.return_exceptions,
        };
        let retry_policy = function.definition.function.retry_policy;
        self.calls
            .answer(
                &self,
                &context,
                |engine, now| engine.map(map, now),
                |reply| api::FunctionMapResponse {
                    function_call_id: reply.call_id.to_string(),
                    pipelined_inputs: accepted(&reply.inputs),
                    retry_policy,
                    function_call_jwt: String::new(),
                    // Retries are the engine's: they go on when the client is gone, and survive a restart.
                    sync_client_retries_enabled: false,
                    max_inputs_outstanding: INPUTS_OUTSTANDING_MAX,
                },
            )
            .await
    }

    pub(crate) async fn function_put_inputs(
        self: Arc<Self>,
        context: CallContext,
        request: api::FunctionPutInputsRequest,
    ) -> Result<api::FunctionPutInputsResponse, Status> {
        let call: CallId = parse_id(&request.function_call_id)?;
        let inputs = new_inputs(&request.inputs)?;
        self.calls
            .answer(
                &self,
                &context,
                |engine, now| engine.put_inputs(call, inputs, now),
                |inputs| api::FunctionPutInputsResponse { inputs: accepted(inputs) },
            )
            .await
    }

    /// Retries are the engine's, so there is nothing to start here: whoever asks for one learns that the input is
    /// still being worked on, or that its result is final.
    pub(crate) async fn function_retry_inputs(
        self: Arc<Self>,
        _context: CallContext,
        request: api::FunctionRetryInputsRequest,
    ) -> Result<api::FunctionRetryInputsResponse, Status> {
        self.calls.settled().await?;
        let mut input_jwts = Vec::with_capacity(request.inputs.len());
        for item in request.inputs {
            let id: InputId = parse_id(&item.input_jwt)?;
            let view = self.store.read(move |db| Ok(calls::input_view(db, &id)?)).await.map_err(stored)?;
            let view = view.ok_or_else(|| Status::not_found(format!("There is no input {id}")))?;
            if view.output.is_some() {
                let text = format!(
                    "{id} has ended and its result is final: this server tries inputs again by itself, as often as \
                     the function's `retries` says. Call the function again instead"
                );
                return Err(Status::new(Code::FailedPrecondition, text));
            }
            input_jwts.push(item.input_jwt);
        }
        Ok(api::FunctionRetryInputsResponse { input_jwts })
    }

    pub(crate) async fn function_finish_inputs(
        self: Arc<Self>,
        _context: CallContext,
        request: api::FunctionFinishInputsRequest,
    ) -> Result<(), Status> {
        let call: CallId = parse_id(&request.function_call_id)?;
        let finished =
            self.calls.apply(&self, |engine, now| engine.finish_inputs(call, request.num_inputs, now));
        self.over_is_fine(call, finished.await).await
    }

    /// A call that the engine has let go of is over, and there is nothing left to do to it.
    async fn over_is_fine(&self, call: CallId, done: Result<(), Status>) -> Result<(), Status> {
        match done {
            Err(status) if status.code == Code::NotFound => self.call_view(call).await.map(|_| ()),
            done => done,
        }
    }

    pub(crate) async fn function_call_cancel(
        self: Arc<Self>,
        _context: CallContext,
        request: api::FunctionCallCancelRequest,
    ) -> Result<(), Status> {
        let call: CallId = parse_id(&request.function_call_id)?;
        let terminate = request.terminate_containers;
        if self.cancel_native(call, terminate) {
            return Ok(());
        }
        let cancelled = self.calls.apply(&self, |engine, now| engine.cancel(call, terminate, now)).await;
        self.over_is_fine(call, cancelled).await
    }

    pub(crate) async fn function_get_outputs(
        self: Arc<Self>,
        context: CallContext,
        request: api::FunctionGetOutputsRequest,
    ) -> Result<api::FunctionGetOutputsResponse, Status> {
        let call: CallId = parse_id(&request.function_call_id)?;
        let after = cursor(&request.last_entry_id);
        let range = request.start_idx.map(|start| (start, request.end_idx.unwrap_or(start)));
        let max = match request.max_values {
            n if n > 0 => (n as usize).min(OUTPUTS_PER_REPLY_MAX),
            _ => OUTPUTS_PER_REPLY_MAX,
        };
        let hold = Duration::from_secs_f32(request.timeout.clamp(0.0, POLL_SECS_MAX));
        if request.clear_on_success && range.is_none() && hold.is_zero() {
            // A map's client says goodbye: it has what it wants and reads no more outputs.
            self.calls.apply(&self, |engine, now| Ok(engine.clear_outputs(call, now))).await?;
            return Ok(api::FunctionGetOutputsResponse::default());
        }
        let deadline = Instant::now() + hold;
        loop {
            let waiter = self.calls.calls.register(call);
            let woken = waiter.woken();
            let reply = self.outputs_now(call, after, range, max).await?;
            if !reply.outputs.is_empty() {
                self.after_its_items(call, &reply).await;
                if request.clear_on_success {
                    // What is stored stays; only memory is freed, so the answer need not wait for it.
                    self.calls.decide(
                        &self,
                        |engine, now| Ok(engine.clear_outputs(call, now)),
                        |()| Vec::new(),
                    )?;
                }
                return Ok(reply);
            }
            // Nothing more can come to an ended call, so there is nothing to hold the poll for. A repeated poll is
            // not held either: the client gives up after a few lost connections in a row (its
            // `Retry.max_retries`), and any answer starts its count anew.
            let over = reply.num_unfinished_inputs == 0 && range.is_some();
            if over || context.is_repeated() || tokio::time::timeout_at(deadline, woken).await.is_err() {
                return Ok(reply);
            }
        }
    }

    /// Lets the items of a generator go before the news that it has failed.
    async fn after_its_items(&self, call: CallId, reply: &api::FunctionGetOutputsResponse) {
        let failed = |item: &api::FunctionGetOutputsItem| {
            let result = item.result.as_ref();
            result.is_some_and(|result| result.status() != api::generic_result::GenericStatus::Success)
        };
        if reply.outputs.iter().any(failed) {
            let items = self.calls.look(|engine| engine.poll_data(call, Direction::Out, u64::MAX - 1));
            if let Some(last) = items.map(|items| items.last_index).filter(|last| *last > 0) {
                self.chunk_readers.caught_up(call, last, READERS_WAIT_MAX).await;
            }
        }
    }

    async fn outputs_now(
        &self,
        call: CallId,
        after: i64,
        range: Option<(i32, i32)>,
        max: usize,
    ) -> Result<api::FunctionGetOutputsResponse, Status> {
        let (rows, unfinished) = self.output_rows(call, after, range, max).await?;
        Ok(reply_of(rows, after, unfinished))
    }

    /// The outputs of a call after a cursor, from memory or from the store, and how many inputs have not
    /// ended.
    pub(crate) async fn output_rows(
        &self,
        call: CallId,
        after: i64,
        range: Option<(i32, i32)>,
        max: usize,
    ) -> Result<(Vec<Arc<OutputRow>>, u32), Status> {
        let now = self.now();
        let polled = self.calls.with(|engine| engine.poll_outputs(call, after, range, max, now));
        self.calls.settled().await?;
        let Some(poll) = polled else {
            // Over and forgotten: whatever the store still keeps.
            let view = self.call_view(call).await?;
            let query = OutputsQuery { call: view.row.key, after, range, max: max as u32 };
            return Ok((self.stored_outputs(query).await?, view.unfinished));
        };
        if let Some(query) = poll.load {
            return Ok((self.stored_outputs(query).await?, poll.unfinished));
        }
        let mut rows = Vec::with_capacity(poll.outputs.len());
        for output in poll.outputs {
            match output.row {
                Some(row) => rows.push(row),
                None => {
                    let key = calls::keys::split(&call).key;
                    let query = OutputsQuery { call: key, after: output.entry - 1, range: None, max: 1 };
                    rows.extend(self.stored_outputs(query).await?);
                }
            }
        }
        Ok((rows, poll.unfinished))
    }

    async fn stored_outputs(&self, query: OutputsQuery) -> Result<Vec<Arc<OutputRow>>, Status> {
        let rows = self.store.read(move |db| Ok(calls::outputs(db, &query)?)).await.map_err(stored)?;
        Ok(rows.into_iter().map(Arc::new).collect())
    }

    /// A call as the store knows it.
    pub(crate) async fn call_view(&self, call: CallId) -> Result<calls::CallView, Status> {
        let view = self.store.read(move |db| Ok(calls::call_by_id(db, &call)?)).await.map_err(stored)?;
        view.ok_or_else(|| Status::not_found(format!("There is no call {call}")))
    }

    pub(crate) async fn function_call_from_id(
        self: Arc<Self>,
        _context: CallContext,
        request: api::FunctionCallFromIdRequest,
    ) -> Result<api::FunctionCallFromIdResponse, Status> {
        let call: CallId = parse_id(&request.function_call_id)?;
        let view = self.call_view(call).await?;
        Ok(api::FunctionCallFromIdResponse {
            function_call_id: call.to_string(),
            num_inputs: view.inputs as i32,
            metadata: Some(api::FunctionCallHandleMetadata {
                app_id: view.row.app_id.to_string(),
                function_id: view.row.function_id.to_string(),
            }),
        })
    }

    pub(crate) async fn function_call_get_info(
        self: Arc<Self>,
        _context: CallContext,
        request: api::FunctionCallGetInfoRequest,
    ) -> Result<api::FunctionCallGetInfoResponse, Status> {
        let call: CallId = parse_id(&request.function_call_id)?;
        self.calls.settled().await?;
        let view = self.call_view(call).await?;
        let count = |wanted: &[ResultStatus]| {
            let total =
                view.ended.iter().filter(|(status, _)| wanted.contains(status)).map(|(_, n)| *n).sum::<u32>();
            Some(api::InputCategoryInfo { total: total as i32, ..Default::default() })
        };
        use ResultStatus::{Failure, InitFailure, InternalFailure, Oom, Success, Terminated, Timeout};
        Ok(api::FunctionCallGetInfoResponse {
            info: Some(api::FunctionCallInfo {
                function_call_id: call.to_string(),
                created_at: view.row.created.as_secs_f64(),
                pending_inputs: Some(api::InputCategoryInfo {
                    total: view.unfinished as i32,
                    ..Default::default()
                }),
                failed_inputs: count(&[Failure, InitFailure, InternalFailure, Oom]),
                succeeded_inputs: count(&[Success]),
                timeout_inputs: count(&[Timeout]),
                cancelled_inputs: count(&[Terminated]),
                total_inputs: view.inputs as i32,
                ..Default::default()
            }),
        })
    }

    /// One direction of a call's chunks, from an index on, for as long as the call lives.
    pub(crate) async fn chunk_stream(
        self: Arc<Self>,
        request: api::FunctionCallGetDataRequest,
        direction: Direction,
    ) -> Result<BoxStream<Result<api::DataChunk, Status>>, Status> {
        let call = call_of(request.call_info.map(|info| match info {
            api::function_call_get_data_request::CallInfo::FunctionCallId(id) => id,
            api::function_call_get_data_request::CallInfo::AttemptToken(token) => token,
        }))?;
        if let Some(chunks) = self.web_chunks(call).filter(|_| direction == Direction::In) {
            return Ok(chunks);
        }
        let reader = Reader::new(self, call, direction);
        let batches =
            futures::stream::try_unfold((reader, request.last_index), move |(reader, after)| async move {
                reader.given(after);
                let next = reader.control.next_chunks(call, direction, after).await?;
                let Some(chunks) = next else { return Ok(None) };
                let last = chunks.last().map_or(after, |chunk| chunk.index);
                Ok::<_, Status>(Some((futures::stream::iter(chunks.into_iter().map(Ok)), (reader, last))))
            });
        Ok(futures::TryStreamExt::try_flatten(batches).boxed())
    }

    /// The chunks after an index, waiting for the first of them; none once the call has ended.
    async fn next_chunks(
        &self,
        call: CallId,
        direction: Direction,
        after: u64,
    ) -> Result<Option<Vec<api::DataChunk>>, Status> {
        loop {
            let waiter = self.calls.calls.register(call);
            let woken = waiter.woken();
            let Some(poll) = self.calls.look(|engine| engine.poll_data(call, direction, after)) else {
                // Over and forgotten: what is stored is all there will be.
                let view = self.call_view(call).await?;
                let chunks = self.stored_chunks(view.row.key, direction, after).await?;
                let decoded = chunks.into_iter().map(|(index, body)| decode_chunk(index, body));
                let decoded = decoded.collect::<Result<Vec<_>, _>>()?;
                return Ok((!decoded.is_empty()).then_some(decoded));
            };
            if poll.last_index > after {
                self.calls.settled().await?;
                let mut chunks = poll.chunks;
                if chunks.first().is_none_or(|(index, _)| *index != after + 1) {
                    chunks = self.stored_chunks(poll.call, direction, after).await?;
                }
                let decoded = chunks.into_iter().map(|(index, body)| decode_chunk(index, body));
                return decoded.collect::<Result<Vec<_>, _>>().map(Some);
            }
            if poll.ended {
                return Ok(None);
            }
            woken.await;
        }
    }

    async fn stored_chunks(
        &self,
        call: Key,
        direction: Direction,
        after: u64,
    ) -> Result<Vec<(u64, Bytes)>, Status> {
        let read = move |db: &_| Ok(calls::chunks(db, call, direction, after, CHUNKS_PER_READ)?);
        let rows = self.store.read(read).await.map_err(stored)?;
        Ok(rows.into_iter().map(|row| (row.index, row.body)).collect())
    }

    pub(crate) async fn put_data_out(
        self: Arc<Self>,
        context: CallContext,
        request: api::FunctionCallPutDataRequest,
    ) -> Result<(), Status> {
        let task = task_of(&context)?;
        let call = call_of(request.call_info.map(|info| match info {
            api::function_call_put_data_request::CallInfo::FunctionCallId(id) => id,
            api::function_call_put_data_request::CallInfo::AttemptToken(token) => token,
        }))?;
        if self.put_web_chunks(task, call, &request.data_chunks).await? {
            return Ok(());
        }
        let chunks = request.data_chunks.into_iter().map(|chunk| (chunk.index, encoded(&chunk))).collect();
        self.calls.apply(&self, |engine, now| engine.append_data_out(task, call, chunks, now)).await
    }
}

/// A stream of a call's chunks, for as long as somebody reads it.
struct Reader {
    control: Arc<Control>,
    call: CallId,
    /// Its number, where others wait for it.
    number: Option<u64>,
}

impl Reader {
    fn new(control: Arc<Control>, call: CallId, direction: Direction) -> Self {
        let number = (direction == Direction::Out).then(|| control.chunk_readers.join(call));
        Self { control, call, number }
    }

    fn given(&self, index: u64) {
        if let Some(number) = self.number {
            self.control.chunk_readers.given(self.call, number, index);
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.control.chunk_readers.leave(self.call, number);
        }
    }
}

fn decode_chunk(index: u64, body: Bytes) -> Result<api::DataChunk, Status> {
    let chunk = api::DataChunk::decode(body)
        .map_err(|error| Status::new(evoke_proto::Code::DataLoss, format!("stored chunk: {error}")))?;
    Ok(api::DataChunk { index, ..chunk })
}

fn call_of(id: Option<String>) -> Result<CallId, Status> {
    parse_id(&id.unwrap_or_default())
}

fn reply_of(rows: Vec<Arc<OutputRow>>, after: i64, unfinished: u32) -> api::FunctionGetOutputsResponse {
    let mut reply = api::FunctionGetOutputsResponse {
        last_entry_id: entry_id(after),
        num_unfinished_inputs: unfinished as i32,
        ..Default::default()
    };
    let mut bytes = 0;
    for row in rows {
        let item = client_item(&row);
        bytes += item.encoded_len();
        reply.idxs.push(row.idx);
        reply.outputs.push(item);
        reply.last_entry_id = entry_id(row.entry);
        if bytes > OUTPUT_BYTES_PER_REPLY {
            break;
        }
    }
    reply
}

/// A cursor as the client hands it back. `0-0` is the client's own for "from the beginning".
fn cursor(entry: &str) -> i64 {
    entry.split('-').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn entry_id(entry: i64) -> String {
    format!("{entry}-0")
}

fn invocation_of(invocation: api::FunctionCallInvocationType) -> Invocation {
    use api::FunctionCallInvocationType as Wire;
    match invocation {
        Wire::Async | Wire::AsyncLegacy => Invocation::Async,
        Wire::SyncLegacy => Invocation::SyncLegacy,
        Wire::Sync | Wire::Unspecified => Invocation::Sync,
    }
}

fn new_inputs(items: &[api::FunctionPutInputsItem]) -> Result<Vec<NewInput>, Status> {
    items
        .iter()
        .map(|item| {
            let input = item.input.as_ref().ok_or_else(|| Status::invalid("An input is empty"))?;
            let group = group_of(input.method_name.as_deref().unwrap_or_default());
            Ok(NewInput { idx: item.idx, group, input: encoded(input) })
        })
        .collect()
}

fn accepted(inputs: &[(i32, InputId)]) -> Vec<api::FunctionPutInputsResponseItem> {
    let item = |(idx, id): &(i32, InputId)| api::FunctionPutInputsResponseItem {
        idx: *idx,
        input_id: id.to_string(),
        // The client sends the tokens of all inputs it waits for with every poll and only reads them when it
        // retries by itself, which it is told not to do.
        input_jwt: String::new(),
    };
    inputs.iter().map(item).collect()
}

/// The input of a call that is made by the server itself, for a function that takes no arguments.
pub(crate) fn call_without_arguments() -> api::FunctionInput {
    api::FunctionInput {
        args_oneof: Some(api::function_input::ArgsOneof::Args(Bytes::from_static(NO_ARGUMENTS))),
        data_format: api::DataFormat::Pickle as i32,
        ..Default::default()
    }
}

pub(crate) fn encoded(message: &impl Message) -> Bytes {
    message.encode_to_vec().into()
}
