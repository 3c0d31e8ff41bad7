//! Where to cut a stream of output into chunks: at newlines where there are any, never inside a character.

/// Most bytes in one chunk.
pub(crate) const CHUNK_BYTES_MAX: usize = 64 * 1024;

/// What follows after the bytes at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// More may follow at any time: an unfinished line waits for its rest.
    Open,
    /// More may follow, but what is there has waited long enough: an unfinished line is shipped, an
    /// unfinished character waits.
    Late,
    /// What follows must not share a chunk with these bytes, or nothing follows: everything is shipped.
    Closed,
}

/// Length of the chunk to ship from the start of `bytes`; 0 where it is better to wait.
pub(crate) fn next_chunk(bytes: &[u8], end: End) -> usize {
    let window = &bytes[..bytes.len().min(CHUNK_BYTES_MAX)];
    if let Some(newline) = window.iter().rposition(|b| *b == b'\n') {
        return newline + 1;
    }
    let full = window.len() == CHUNK_BYTES_MAX;
    match end {
        _ if full => whole_characters(window),
        End::Open => 0,
        End::Late => whole_characters(window),
        End::Closed => window.len(),
    }
}

/// Length of `bytes` without an unfinished UTF-8 sequence at their end. Bytes that are not UTF-8 at all are
/// left alone.
fn whole_characters(bytes: &[u8]) -> usize {
    let tail = bytes.len().min(3);
    for back in 1..=tail {
        let at = bytes.len() - back;
        let needed = match bytes[at] {
            0x80..=0xBF => continue,
            0xC2..=0xDF => 2,
            0xE0..=0xEF => 3,
            0xF0..=0xF4 => 4,
            _ => 1,
        };
        return if needed > back { at } else { bytes.len() };
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn cuts_at_the_last_newline_and_waits_for_the_rest() {
        for (bytes, end, expected) in [
            (&b"one\ntwo\nthr"[..], End::Open, 8),
            (b"one", End::Open, 0),
            (b"one", End::Late, 3),
            (b"one", End::Closed, 3),
            (b"", End::Closed, 0),
            ("caf\u{e9}".as_bytes(), End::Late, 5),
            (b"caf\xC3", End::Late, 3),
            (b"caf\xC3", End::Closed, 4),
            (b"\xE2\x82", End::Late, 0),
            (b"\xF0\x9F\x98", End::Late, 0),
            (b"\xF0\x9F\x98\x80", End::Late, 4),
            (b"\x80\x80\x80\x80", End::Late, 4),
            (b"ab\xFF", End::Late, 3),
        ] {
            assert_eq!(next_chunk(bytes, end), expected, "{bytes:?} {end:?}");
        }
    }

    #[test]
    fn a_line_longer_than_a_chunk_is_cut_between_characters() {
        let line = "\u{20ac}".repeat(CHUNK_BYTES_MAX);
        let len = next_chunk(line.as_bytes(), End::Open);
        assert!(len > CHUNK_BYTES_MAX - 3 && line.is_char_boundary(len));
    }

    proptest! {
        #[test]
        fn pieces_join_to_the_whole_and_keep_text_valid(
            text in proptest::collection::vec("[a-z\u{e9}\u{20ac}\u{1f600}\n]{0,40}", 0..60),
            arrivals in proptest::collection::vec((1usize..200, any::<bool>()), 1..80),
        ) {
            let whole: String = text.concat();
            let bytes = whole.as_bytes();
            let (mut seen, mut cut, mut joined) = (0, 0, Vec::new());
            for (n, late) in arrivals {
                seen = (seen + n).min(bytes.len());
                loop {
                    let len = next_chunk(&bytes[cut..seen], if late { End::Late } else { End::Open });
                    if len == 0 { break; }
                    let piece = &bytes[cut..cut + len];
                    prop_assert!(std::str::from_utf8(piece).is_ok());
                    prop_assert!(late || piece.ends_with(b"\n"));
                    joined.extend_from_slice(piece);
                    cut += len;
                }
                prop_assert!(!late || seen - cut < 4);
            }
            while cut < bytes.len() {
                let len = next_chunk(&bytes[cut..], End::Closed);
                prop_assert!(len > 0 && len <= CHUNK_BYTES_MAX);
                joined.extend_from_slice(&bytes[cut..cut + len]);
                cut += len;
            }
            prop_assert_eq!(joined, bytes);
        }

        #[test]
        fn arbitrary_bytes_never_stall(bytes in proptest::collection::vec(any::<u8>(), 1..300)) {
            let late = next_chunk(&bytes, End::Late);
            prop_assert!(bytes.len() - late < 4 || bytes[..late].ends_with(b"\n"));
            prop_assert!(next_chunk(&bytes, End::Closed) > 0);
        }
    }
}
