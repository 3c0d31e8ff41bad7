//! A client's connection, with an eye on whether its other end still sends: HTTP/1 reads nothing while nobody
//! takes what was read before, and so would not see it close.

use rustix::io::Errno;
use rustix::net::{Shutdown, shutdown};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// A connection that can be watched.
pub(crate) struct Wire(Arc<TcpStream>);

/// Watches a connection, without keeping it open.
#[derive(Clone)]
pub(crate) struct Watch(Weak<TcpStream>);

impl Wire {
    pub(crate) fn new(stream: TcpStream) -> (Self, Watch) {
        let stream = Arc::new(stream);
        let watch = Watch(Arc::downgrade(&stream));
        (Self(stream), watch)
    }
}

impl Watch {
    /// Resolves when the other end closed the connection or broke it off, whatever is still unread of it.
    pub(crate) async fn closed(&self) {
        let Some(stream) = self.0.upgrade() else { return };
        // Readiness for urgent data is also reported when the other end closes, and for nothing else that
        // comes in. An error means that the runtime ends.
        let closed = stream.ready(Interest::PRIORITY).await.is_ok_and(|ready| ready.is_read_closed());
        if !closed {
            std::future::pending::<()>().await;
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            match self.0.try_read_buf(buf) {
                Ok(_) => return Poll::Ready(Ok(())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl Wire {
    fn poll_sent(
        &self,
        cx: &mut Context<'_>,
        send: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match send(&self.0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => return Poll::Ready(sent),
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_sent(cx, |stream| stream.try_write(buf))
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_sent(cx, |stream| stream.try_write_vectored(bufs))
    }
    fn is_write_vectored(&self) -> bool {
        true
    }
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A socket keeps nothing back.
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(match shutdown(&*self.0, Shutdown::Write) {
            // It is closed already.
            Ok(()) | Err(Errno::NOTCONN) => Ok(()),
            Err(error) => Err(error.into()),
        })
    }
}
