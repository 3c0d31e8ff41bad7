//! Frames: how containers with the lean runtime call, over a connection of their own socket. It costs both ends
//! a fraction of what HTTP/2 does in Python, and carries the same calls to the same [`Service`](crate::Service).
//!
//! A connection begins, in both directions, with [`PREFACE`], whose last byte is the version; then a `Hello`
//! each, the caller's with the headers that all of its requests have. After that every frame is a head (length,
//! kind, number of the call) and a body. The caller numbers its calls upwards. A call is a `Request` (path,
//! headers), its message or messages, and an answer that ends it.
//!
//! - A message is announced with its length. One of up to [`MESSAGE_FREE`] bytes follows its announcement at
//!   once; the parts of a larger one are sent after the other end said `Grant`: for a request, once there is
//!   memory for it.
//! - Parts are small, and those of different calls take turns, so that a large one does not hold up the others.
//! - The messages of a stream are sent ahead of their being taken up to [`STREAM_AHEAD`] bytes.
//! - What a single call does wrong is answered in its `End`. What makes the rest of the bytes meaningless ends
//!   the connection, after a `Fault` with the reason.
//!
//! What a number of calls or a length may be is bounded here; who calls is known by the listener.

mod answer;
mod codec;
mod connection;

pub use codec::{PREFACE, VERSION};
pub use connection::serve;

/// Longest body of one frame, in bytes.
const BODY_BYTES_MAX: usize = 128 << 10;
/// Bytes of a message in one frame.
const PART_BYTES: usize = 64 << 10;
/// Messages up to this size are sent without asking, in bytes.
const MESSAGE_FREE: usize = crate::invoke::BUDGET_FREE;
/// Calls at a time on one connection; a caller that has more waits.
const CALLS_MAX: usize = 16_384;
/// Bytes of a stream's messages that may be on their way before the caller has taken them.
const STREAM_AHEAD: i64 = 1 << 20;
/// Frames that wait to be written; who has more waits.
const WRITES_MAX: usize = 64;

#[cfg(test)]
mod tests;
