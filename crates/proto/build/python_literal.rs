//! Reads one Python bytes literal out of a Python source file, so that the build needs no Python.

/// The value of the bytes literal that follows `call` in `source`.
pub fn first_argument(source: &[u8], call: &[u8]) -> Result<Vec<u8>, String> {
    let at = source
        .windows(call.len())
        .position(|window| window == call)
        .ok_or_else(|| format!("no call of {}", String::from_utf8_lossy(call)))?;
    let mut rest = &source[at + call.len()..];
    let mut value = Vec::new();
    let mut found = false;
    // Adjacent literals are one value in Python.
    loop {
        rest = rest.trim_ascii_start();
        match rest {
            [b'b' | b'B', quote @ (b'\'' | b'"'), tail @ ..] => {
                rest = unescape(tail, *quote, &mut value)?;
                found = true;
            }
            _ if found => return Ok(value),
            _ => return Err("the argument is not a bytes literal".into()),
        }
    }
}

/// Appends the value of a literal whose opening quote was consumed; gives what follows its closing quote.
fn unescape<'a>(mut text: &'a [u8], quote: u8, value: &mut Vec<u8>) -> Result<&'a [u8], String> {
    loop {
        match text {
            [] | [b'\n', ..] => return Err("the bytes literal does not end".into()),
            [byte, tail @ ..] if *byte == quote => return Ok(tail),
            [b'\\', tail @ ..] => text = escape(tail, value)?,
            [byte, tail @ ..] => {
                value.push(*byte);
                text = tail;
            }
        }
    }
}

/// Appends what the escape after a backslash stands for; gives what follows it.
fn escape<'a>(text: &'a [u8], value: &mut Vec<u8>) -> Result<&'a [u8], String> {
    let (byte, tail) = match text {
        [b'x', high, low, tail @ ..] => {
            let digit = |c: u8| (c as char).to_digit(16).ok_or("a \\x escape without two hex digits");
            ((digit(*high)? * 16 + digit(*low)?) as u8, tail)
        }
        [b'0'..=b'7', ..] => {
            let digits = text.iter().take(3).take_while(|c| (b'0'..=b'7').contains(c)).count();
            let number = text[..digits].iter().fold(0u32, |n, c| n * 8 + u32::from(c - b'0'));
            // Python keeps the low eight bits.
            ((number & 0xFF) as u8, &text[digits..])
        }
        [b'\n', tail @ ..] => return Ok(tail),
        [letter, tail @ ..] => {
            let byte = match letter {
                b'n' => b'\n',
                b't' => b'\t',
                b'r' => b'\r',
                b'a' => 0x07,
                b'b' => 0x08,
                b'f' => 0x0C,
                b'v' => 0x0B,
                b'\\' | b'\'' | b'"' => *letter,
                // Python keeps the backslash of an escape it does not know.
                other => {
                    value.push(b'\\');
                    *other
                }
            };
            (byte, tail)
        }
        [] => return Err("the bytes literal ends in a backslash".into()),
    };
    value.push(byte);
    Ok(tail)
}
