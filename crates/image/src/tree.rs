//! Writes small trees as plain tar streams: folders, files and links that belong to root.

use crate::error::{ImageError, Result};
use std::io::{Read, Write};

/// A tar stream under way.
pub(crate) struct TreeWriter<W: Write> {
    what: String,
    tar: tar::Builder<W>,
}

impl<W: Write> TreeWriter<W> {
    /// Writes to `out`; `what` names it in errors.
    pub(crate) fn new(what: &str, out: W) -> Self {
        Self { what: what.to_owned(), tar: tar::Builder::new(out) }
    }

    fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(size);
        header
    }

    fn failed(&self) -> impl Fn(std::io::Error) -> ImageError + use<W> {
        let what = self.what.clone();
        move |e| ImageError::builder(format!("write {what}"), e)
    }

    /// A folder.
    pub(crate) fn folder(&mut self, path: &str, mode: u32) -> Result<()> {
        let mut header = Self::header(tar::EntryType::Directory, mode, 0);
        let failed = self.failed();
        self.tar.append_data(&mut header, format!("{path}/"), std::io::empty()).map_err(failed)
    }

    /// A file.
    pub(crate) fn file(&mut self, path: &str, mode: u32, data: &[u8]) -> Result<()> {
        self.stream(path, mode, data.len() as u64, data)
    }

    /// A file of known size, read as it is written.
    pub(crate) fn stream(&mut self, path: &str, mode: u32, size: u64, data: impl Read) -> Result<()> {
        let mut header = Self::header(tar::EntryType::Regular, mode, size);
        let failed = self.failed();
        self.tar.append_data(&mut header, path, data).map_err(failed)
    }

    /// A symbolic link.
    pub(crate) fn link(&mut self, path: &str, target: &str) -> Result<()> {
        let mut header = Self::header(tar::EntryType::Symlink, 0o777, 0);
        let failed = self.failed();
        self.tar.append_link(&mut header, path, target).map_err(failed)
    }

    /// Any entry, its header made by the caller.
    pub(crate) fn entry(&mut self, header: &mut tar::Header, path: &str, data: impl Read) -> Result<()> {
        let failed = self.failed();
        self.tar.append_data(header, path, data).map_err(failed)
    }

    /// A link of any kind, its header made by the caller.
    pub(crate) fn link_entry(&mut self, header: &mut tar::Header, path: &str, target: &str) -> Result<()> {
        let failed = self.failed();
        self.tar.append_link(header, path, target).map_err(failed)
    }

    /// Writes the end of the stream.
    pub(crate) fn finish(mut self) -> Result<()> {
        let failed = self.failed();
        self.tar.finish().map_err(failed)
    }
}
