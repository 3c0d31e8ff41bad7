//! Results as they are stored and as clients get them.
//!
//! A container's answer is stored as the bytes of the `FunctionGetOutputsItem` that clients will get, short of
//! what only the server knows (place, ids). What the server itself says (a timeout, a cancellation, a crash)
//! is stored as a status and a text.

use bytes::Bytes;
use evoke_engine::ResultStatus;
use evoke_proto::api;
use evoke_store::calls::{OutputRow, ResultBody};
use prost::Message;

/// The bytes to store for a container's answer.
pub(crate) fn stored_item(item: &api::FunctionPutOutputsItem) -> Bytes {
    let stored = api::FunctionGetOutputsItem {
        result: item.result.clone(),
        data_format: item.data_format,
        input_started_at: item.input_started_at,
        output_created_at: item.output_created_at,
        ..Default::default()
    };
    stored.encode_to_vec().into()
}

/// The bytes to store for a failure of a whole container.
pub(crate) fn stored_failure(result: &api::GenericResult) -> Bytes {
    // The format stays unspecified: the client then unpickles the exception if there is one.
    let stored = api::FunctionGetOutputsItem { result: Some(result.clone()), ..Default::default() };
    stored.encode_to_vec().into()
}

/// An output as clients get it.
pub(crate) fn client_item(row: &OutputRow) -> api::FunctionGetOutputsItem {
    let mut item = match &row.body {
        ResultBody::Container(bytes) => {
            api::FunctionGetOutputsItem::decode(bytes.clone()).unwrap_or_else(|error| {
                synthesised(ResultStatus::InternalFailure, &format!("The stored result is damaged: {error}"))
            })
        }
        ResultBody::Synthesised(text) => synthesised(row.status, text),
    };
    item.idx = row.idx;
    item.input_id = row.input_id.to_string();
    item.task_id = row.task.map(|task| task.to_string()).unwrap_or_default();
    // The engine retries, the client does not: it counts none and drops outputs that do.
    item.retry_count = 0;
    if item.input_started_at == 0.0 {
        item.input_started_at = row.started.map_or(0.0, |at| at.as_secs_f64());
    }
    if item.output_created_at == 0.0 {
        item.output_created_at = row.finished.as_secs_f64();
    }
    item
}

fn synthesised(status: ResultStatus, text: &str) -> api::FunctionGetOutputsItem {
    let result = api::GenericResult {
        status: i32::from(status.number()),
        exception: text.to_string(),
        ..Default::default()
    };
    api::FunctionGetOutputsItem { result: Some(result), ..Default::default() }
}

/// The engine's name for a result's status. What it has no name for is a failure of user code.
pub(crate) fn status_of(result: Option<&api::GenericResult>) -> ResultStatus {
    result
        .and_then(|result| u8::try_from(result.status).ok())
        .and_then(ResultStatus::from_number)
        .unwrap_or(ResultStatus::Failure)
}

/// Inputs of different methods never share a batch: the method's name as a number (FNV-1a).
pub(crate) fn group_of(method: &str) -> u32 {
    if method.is_empty() {
        return 0;
    }
    method.bytes().fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}
