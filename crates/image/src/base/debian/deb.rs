//! One .deb file: an `ar` archive of a control archive and a data archive.

use crate::base::blob::decompress;
use crate::error::{ImageError, Result};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Bytes of one file of the control archive at most.
const CONTROL_FILE_MAX: u64 = 8 * 1024 * 1024;
/// Files of the control archive at most.
const CONTROL_FILES_MAX: usize = 64;

/// Bytes of a data archive that is decompressed ahead of its use at most.
const PLAIN_MAX: u64 = 64 * 1024 * 1024;

/// A package file and where its parts are.
pub(super) struct Deb {
    path: PathBuf,
    control: (u64, u64),
    data: (u64, u64),
    /// The data archive as a plain tar stream, where it was decompressed ahead of its use.
    plain: Option<Vec<u8>>,
}

impl Deb {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let mut file = File::open(path).map_err(|e| ImageError::io("open", path, &e))?;
        let parts = members(&mut file).map_err(|e| ImageError::malformed(path.display().to_string(), e))?;
        let find = |start: &str| {
            parts
                .iter()
                .find(|(name, _, _)| name.starts_with(start))
                .map(|(_, offset, size)| (*offset, *size))
        };
        match (find("control.tar"), find("data.tar")) {
            (Some(control), Some(data)) => Ok(Self { path: path.to_owned(), control, data, plain: None }),
            _ => Err(ImageError::malformed(path.display().to_string(), "not a Debian package")),
        }
    }

    /// The files of the control archive: name without folders, mode, content.
    pub(super) fn control(&self) -> Result<Vec<(String, u32, Vec<u8>)>> {
        let broken = |e: std::io::Error| ImageError::malformed(self.path.display().to_string(), e);
        let mut archive = tar::Archive::new(self.part(self.control)?);
        let mut files = Vec::new();
        for entry in archive.entries().map_err(broken)? {
            let mut entry = entry.map_err(broken)?;
            let name = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_owned();
            if !entry.header().entry_type().is_file() || name.is_empty() || name.contains('/') {
                continue;
            }
            let mode = entry.header().mode().map_err(broken)?;
            let mut content = Vec::new();
            entry.by_ref().take(CONTROL_FILE_MAX).read_to_end(&mut content).map_err(broken)?;
            files.push((name, mode, content));
            if files.len() > CONTROL_FILES_MAX {
                let message = "too many files in its control archive";
                return Err(ImageError::malformed(self.path.display().to_string(), message));
            }
        }
        Ok(files)
    }

    /// The same with its data archive decompressed.
    pub(super) fn decompressed(mut self) -> Result<Self> {
        let mut plain = Vec::new();
        let read = self.part(self.data)?.take(PLAIN_MAX).read_to_end(&mut plain);
        let read = read.map_err(|e| ImageError::malformed(self.path.display().to_string(), e))?;
        if read as u64 == PLAIN_MAX {
            // Larger than its description says: read as it is used.
            return Ok(self);
        }
        self.plain = Some(plain);
        Ok(self)
    }

    /// The data archive as a plain tar stream. Asked for once.
    pub(super) fn data(&mut self) -> Result<Box<dyn Read + Send>> {
        match self.plain.take() {
            Some(plain) => Ok(Box::new(std::io::Cursor::new(plain))),
            None => self.part(self.data),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn part(&self, (offset, size): (u64, u64)) -> Result<Box<dyn Read + Send>> {
        let io = |e: std::io::Error| ImageError::io("read", &self.path, &e);
        let mut file = File::open(&self.path).map_err(io)?;
        file.seek(SeekFrom::Start(offset)).map_err(io)?;
        decompress(&self.path.display().to_string(), file.take(size))
    }
}

/// Name, offset and size of each member.
fn members(file: &mut (impl Read + Seek)) -> std::io::Result<Vec<(String, u64, u64)>> {
    let bad = |message: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, message.to_owned());
    let mut magic = [0u8; 8];
    file.read_exact(&mut magic)?;
    if &magic != b"!<arch>\n" {
        return Err(bad("not an ar archive"));
    }
    let mut at = 8u64;
    let mut found = Vec::new();
    // A package has three members; a few more are legal.
    while found.len() < 16 {
        let mut header = [0u8; 60];
        match file.read_exact(&mut header) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => break,
            Err(e) => return Err(e),
        }
        if &header[58..] != b"`\n" {
            return Err(bad("a broken member header"));
        }
        let text = |range: std::ops::Range<usize>| String::from_utf8_lossy(&header[range]).trim().to_owned();
        let name = text(0..16).trim_end_matches('/').to_owned();
        let size: u64 = text(48..58).parse().map_err(|_| bad("a broken member size"))?;
        at += 60;
        found.push((name, at, size));
        at += size + size % 2;
        file.seek(SeekFrom::Start(at))?;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn finds_members() {
        let member = |name: &str, data: &str| {
            let pad = if data.len() % 2 == 1 { "\n" } else { "" };
            format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n{data}{pad}", 0, 0, 0, 100644, data.len())
        };
        let text = format!("!<arch>\n{}{}", member("debian-binary", "2.0"), member("data.tar.xz/", "data"));
        let found = members(&mut std::io::Cursor::new(text)).unwrap();
        assert_eq!(found[1], ("data.tar.xz".into(), 132, 4));
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = members(&mut std::io::Cursor::new([b"!<arch>\n".to_vec(), bytes].concat()));
        }
    }
}
