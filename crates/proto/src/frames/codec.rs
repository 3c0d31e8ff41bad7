//! Frames as bytes. Knows their form, not what they mean.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::BODY_BYTES_MAX;
use crate::Status;
use crate::invoke::{DETAILS_BYTES_MAX, cut};

/// The version of this form.
pub const VERSION: u8 = 1;
/// What a connection begins with; no HTTP connection begins with a zero.
pub const PREFACE: [u8; 8] = *b"\0evoke\0\x01";

/// Bytes in front of each body: its length, the kind, the number of the call.
const HEAD_LEN: usize = 9;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// The first frame of each side. The caller's body: headers of all requests. The server's: the largest
    /// message and the number of calls at a time, four bytes each.
    Hello = 1,
    /// A call begins: its path, its headers.
    Request = 2,
    /// A message begins: its length in four bytes, then all of it if it is small.
    Message = 3,
    /// More of the message that was announced.
    Part = 4,
    /// From the caller: no more messages. From the server: the end of the call, with its status.
    End = 5,
    /// The caller does not want the answer any more.
    Cancel = 6,
    /// To who announced a message: send it. To who streams: so many bytes more.
    Grant = 7,
    /// The one message of an answer, small, and its end without anything more to say.
    Reply = 8,
    /// What is wrong with the connection, which ends.
    Fault = 9,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        use Kind::{Cancel, End, Fault, Grant, Hello, Message, Part, Reply, Request};
        [Hello, Request, Message, Part, End, Cancel, Grant, Reply, Fault]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    pub kind: Kind,
    /// The number of the call; zero for what concerns the connection.
    pub call: u32,
    pub body: Bytes,
}

/// Takes the next frame out of what arrived; none if it is not complete yet. An error is about the whole
/// connection: where the next frame would begin is not known.
pub(super) fn decode(arrived: &mut BytesMut) -> Result<Option<Frame>, String> {
    let Some(head) = arrived.get(..HEAD_LEN) else { return Ok(None) };
    let mut head = head;
    let (length, kind, call) = (head.get_u32_le() as usize, head.get_u8(), head.get_u32_le());
    if length > BODY_BYTES_MAX {
        return Err(format!("a frame of {length} bytes is over the limit of {BODY_BYTES_MAX}"));
    }
    let Some(kind) = Kind::of(kind) else { return Err(format!("there is no kind {kind} of frames")) };
    let Some(body) = arrived.get(HEAD_LEN..HEAD_LEN + length) else {
        arrived.reserve(HEAD_LEN + length - arrived.len());
        return Ok(None);
    };
    // A copy, so that a small message that is kept does not keep all that arrived with it.
    let body = Bytes::copy_from_slice(body);
    arrived.advance(HEAD_LEN + length);
    Ok(Some(Frame { kind, call, body }))
}

/// A frame with this body, which is under the limit.
pub(super) fn encode(kind: Kind, call: u32, body: &[u8]) -> Bytes {
    encode_with(kind, call, body.len(), |into| into.put_slice(body))
}

fn encode_with(kind: Kind, call: u32, length: usize, fill: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut into = BytesMut::with_capacity(HEAD_LEN + length);
    // Nothing that is encoded here comes near the four GiB that the head can say.
    into.put_u32_le(length as u32);
    into.put_u8(kind as u8);
    into.put_u32_le(call);
    fill(&mut into);
    into.freeze()
}

/// The announcement of a message of `length` bytes, with its beginning.
pub(super) fn message(call: u32, length: usize, first: &[u8]) -> Bytes {
    encode_with(Kind::Message, call, 4 + first.len(), |into| {
        into.put_u32_le(length as u32);
        into.put_slice(first);
    })
}

/// The end of a call: status, message, details, then warnings, as the client bounds them.
pub(super) fn end(call: u32, failure: Option<&Status>, warnings: &[String]) -> Bytes {
    let mut body = BytesMut::new();
    body.put_u8(failure.map_or(0, |status| status.code as u8));
    put_long(&mut body, failure.map_or("", |status| cut(&status.message)).as_bytes());
    let details = failure.and_then(|status| status.details.as_ref());
    put_long(&mut body, details.filter(|d| d.len() <= DETAILS_BYTES_MAX).map_or(&[], |d| d));
    // A call has at most 16 of them.
    body.put_u8(u8::try_from(warnings.len()).unwrap_or(u8::MAX));
    for warning in warnings.iter().take(u8::MAX.into()) {
        put_long(&mut body, cut(warning).as_bytes());
    }
    encode(Kind::End, call, &body)
}

fn put_long(into: &mut BytesMut, bytes: &[u8]) {
    into.put_u32_le(bytes.len() as u32);
    into.put_slice(bytes);
}

/// Path and headers of a request.
pub(super) fn read_request(mut body: Bytes) -> Result<(String, HeaderMap), String> {
    let path = take(&mut body, 2)?;
    let path = String::from_utf8(path.to_vec()).map_err(|_| "the path of a call is not text".to_owned())?;
    Ok((path, read_headers(body)?))
}

/// Headers: name and value, each after its length of one and two bytes.
pub(super) fn read_headers(mut body: Bytes) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    while body.has_remaining() {
        let name = take(&mut body, 1)?;
        let value = take(&mut body, 2)?;
        let shown = || String::from_utf8_lossy(&name).into_owned();
        let parsed = HeaderName::from_bytes(&name).map_err(|_| format!("{:?} names no header", shown()))?;
        let value = HeaderValue::from_maybe_shared(value)
            .map_err(|_| format!("the value of {:?} is not allowed in a header", shown()))?;
        headers.append(parsed, value);
    }
    Ok(headers)
}

/// The length of a message and what came with it.
pub(super) fn read_message(mut body: Bytes) -> Result<(usize, Bytes), String> {
    let length = body.try_get_u32_le().map_err(|_| "a message is announced without its length".to_owned())?;
    Ok((length as usize, body))
}

/// A number of bytes that were taken.
pub(super) fn read_grant(mut body: Bytes) -> Result<u32, String> {
    body.try_get_u32_le().map_err(|_| "a grant says no number".to_owned())
}

/// What follows its own length of `width` little-endian bytes.
fn take(from: &mut Bytes, width: usize) -> Result<Bytes, String> {
    let short = || "a head ends within a text".to_owned();
    if from.remaining() < width {
        return Err(short());
    }
    let length = from.get_uint_le(width) as usize;
    if from.remaining() < length {
        return Err(short());
    }
    Ok(from.split_to(length))
}
