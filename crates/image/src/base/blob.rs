//! Compressed layers to plain tar streams in a pipe.

use super::room::Room;
use crate::error::{ImageError, Result};
use std::io::{BufReader, Read, Write};
use std::os::fd::OwnedFd;
use tokio::task::JoinHandle;

/// Bytes handed on at a time.
const CHUNK: usize = 128 * 1024;

/// A stream with whatever compression its first bytes name taken off.
pub(crate) fn decompress(what: &str, reader: impl Read + Send + 'static) -> Result<Box<dyn Read + Send>> {
    let mut reader = BufReader::with_capacity(CHUNK, reader);
    let mut head = [0u8; 6];
    let mut filled = 0;
    while filled < head.len() {
        match reader.read(&mut head[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(ImageError::malformed(what, e)),
        }
    }
    let start = std::io::Cursor::new(head[..filled].to_vec());
    let whole = start.chain(reader);
    Ok(match &head[..filled] {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(whole)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(Zstd::new(whole)),
        [0xfd, b'7', b'z', b'X', b'Z', 0] => Box::new(liblzma::read::XzDecoder::new_multi_decoder(whole)),
        _ => Box::new(whole),
    })
}

/// A zstd stream of one or more frames, those to be skipped among them.
struct Zstd<R: Read> {
    state: Option<Frame<R>>,
}

enum Frame<R: Read> {
    Between(PushBack<R>),
    Within(Box<ruzstd::decoding::StreamingDecoder<PushBack<R>, ruzstd::decoding::FrameDecoder>>),
}

/// A reader that can be given bytes back.
struct PushBack<R: Read> {
    front: Vec<u8>,
    inner: R,
}

impl<R: Read> Read for PushBack<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.front.is_empty() {
            return self.inner.read(buffer);
        }
        let n = self.front.len().min(buffer.len());
        buffer[..n].copy_from_slice(&self.front[..n]);
        self.front.drain(..n);
        Ok(n)
    }
}

impl<R: Read> Zstd<R> {
    fn new(reader: R) -> Self {
        Self { state: Some(Frame::Between(PushBack { front: Vec::new(), inner: reader })) }
    }

    /// Goes to the next frame with content; none at the end of the stream.
    fn open(mut reader: PushBack<R>) -> std::io::Result<Option<Frame<R>>> {
        loop {
            let mut magic = [0u8; 4];
            if reader.read(&mut magic[..1])? == 0 {
                return Ok(None);
            }
            reader.read_exact(&mut magic[1..])?;
            // A frame to skip: 0x184D2A50 to 0x184D2A5F, then its length.
            if u32::from_le_bytes(magic) & 0xffff_fff0 == 0x184D_2A50 {
                let mut length = [0u8; 4];
                reader.read_exact(&mut length)?;
                let length = u64::from(u32::from_le_bytes(length));
                if std::io::copy(&mut reader.by_ref().take(length), &mut std::io::sink())? < length {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
                continue;
            }
            reader.front = magic.to_vec();
            let decoder = ruzstd::decoding::StreamingDecoder::new(reader).map_err(std::io::Error::other)?;
            return Ok(Some(Frame::Within(Box::new(decoder))));
        }
    }
}

impl<R: Read> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            match self.state.take() {
                None => return Ok(0),
                Some(Frame::Between(reader)) => self.state = Self::open(reader)?,
                Some(Frame::Within(mut decoder)) => {
                    let n = decoder.read(buffer)?;
                    if n > 0 || buffer.is_empty() {
                        self.state = Some(Frame::Within(decoder));
                        return Ok(n);
                    }
                    self.state = Some(Frame::Between(decoder.into_inner()));
                }
            }
        }
    }
}

/// The end of a pipe to read from, and the thread that writes into it.
pub(crate) type Piped = (OwnedFd, JoinHandle<Result<()>>);

/// Starts a thread that writes a stream into a pipe; gives the pipe's end to read from.
pub(crate) fn pipe_through(
    what: String,
    work: impl FnOnce(&mut dyn Write) -> Result<()> + Send + 'static,
) -> Result<Piped> {
    let (read, write) = crate::container::plain_pipe()?;
    let task = tokio::task::spawn_blocking(move || {
        let mut write = std::io::BufWriter::with_capacity(CHUNK, std::fs::File::from(write));
        work(&mut write)?;
        write.flush().map_err(|e| ImageError::malformed(what, e))
    });
    Ok((read, task))
}

/// Copies a stream that is unpacked onto a disk as long as that has room; a reader that went away is an error of
/// its own.
pub(crate) fn copy(what: &str, from: &mut dyn Read, to: &mut dyn Write, mut room: Room) -> Result<()> {
    let mut buffer = vec![0u8; CHUNK];
    loop {
        let n = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(ImageError::malformed(what, e)),
        };
        room.take(what, n as u64)?;
        to.write_all(&buffer[..n]).map_err(|e| ImageError::builder(format!("unpack {what}"), e))?;
    }
}

/// Joins the writer with what the reader made of it: the reader's own failure says more than a broken pipe.
pub(crate) async fn settle<T>(unpacked: Result<T>, writer: JoinHandle<Result<()>>) -> Result<T> {
    let written = match writer.await {
        Ok(written) => written,
        Err(error) => Err(ImageError::builder("read a layer", error)),
    };
    match (unpacked, written) {
        (Ok(value), Ok(())) => Ok(value),
        (
            _,
            Err(
                error @ (ImageError::Malformed { .. }
                | ImageError::Digest { .. }
                | ImageError::Io { full: true, .. }),
            ),
        ) => Err(error),
        (Err(error), _) | (_, Err(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(bytes: Vec<u8>) -> std::io::Result<Vec<u8>> {
        let mut out = Vec::new();
        decompress("x", std::io::Cursor::new(bytes)).map_err(std::io::Error::other)?.read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn takes_compression_off() {
        let text = b"hello hello hello".to_vec();
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&text).unwrap();
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(&text).unwrap();
        let zstd =
            ruzstd::encoding::compress_to_vec(text.as_slice(), ruzstd::encoding::CompressionLevel::Fastest);
        let skipped = [0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
        let half = |part: &[u8]| {
            ruzstd::encoding::compress_to_vec(part, ruzstd::encoding::CompressionLevel::Fastest)
        };
        let frames = [half(&text[..5]), skipped.to_vec(), half(&text[5..])].concat();
        for bytes in [text.clone(), gz.finish().unwrap(), xz.finish().unwrap(), zstd, frames] {
            assert_eq!(plain(bytes).unwrap(), text);
        }
        assert_eq!(plain(vec![]).unwrap(), b"");
        assert!(plain(vec![0x1f, 0x8b, 1, 2]).is_err());
    }
}
