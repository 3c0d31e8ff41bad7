//! The build script's reader of Python literals.

#[path = "../build/python_literal.rs"]
mod python_literal;

use python_literal::first_argument;

fn read(source: &str) -> Result<Vec<u8>, String> {
    first_argument(source.as_bytes(), b"f(")
}

#[test]
fn reads_every_escape() {
    let source = r#"x = f(b'\n\t\r\a\b\f\v\\\'\"\x00\xFf\0\101\777z\q"' b"it's")"#;
    let expected = b"\n\t\r\x07\x08\x0C\x0B\\'\"\x00\xFF\x00A\xFFz\\q\"it's";
    assert_eq!(read(source).unwrap(), expected);
}

#[test]
fn refuses_what_is_no_bytes_literal() {
    for source in ["", "f(", "f('text')", "f(b'open", "f(b'line\n')", r"f(b'\x1", r"f(b'\xzz')", "f(b'\\"] {
        assert!(read(source).is_err(), "{source}");
    }
}
