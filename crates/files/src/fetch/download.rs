//! A body into a file: resumed where the connection broke, checked before it gets its name.

use super::{FetchError, Fetcher, Reply, redact_url};
use crate::{ContentHash, content_hash::COPY_BUFFER_BYTES, io_failure::IoContext};
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::Instant,
};

/// Called as bytes arrive: how many there are, and how many there will be where the server said.
pub type Progress<'a> = &'a (dyn Fn(u64, Option<u64>) + Sync);

/// What to download and what is known about it.
#[derive(Clone, Default)]
pub struct Download<'a> {
    /// Where it is.
    pub url: &'a str,
    /// Further request headers.
    pub headers: &'a [(&'a str, &'a str)],
    /// The content's hash, where known.
    pub sha256: Option<ContentHash>,
    /// The content's length in bytes, where known.
    pub length: Option<u64>,
    /// It is needed for a moment only: it is not synced, and one that is there already is used once its hash
    /// was found right. Needs a hash.
    pub passing: bool,
    /// Whom to tell.
    pub progress: Option<Progress<'a>>,
}

/// What arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Downloaded {
    /// Length in bytes.
    pub length: u64,
    /// Hash of the content.
    pub sha256: ContentHash,
}

/// A download under way.
struct Partial {
    path: PathBuf,
    file: File,
    hasher: Sha256,
    length: u64,
    /// It was given up for its slowness.
    slow: bool,
    /// The version of the content that the bytes so far belong to.
    tag: Option<String>,
}

impl Fetcher {
    /// Brings the content to `target` (its folder must exist). The bytes go to `<target>.part` and are
    /// renamed and synced once length and hash are right. A broken connection continues where it stopped;
    /// a left-over part of an earlier call is continued only where a hash tells whether the whole is right.
    pub fn download(&self, what: &Download<'_>, target: &Path) -> Result<Downloaded, FetchError> {
        if let Some(there) = left_over(what, target)? {
            return Ok(there);
        }
        let mut partial = Partial::open(target, what.sha256.is_some())?;
        let resumed_from_disk = partial.length > 0;
        let fetched = self.fill(what, &mut partial);
        let checked = fetched.and_then(|()| partial.check(what));
        match checked {
            // The left-over may have belonged to another content: once more from the beginning.
            Err(FetchError::Mismatch { .. } | FetchError::Status { status: 416, .. })
                if resumed_from_disk =>
            {
                partial.restart()?;
                self.fill(what, &mut partial)?;
                partial.check(what)?;
            }
            Err(error @ FetchError::Mismatch { .. }) => {
                fs::remove_file(&partial.path).during("remove", &partial.path)?;
                return Err(error);
            }
            other => other?,
        }
        if !what.passing {
            partial.file.sync_data().during("sync", &partial.path)?;
        }
        fs::rename(&partial.path, target).during("rename to", target)?;
        Ok(Downloaded { length: partial.length, sha256: partial.hash() })
    }

    /// Reads until the end of the content, over as many connections as the limits allow.
    fn fill(&self, what: &Download<'_>, partial: &mut Partial) -> Result<(), FetchError> {
        let (mut failures, mut since) = (0, Instant::now());
        loop {
            let before = partial.length;
            match self.fill_once(what, partial) {
                Err(FetchError::Unreachable { url, reason }) => {
                    // Progress resets the count: a long download over a bad line is not given up early.
                    let progress = partial.length > before && !std::mem::take(&mut partial.slow);
                    failures = if progress { 1 } else { failures + 1 };
                    if progress {
                        since = Instant::now();
                    }
                    if self.is_last(failures, since) {
                        return Err(FetchError::Unreachable { url, reason });
                    }
                    self.back_off(failures, None);
                }
                other => return other,
            }
        }
    }

    fn fill_once(&self, what: &Download<'_>, partial: &mut Partial) -> Result<(), FetchError> {
        if what.length.is_some_and(|length| length == partial.length && length > 0) {
            return Ok(());
        }
        let mut headers = what.headers.to_vec();
        // Ranges and lengths count the bytes as they are sent, so no encoding may lie over them.
        headers.push(("accept-encoding", "identity"));
        let range = format!("bytes={}-", partial.length);
        let tag = partial.tag.clone();
        if partial.length > 0 {
            headers.push(("range", &range));
            if let Some(tag) = &tag {
                headers.push(("if-range", tag));
            }
        }
        let reply = self.get(what.url, &headers)?.success()?;
        let start = if reply.status == 206 { range_start(&reply) } else { Some(0) };
        if start != Some(partial.length) {
            partial.restart()?;
            if start != Some(0) {
                let reason = "it answered with another range than was asked for".to_owned();
                return Err(FetchError::Unreachable { url: redact_url(what.url), reason });
            }
        }
        // A weak tag does not promise the same bytes.
        partial.tag = reply.header("etag").filter(|tag| tag.starts_with('"')).map(str::to_owned);
        partial.append(reply, what)
    }
}

