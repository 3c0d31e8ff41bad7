//! The name by which programs ask for a shared library, as the library itself states it. A loader finds it by
//! that name; packages make the link with `ldconfig`, and where files are bound into a container it is missing.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Program headers and dynamic entries read at most; real ones have some dozens.
const ENTRIES_MAX: u64 = 1024;
/// Bytes of a name at most.
const NAME_MAX: usize = 256;

const PT_LOAD: u64 = 1;
const PT_DYNAMIC: u64 = 2;
const DT_STRTAB: u64 = 5;
const DT_SONAME: u64 = 14;

/// The name of the library in a file; none if it is no 64-bit library with one.
pub(super) fn of(path: &Path) -> Option<String> {
    let file = File::open(path).ok()?;
    let header: [u8; 64] = bytes(&file, 0)?;
    // 64 bits, little endian: what both of our processors are.
    if header[..6] != [0x7f, b'E', b'L', b'F', 2, 1] {
        return None;
    }
    let (table, size, count) = (word(&header, 32, 8), word(&header, 54, 2), word(&header, 56, 2));
    let headers = (0..count.min(ENTRIES_MAX))
        .map_while(|n| bytes::<56>(&file, table.checked_add(n.checked_mul(size)?)?))
        .collect::<Vec<_>>();
    let dynamic = headers.iter().find(|header| word(*header, 0, 4) == PT_DYNAMIC)?;
    let (start, length) = (word(dynamic, 8, 8), word(dynamic, 32, 8));
    let entries = (0..(length / 16).min(ENTRIES_MAX))
        .map_while(|n| bytes::<16>(&file, start.checked_add(n * 16)?))
        .map(|entry| (word(&entry, 0, 8), word(&entry, 8, 8)))
        .collect::<Vec<_>>();
    let entry = |tag| entries.iter().find(|(found, _)| *found == tag).map(|(_, value)| *value);
    let (strings, name) = (entry(DT_STRTAB)?, entry(DT_SONAME)?);
    // The table of strings is told by its address in memory.
    let segment = headers.iter().find(|header| {
        let (from, size) = (word(*header, 16, 8), word(*header, 32, 8));
        word(*header, 0, 4) == PT_LOAD && strings >= from && strings - from < size
    })?;
    let offset = (strings - word(segment, 16, 8)).checked_add(word(segment, 8, 8))?.checked_add(name)?;
    let mut text = [0; NAME_MAX];
    let read = file.read_at(&mut text, offset).ok()?;
    let end = text[..read].iter().position(|byte| *byte == 0)?;
    let name = std::str::from_utf8(&text[..end]).ok()?;
    let plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-+".contains(&b));
    (plain && !name.starts_with('.')).then(|| name.to_owned())
}

fn bytes<const N: usize>(file: &File, offset: u64) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    file.read_exact_at(&mut bytes, offset).ok()?;
    Some(bytes)
}

fn word(bytes: &[u8], at: usize, length: usize) -> u64 {
    bytes.iter().skip(at).take(length).rev().fold(0, |word, byte| (word << 8) | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_say_their_names_and_nothing_else_does() {
        let folders = ["/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu", "/lib64"];
        let found =
            folders.iter().map(|folder| Path::new(folder).join("libc.so.6")).find(|path| path.exists());
        let found = found.expect("this machine's C library");
        assert_eq!(of(&found).as_deref(), Some("libc.so.6"));
        let folder = tempfile::tempdir().unwrap();
        let whole = std::fs::read(found).unwrap();
        for length in [0, 3, 64, 100, 1000, whole.len() / 2] {
            let cut = folder.path().join("cut");
            std::fs::write(&cut, &whole[..length]).unwrap();
            // Cut off anywhere it gives a name or none, and does not fail.
            let _ = of(&cut);
        }
        std::fs::write(folder.path().join("text"), "libx.so.1").unwrap();
        assert_eq!(of(&folder.path().join("text")), None);
    }
}
