//! Tells HTTP/2, HTTP/1 and frames apart by a connection's first bytes, and gives them back to be read again.

use bytes::{Buf, BytesMut};
use evoke_proto::frames::PREFACE;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// What every HTTP/2 connection begins with.
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Room for the first read, in bytes: the preface with the settings that follow it.
const FIRST_READ_LEN: usize = 256;
/// What a connection of frames begins with, whatever their version.
const FRAMES: &[u8] = PREFACE.split_at(PREFACE.len() - 1).0;

/// The version that a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    Http1,
    Http2,
    /// The lean transport of containers.
    Frames,
}

/// A connection, with bytes in front that were read already.
pub(crate) struct Prefixed<S> {
    front: BytesMut,
    stream: S,
}

/// Reads as much as tells the versions apart. None if the other end closed before it said anything.
pub(crate) async fn detect<S: AsyncRead + Unpin>(
    mut stream: S,
) -> io::Result<Option<(Version, Prefixed<S>)>> {
    let mut front = BytesMut::with_capacity(FIRST_READ_LEN);
    loop {
        let ended = stream.read_buf(&mut front).await? == 0;
        let version = match (front.len() >= HTTP2.len(), ended) {
            _ if front.starts_with(FRAMES) => Version::Frames,
            (true, _) if front.starts_with(HTTP2) => Version::Http2,
            (false, false) if HTTP2.starts_with(&front) || FRAMES.starts_with(&front) => continue,
            (_, true) if front.is_empty() => return Ok(None),
            _ => Version::Http1,
        };
        return Ok(Some((version, Prefixed { front, stream })));
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Prefixed<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.front.is_empty() {
            return Pin::new(&mut this.stream).poll_read(cx, buf);
        }
        let length = this.front.len().min(buf.remaining());
        buf.put_slice(&this.front[..length]);
        this.front.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prefixed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn tells_versions_apart_and_loses_no_byte() {
        let mut after_preface = HTTP2.to_vec();
        after_preface.extend(b"more");
        let cases: [(&[u8], Version); 6] = [
            (&after_preface, Version::Http2),
            (b"GET / HTTP/1.1\r\n\r\n", Version::Http1),
            (b"PRI * HTTP/1.1\r\n\r\n", Version::Http1),
            (b"PR", Version::Http1),
            (b"\0evoke\0\x63more", Version::Frames),
            (b"\0ev", Version::Http1),
        ];
        for (bytes, expected) in cases {
            let (mut near, far) = tokio::io::duplex(3);
            let sent = bytes.to_vec();
            let writer = tokio::spawn(async move { near.write_all(&sent).await });
            let (version, mut stream) = detect(far).await.unwrap().unwrap();
            assert_eq!(version, expected);
            let mut read = Vec::new();
            stream.read_to_end(&mut read).await.unwrap();
            assert_eq!(read, bytes);
            writer.await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn a_connection_that_says_nothing_is_none() {
        let (near, far) = tokio::io::duplex(8);
        drop(near);
        assert!(detect(far).await.unwrap().is_none());
    }
}
