//! Messages with descriptors over SEQPACKET sockets, blocking and for tokio.

pub use evoke_guest::packet::{BODY_MAX, MAX_FDS, Packet, pair, recv, send};

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A SEQPACKET socket driven by tokio. Sends and receives are each one packet, so several tasks may share it.
#[derive(Debug)]
pub struct AsyncSocket {
    inner: AsyncFd<OwnedFd>,
}

impl AsyncSocket {
    /// Takes over `socket`. Must be called inside a tokio runtime.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Self { inner: watch(socket, Interest::READABLE | Interest::WRITABLE)? })
    }

    /// Sends one message, waiting for room.
    pub async fn send(&self, body: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.inner.async_io(Interest::WRITABLE, |socket| send(socket.as_fd(), body, fds, true)).await
    }

    /// Receives one message; `None` once the peer has closed.
    pub async fn recv(&self) -> io::Result<Option<Packet>> {
        self.inner.async_io(Interest::READABLE, |socket| recv(socket.as_fd(), true)).await
    }

    /// Gives the socket back, still not blocking.
    pub fn into_inner(self) -> OwnedFd {
        self.inner.into_inner()
    }

    /// The socket itself.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.get_ref().as_fd()
    }
}

/// Registers a descriptor with tokio's poller: for pidfds, pipes and listeners of containers. Must be called
/// inside a tokio runtime.
pub fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd names the same open descriptor for as long as it lives, and AsyncFd lets nobody
    // replace it.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}
