//! Protobuf at the level of bytes: takes one field out of a message, and appends one, without decoding the
//! rest. Definitions are kept as the client sent them, so that fields which this server does not know are
//! not lost on their way to the container.

use bytes::{Buf, Bytes};

/// The last occurrence of length-delimited field `number` in `message`; `None` where it is absent or the
/// message is malformed. (Protobuf lets a singular field occur more than once; the official client never
/// splits a message field, so the last one is the whole.)
pub fn field(message: &Bytes, number: u32) -> Option<Bytes> {
    scan(message, number, false)
}

/// The first occurrence of repeated length-delimited field `number` in `message`.
pub fn first_field(message: &Bytes, number: u32) -> Option<Bytes> {
    scan(message, number, true)
}

fn scan(message: &Bytes, number: u32, first: bool) -> Option<Bytes> {
    let mut rest = message.clone();
    let mut found = None;
    while rest.has_remaining() {
        let key = varint(&mut rest)?;
        match key & 7 {
            0 => {
                varint(&mut rest)?;
            }
            1 => skip(&mut rest, 8)?,
            2 => {
                let length = usize::try_from(varint(&mut rest)?).ok()?;
                if rest.remaining() < length {
                    return None;
                }
                let value = rest.split_to(length);
                if key >> 3 == u64::from(number) {
                    found = Some(value);
                    if first {
                        return found;
                    }
                }
            }
            5 => skip(&mut rest, 4)?,
            _ => return None,
        }
    }
    found
}

/// Appends length-delimited field `number` with `value` to `message`.
pub fn append(message: &mut Vec<u8>, number: u32, value: &[u8]) {
    push_varint(message, u64::from(number) << 3 | 2);
    push_varint(message, value.len() as u64);
    message.extend_from_slice(value);
}

fn skip(rest: &mut Bytes, count: usize) -> Option<()> {
    if rest.remaining() < count {
        return None;
    }
    rest.advance(count);
    Some(())
}

fn varint(rest: &mut Bytes) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        if !rest.has_remaining() {
            return None;
        }
        let byte = rest.get_u8();
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn push_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_out_what_was_put_in_and_skips_the_rest() {
        let mut message = Vec::new();
        push_varint(&mut message, 3 << 3); // field 3, varint
        push_varint(&mut message, 300);
        append(&mut message, 200, b"kept");
        push_varint(&mut message, 4 << 3 | 5); // field 4, fixed 32
        message.extend_from_slice(&[1, 2, 3, 4]);
        let message = Bytes::from(message);
        assert_eq!(field(&message, 200).as_deref(), Some(&b"kept"[..]));
        assert_eq!(field(&message, 7), None);
    }

    #[test]
    fn malformed_messages_have_no_fields() {
        for bad in [&[0x0a, 0x05, 1][..], &[0xff; 12], &[0x0b]] {
            assert_eq!(field(&Bytes::copy_from_slice(bad), 1), None);
        }
    }
}