impl Partial {
    fn open(target: &Path, keep: bool) -> Result<Self, FetchError> {
        let mut name = target.as_os_str().to_owned();
        name.push(".part");
        let path = PathBuf::from(name);
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(!keep).open(&path);
        let mut file = file.during("open", &path)?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; COPY_BUFFER_BYTES];
        let mut length = 0;
        loop {
            let n = file.read(&mut buffer).during("read", &path)?;
            if n == 0 {
                return Ok(Self { path, file, hasher, length, slow: false, tag: None });
            }
            hasher.update(&buffer[..n]);
            length += n as u64;
        }
    }

    fn restart(&mut self) -> Result<(), FetchError> {
        self.file.set_len(0).during("truncate", &self.path)?;
        self.file.seek(SeekFrom::Start(0)).during("seek in", &self.path)?;
        self.hasher = Sha256::new();
        self.length = 0;
        self.tag = None;
        Ok(())
    }

    fn append(&mut self, mut reply: Reply, what: &Download<'_>) -> Result<(), FetchError> {
        let rest: Option<u64> = reply.header("content-length").and_then(|v| v.parse().ok());
        let whole = what.length.or(rest.map(|n| n + self.length));
        let broken = |reason: String| FetchError::Unreachable { url: redact_url(what.url), reason };
        let mut buffer = vec![0; COPY_BUFFER_BYTES];
        loop {
            let n = reply.read(&mut buffer).map_err(|e| {
                self.slow |= e.kind() == ErrorKind::TimedOut;
                broken(e.to_string())
            })?;
            if n == 0 {
                break;
            }
            self.file.write_all(&buffer[..n]).during("write", &self.path)?;
            self.hasher.update(&buffer[..n]);
            self.length += n as u64;
            if let Some(limit_bytes) = what.length.filter(|length| self.length > *length) {
                return Err(FetchError::TooLarge { url: redact_url(what.url), limit_bytes });
            }
            if let Some(tell) = what.progress {
                tell(self.length, whole);
            }
        }
        match whole {
            Some(whole) if self.length < whole => Err(broken("the connection ended early".to_owned())),
            _ => Ok(()),
        }
    }

    fn hash(&self) -> ContentHash {
        ContentHash(self.hasher.clone().finalize().into())
    }

    fn check(&self, what: &Download<'_>) -> Result<(), FetchError> {
        let mismatch = |what_differs, wanted: String, got: String| FetchError::Mismatch {
            url: redact_url(what.url),
            what: what_differs,
            wanted,
            got,
        };
        if let Some(length) = what.length.filter(|length| *length != self.length) {
            return Err(mismatch("length", length.to_string(), self.length.to_string()));
        }
        let hash = self.hash();
        match what.sha256 {
            Some(wanted) if wanted != hash => Err(mismatch("SHA-256", wanted.to_string(), hash.to_string())),
            _ => Ok(()),
        }
    }
}

/// A file of an earlier call that is the whole content. It was not synced, so a name alone tells nothing.
fn left_over(what: &Download<'_>, target: &Path) -> Result<Option<Downloaded>, FetchError> {
    let Some(wanted) = what.sha256.filter(|_| what.passing && target.is_file()) else { return Ok(None) };
    let mut file = File::open(target).during("open", target)?;
    let mut hasher = Sha256::new();
    let length = std::io::copy(&mut file, &mut hasher).during("read", target)?;
    let sha256 = ContentHash(hasher.finalize().into());
    Ok((sha256 == wanted).then_some(Downloaded { length, sha256 }))
}

/// The first byte that a 206 answer holds.
fn range_start(reply: &Reply) -> Option<u64> {
    let range = reply.header("content-range")?.strip_prefix("bytes ")?;
    range.split('-').next()?.trim().parse().ok()
}
