//! One message with descriptors over a SEQPACKET socket: the framing that the guest, the privileged helper,
//! the server and the holder's descriptor store share.
//!
//! A packet is one byte of kind and a body. Bodies above [`INLINE_MAX`] travel in an anonymous file whose
//! descriptor comes first, because a socket's buffer would refuse them. The receiver trusts nothing: sizes
//! are bounded, truncated packets are errors, and every descriptor arrives close-on-exec.

use rustix::fs::{FileType, MemfdFlags};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Descriptors in one packet at most (the kernel's own bound is 253).
pub const MAX_FDS: usize = 250;
/// Bytes of a body that still travel inside the packet.
pub const INLINE_MAX: usize = 32 * 1024;
/// Bytes of a body at most, however it travels.
pub const BODY_MAX: usize = 16 * 1024 * 1024;

const KIND_INLINE: u8 = 0;
const KIND_FILE: u8 = 1;

/// A received message.
#[derive(Debug)]
pub struct Packet {
    /// The message itself.
    pub body: Vec<u8>,
    /// The descriptors that came with it, in the sender's order.
    pub fds: Vec<OwnedFd>,
}

/// Two connected SEQPACKET sockets, both close-on-exec.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Sends one message. With `nonblocking` a full socket gives [`io::ErrorKind::WouldBlock`] and nothing is
/// sent. A peer that is gone gives `BrokenPipe`, never a signal.
pub fn send(
    socket: BorrowedFd<'_>,
    body: &[u8],
    fds: &[BorrowedFd<'_>],
    nonblocking: bool,
) -> io::Result<()> {
    if body.len() > BODY_MAX || fds.len() >= MAX_FDS {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "message exceeds the packet's bounds"));
    }
    if body.len() <= INLINE_MAX {
        return send_raw(socket, KIND_INLINE, body, fds, nonblocking);
    }
    let file = rustix::fs::memfd_create("evoke-message", MemfdFlags::CLOEXEC)?;
    let mut written = 0;
    while written < body.len() {
        written += rustix::io::pwrite(&file, &body[written..], written as u64)?;
    }
    let mut all = Vec::with_capacity(fds.len() + 1);
    all.push(file.as_fd());
    all.extend_from_slice(fds);
    send_raw(socket, KIND_FILE, &(body.len() as u64).to_le_bytes(), &all, nonblocking)
}

fn send_raw(
    socket: BorrowedFd<'_>,
    kind: u8,
    body: &[u8],
    fds: &[BorrowedFd<'_>],
    nonblocking: bool,
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one packet"));
    }
    let mut flags = SendFlags::NOSIGNAL;
    if nonblocking {
        flags |= SendFlags::DONTWAIT;
    }
    let parts = [IoSlice::new(std::slice::from_ref(&kind)), IoSlice::new(body)];
    loop {
        match rustix::net::sendmsg(socket, &parts, &mut control, flags) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Receives one message; `None` once the peer has closed. With `nonblocking` an empty socket gives
/// [`io::ErrorKind::WouldBlock`].
pub fn recv(socket: BorrowedFd<'_>, nonblocking: bool) -> io::Result<Option<Packet>> {
    let mut buffer = vec![0u8; INLINE_MAX + 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut flags = RecvFlags::CMSG_CLOEXEC;
    if nonblocking {
        flags |= RecvFlags::DONTWAIT;
    }
    let message = loop {
        let mut parts = [IoSliceMut::new(&mut buffer)];
        match rustix::net::recvmsg(socket, &mut parts, &mut control, flags) {
            Ok(message) => break message,
            Err(rustix::io::Errno::INTR) => continue,
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    };
    let mut fds = Vec::new();
    for ancillary in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = ancillary {
            fds.extend(received);
        }
    }
    if message.bytes == 0 {
        return Ok(None);
    }
    if message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a packet arrived truncated"));
    }
    let kind = buffer[0];
    buffer.truncate(message.bytes);
    buffer.remove(0);
    match kind {
        KIND_INLINE => Ok(Some(Packet { body: buffer, fds })),
        KIND_FILE => read_spilled(&buffer, fds).map(Some),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "a packet of unknown kind")),
    }
}

/// Reads a body that came as a file. The file is the sender's, so it must be a plain one (reading it cannot
/// block) and its claimed length is bounded before anything is allocated.
fn read_spilled(header: &[u8], mut fds: Vec<OwnedFd>) -> io::Result<Packet> {
    let bad = |text: &'static str| io::Error::new(io::ErrorKind::InvalidData, text);
    let length = <[u8; 8]>::try_from(header).map_err(|_| bad("a packet with a malformed length"))?;
    let length = usize::try_from(u64::from_le_bytes(length)).map_err(|_| bad("a packet that is too long"))?;
    if length > BODY_MAX || fds.is_empty() {
        return Err(bad("a packet that is too long or has no body"));
    }
    let file = fds.remove(0);
    let stat = rustix::fs::fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || stat.st_size != length as i64 {
        return Err(bad("a packet whose body is not a plain file of the stated length"));
    }
    let mut body = vec![0u8; length];
    let mut read = 0;
    while read < length {
        match rustix::io::pread(&file, &mut body[read..], read as u64)? {
            0 => return Err(bad("a packet whose body ended early")),
            count => read += count,
        }
    }
    Ok(Packet { body, fds })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_and_large_bodies_arrive_with_their_descriptors() {
        let (left, right) = pair().unwrap();
        let file = rustix::fs::memfd_create("x", MemfdFlags::CLOEXEC).unwrap();
        for size in [0usize, 1, INLINE_MAX, INLINE_MAX + 1, 3 * 1024 * 1024] {
            let body: Vec<u8> = (0..size).map(|n| n as u8).collect();
            send(left.as_fd(), &body, &[file.as_fd(), file.as_fd()], false).unwrap();
            let packet = recv(right.as_fd(), false).unwrap().unwrap();
            assert!(packet.body == body, "{size}");
            assert_eq!(packet.fds.len(), 2);
        }
        assert_eq!(recv(right.as_fd(), true).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(left);
        assert!(recv(right.as_fd(), false).unwrap().is_none());
    }

    #[test]
    fn refuses_what_is_too_large_and_forged_lengths() {
        let (left, right) = pair().unwrap();
        assert!(send(left.as_fd(), &vec![0; BODY_MAX + 1], &[], false).is_err());
        send_raw(left.as_fd(), KIND_FILE, &u64::MAX.to_le_bytes(), &[], false).unwrap();
        assert!(recv(right.as_fd(), false).is_err());
        let file = rustix::fs::memfd_create("x", MemfdFlags::CLOEXEC).unwrap();
        send_raw(left.as_fd(), KIND_FILE, &9u64.to_le_bytes(), &[file.as_fd()], false).unwrap();
        assert!(recv(right.as_fd(), false).is_err());
    }
}
