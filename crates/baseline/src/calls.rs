//! Calls, their inputs and outputs, in memory and nowhere else.

use evoke_core::{CallId, Entropy, InputId, SystemEntropy, UnixMs};
use evoke_proto::{Status, api};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use tokio::sync::Notify;

/// One call: what came out so far.
struct Call {
    unfinished: u32,
    outputs: Vec<api::FunctionGetOutputsItem>,
    changed: Arc<Notify>,
}

/// An input on its way to the container.
struct Waiting {
    call: CallId,
    input_id: InputId,
    idx: i32,
    input: api::FunctionInput,
    invocation: i32,
}

/// All calls and the queue of the one container.
pub(crate) struct Calls {
    entropy: SystemEntropy,
    calls: HashMap<CallId, Call>,
    queue: VecDeque<Waiting>,
    running: HashMap<String, (CallId, i32)>,
    /// Told when the queue is no longer empty.
    pub(crate) arrived: Arc<Notify>,
}

impl Calls {
    pub(crate) fn new() -> Self {
        Self {
            entropy: SystemEntropy::default(),
            calls: HashMap::new(),
            queue: VecDeque::new(),
            running: HashMap::new(),
            arrived: Arc::default(),
        }
    }

    fn bits(&mut self) -> u128 {
        (u128::from(self.entropy.next_u64()) << 64) | u128::from(self.entropy.next_u64())
    }

    /// A new call without inputs.
    pub(crate) fn begin(&mut self) -> CallId {
        let id = CallId::from_bits(self.bits());
        self.calls.insert(id, Call { unfinished: 0, outputs: Vec::new(), changed: Arc::default() });
        id
    }

    /// Queues inputs of a call.
    pub(crate) fn put(
        &mut self,
        call: CallId,
        items: Vec<api::FunctionPutInputsItem>,
        invocation: i32,
    ) -> Result<Vec<api::FunctionPutInputsResponseItem>, Status> {
        let mut accepted = Vec::with_capacity(items.len());
        for item in items {
            let input_id = InputId::from_bits(self.bits());
            accepted.push(api::FunctionPutInputsResponseItem {
                idx: item.idx,
                input_id: input_id.to_string(),
                input_jwt: String::new(),
            });
            let input = item.input.unwrap_or_default();
            self.queue.push_back(Waiting { call, input_id, idx: item.idx, input, invocation });
        }
        let found = self.calls.get_mut(&call).ok_or_else(|| Status::not_found("no such call"))?;
        found.unfinished += accepted.len() as u32;
        self.arrived.notify_one();
        Ok(accepted)
    }

    /// The next input for the container.
    pub(crate) fn take(&mut self) -> Option<api::FunctionGetInputsItem> {
        let next = self.queue.pop_front()?;
        let input_id = next.input_id.to_string();
        self.running.insert(input_id.clone(), (next.call, next.idx));
        Some(api::FunctionGetInputsItem {
            input_id,
            input: Some(next.input),
            function_call_id: next.call.to_string(),
            function_call_invocation_type: next.invocation,
            function_map_idx: Some(next.idx),
            ..Default::default()
        })
    }

    /// Takes the container's answers.
    pub(crate) fn answer(&mut self, items: Vec<api::FunctionPutOutputsItem>, now: UnixMs, task: &str) {
        for item in items {
            // An answer to an input that nobody asked for is nobody's.
            let Some((call, idx)) = self.running.remove(&item.input_id) else { continue };
            let Some(call) = self.calls.get_mut(&call) else { continue };
            call.unfinished -= 1;
            call.outputs.push(api::FunctionGetOutputsItem {
                result: item.result,
                idx,
                input_id: item.input_id,
                data_format: item.data_format,
                task_id: task.to_owned(),
                input_started_at: item.input_started_at,
                output_created_at: if item.output_created_at > 0.0 {
                    item.output_created_at
                } else {
                    now.as_secs_f64()
                },
                ..Default::default()
            });
            call.changed.notify_waiters();
        }
    }

    /// The outputs of a call from `after` on, and what tells of more.
    pub(crate) fn outputs(
        &self,
        call: CallId,
        after: usize,
    ) -> Result<(api::FunctionGetOutputsResponse, Arc<Notify>), Status> {
        let call = self.calls.get(&call).ok_or_else(|| Status::not_found("no such call"))?;
        let outputs: Vec<_> = call.outputs.iter().skip(after).cloned().collect();
        let reply = api::FunctionGetOutputsResponse {
            idxs: outputs.iter().map(|output| output.idx).collect(),
            last_entry_id: format!("{}-0", after + outputs.len()),
            num_unfinished_inputs: call.unfinished as i32,
            outputs,
        };
        Ok((reply, call.changed.clone()))
    }

    /// The client has all it wants of a call.
    pub(crate) fn forget(&mut self, call: CallId) {
        self.calls.remove(&call);
    }
}
