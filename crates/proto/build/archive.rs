//! Reads one member of a zip archive that is in memory. A wheel needs nothing more: no encryption, no
//! archives over 4 GiB, stored or deflated members only.

use miniz_oxide::inflate::decompress_to_vec_with_limit;

/// Largest member accepted, in bytes.
const MEMBER_BYTES_MAX: usize = 64 << 20;
const END_SIGNATURE: &[u8] = b"PK\x05\x06";
const END_LEN: usize = 22;
const ENTRY_SIGNATURE: &[u8] = b"PK\x01\x02";
const ENTRY_LEN: usize = 46;
const LOCAL_LEN: usize = 30;

/// The content of the member called `name`.
pub fn member(archive: &[u8], name: &str) -> Result<Vec<u8>, String> {
    let end = archive
        .windows(END_LEN)
        .rposition(|window| window.starts_with(END_SIGNATURE))
        .ok_or("not a zip archive")?;
    let entries = number(archive, end + 10, 2)?;
    let mut at = number(archive, end + 16, 4)?;
    for _ in 0..entries {
        let entry = slice(archive, at, ENTRY_LEN)?;
        if !entry.starts_with(ENTRY_SIGNATURE) {
            return Err("a damaged zip directory".into());
        }
        let name_len = number(entry, 28, 2)?;
        if slice(archive, at + ENTRY_LEN, name_len)? == name.as_bytes() {
            return content(archive, entry);
        }
        at += ENTRY_LEN + name_len + number(entry, 30, 2)? + number(entry, 32, 2)?;
    }
    Err("no such member".into())
}

fn content(archive: &[u8], entry: &[u8]) -> Result<Vec<u8>, String> {
    let (method, packed_len, len) = (number(entry, 10, 2)?, number(entry, 20, 4)?, number(entry, 24, 4)?);
    let local = number(entry, 42, 4)?;
    if len > MEMBER_BYTES_MAX {
        return Err(format!("{len} bytes are more than the {MEMBER_BYTES_MAX} allowed"));
    }
    let start = local + LOCAL_LEN + number(archive, local + 26, 2)? + number(archive, local + 28, 2)?;
    let packed = slice(archive, start, packed_len)?;
    match method {
        0 => Ok(packed.to_vec()),
        8 => decompress_to_vec_with_limit(packed, len).map_err(|e| format!("does not inflate: {e}")),
        other => Err(format!("packed by a method ({other}) that wheels do not use")),
    }
}

fn slice(bytes: &[u8], at: usize, len: usize) -> Result<&[u8], String> {
    at.checked_add(len).and_then(|end| bytes.get(at..end)).ok_or_else(|| "a cut-off zip archive".into())
}

fn number(bytes: &[u8], at: usize, len: usize) -> Result<usize, String> {
    Ok(slice(bytes, at, len)?.iter().rev().fold(0usize, |n, byte| (n << 8) | usize::from(*byte)))
}
