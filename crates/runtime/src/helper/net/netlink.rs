//! As much of netlink as the helper needs: building messages with attributes, and waiting for the kernel's word
//! on each.

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};
use std::io;
use std::os::fd::OwnedFd;

pub(super) const REQUEST: u16 = libc::NLM_F_REQUEST as u16;
pub(super) const ACK: u16 = libc::NLM_F_ACK as u16;
pub(super) const CREATE: u16 = libc::NLM_F_CREATE as u16;
pub(super) const EXCL: u16 = libc::NLM_F_EXCL as u16;
pub(super) const APPEND: u16 = libc::NLM_F_APPEND as u16;
pub(super) const DUMP: u16 = libc::NLM_F_DUMP as u16;
const NESTED: u16 = libc::NLA_F_NESTED as u16;

const HEADER: usize = 16;
/// Bytes of one datagram from the kernel at most.
const DATAGRAM_MAX: usize = 64 * 1024;
/// Datagrams of one answer at most.
const DATAGRAMS_MAX: usize = 4096;

/// A message, or several in a row, under construction.
#[derive(Debug, Default)]
pub(super) struct Message {
    bytes: Vec<u8>,
    /// Where the current message begins.
    begin: usize,
}

impl Message {
    /// Begins a message of `kind` with its fixed part.
    pub(super) fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut message = Self::default();
        message.next(kind, flags, 0, fixed);
        message
    }

    /// Ends the current message and begins another one behind it.
    pub(super) fn next(&mut self, kind: u16, flags: u16, sequence: u32, fixed: &[u8]) {
        self.begin = self.bytes.len();
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(REQUEST | flags).to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.extend_from_slice(fixed);
        self.close(self.begin, 0);
    }

    /// Pads, and writes the length of what begins at `from` in the width that it has there.
    fn close(&mut self, from: usize, attribute: u16) {
        let length = self.bytes.len() - from;
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        if attribute != 0 {
            // An attribute here is a few hundred bytes, far from what 16 bits hold.
            self.bytes[from..from + 2].copy_from_slice(&(length as u16).to_ne_bytes());
        }
        let total = (self.bytes.len() - self.begin) as u32;
        self.bytes[self.begin..self.begin + 4].copy_from_slice(&total.to_ne_bytes());
    }

    /// Adds an attribute.
    pub(super) fn attr(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let from = self.bytes.len();
        self.bytes.extend_from_slice(&0u16.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.close(from, 1);
        self
    }

    /// Adds a text, with its zero byte.
    pub(super) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes)
    }

    /// Adds an attribute that holds what `inner` adds.
    pub(super) fn nest(&mut self, kind: u16, inner: impl FnOnce(&mut Self)) -> &mut Self {
        let from = self.bytes.len();
        self.bytes.extend_from_slice(&0u16.to_ne_bytes());
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        inner(self);
        self.close(from, 1);
        self
    }

    /// Adds bytes that are no attribute, as some nested ones begin with.
    pub(super) fn raw(&mut self, value: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(value);
        self
    }
}

/// A netlink socket in the network namespace in which it was opened.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: OwnedFd,
}

impl Netlink {
    /// For interfaces, addresses and routes.
    pub(super) fn route() -> io::Result<Self> {
        Self::open(libc::NETLINK_ROUTE)
    }

    /// For netfilter.
    pub(super) fn netfilter() -> io::Result<Self> {
        Self::open(libc::NETLINK_NETFILTER)
    }

    fn open(family: i32) -> io::Result<Self> {
        let protocol = rustix::net::Protocol::from_raw(
            std::num::NonZeroU32::new(family as u32).unwrap_or(std::num::NonZeroU32::MIN),
        );
        // The route family is number 0, which is what "no protocol" means.
        let protocol = if family == libc::NETLINK_ROUTE { None } else { Some(protocol) };
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        // The kernel answers at once; a lost answer must not stop the helper for good.
        let bound = Some(std::time::Duration::from_secs(5));
        rustix::net::sockopt::set_socket_timeout(&socket, rustix::net::sockopt::Timeout::Recv, bound)?;
        Ok(Self { socket })
    }

    /// Sends a message that asks for an acknowledgement and waits for it.
    pub(super) fn change(&self, message: &Message) -> io::Result<()> {
        self.transmit(message)?;
        self.answers(1, |_, _| {}).map(drop)
    }

    /// Sends a batch in which `acks` messages ask for an acknowledgement.
    pub(super) fn batch(&self, message: &Message, acks: usize) -> io::Result<()> {
        self.transmit(message)?;
        self.answers(acks, |_, _| {}).map(drop)
    }

    /// Sends a message that asks for a dump and gives each part of the answer to `part`.
    pub(super) fn dump(&self, message: &Message, part: impl FnMut(u16, &[u8])) -> io::Result<()> {
        self.transmit(message)?;
        self.answers(usize::MAX, part).map(drop)
    }

    fn transmit(&self, message: &Message) -> io::Result<()> {
        let sent = send(&self.socket, &message.bytes, SendFlags::empty())?;
        if sent == message.bytes.len() { Ok(()) } else { Err(io::Error::other("a message was cut short")) }
    }

    /// Reads until `acks` acknowledgements or the end of a dump. The first error ends it.
    fn answers(&self, mut acks: usize, mut part: impl FnMut(u16, &[u8])) -> io::Result<()> {
        let mut buffer = vec![0u8; DATAGRAM_MAX];
        for _ in 0..DATAGRAMS_MAX {
            let length = match recv(&self.socket, &mut buffer[..], RecvFlags::empty()) {
                Ok((length, _)) => length,
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let mut rest = &buffer[..length];
            while rest.len() >= HEADER {
                let size = word(rest, 0) as usize;
                if size < HEADER || size > rest.len() {
                    return Err(io::Error::other("the kernel sent a malformed message"));
                }
                let kind = u16::from_ne_bytes([rest[4], rest[5]]);
                let body = &rest[HEADER..size];
                match i32::from(kind) {
                    libc::NLMSG_ERROR => {
                        let code = word(body, 0) as i32;
                        if code != 0 {
                            return Err(io::Error::from_raw_os_error(-code));
                        }
                        acks -= 1;
                    }
                    libc::NLMSG_DONE => return Ok(()),
                    _ => part(kind, body),
                }
                if acks == 0 {
                    return Ok(());
                }
                rest = &rest[size.next_multiple_of(4).min(rest.len())..];
            }
        }
        Err(io::Error::other("the kernel's answer does not end"))
    }
}

/// The 32-bit word at `at`, or zero beyond the end.
fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

/// The attributes in a body behind its fixed part: kind and value.
pub(super) fn attributes(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    while bytes.len() >= 4 {
        let size = usize::from(u16::from_ne_bytes([bytes[0], bytes[1]]));
        let kind = u16::from_ne_bytes([bytes[2], bytes[3]]) & !NESTED;
        if size < 4 || size > bytes.len() {
            break;
        }
        found.push((kind, &bytes[4..size]));
        bytes = &bytes[size.next_multiple_of(4).min(bytes.len())..];
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_the_kernels_layout() {
        let mut message = Message::new(16, ACK, &[1, 2, 3, 4]);
        message.text(3, "ab").nest(18, |inner| {
            inner.attr(1, &[9]);
        });
        let bytes = &message.bytes;
        assert_eq!(word(bytes, 0) as usize, bytes.len());
        assert_eq!(bytes.len() % 4, 0);
        let attributes = attributes(&bytes[HEADER + 4..]);
        assert_eq!(attributes[0], (3, b"ab\0".as_slice()));
        assert_eq!(attributes[1].0, 18);
        assert_eq!(super::attributes(attributes[1].1), [(1, [9].as_slice())]);
        message.next(7, 0, 5, &[]);
        assert_eq!(word(&message.bytes[message.begin..], 0), 16);
    }

    #[test]
    fn asks_the_kernel_of_this_machine() {
        let netlink = Netlink::route().unwrap();
        let mut links = 0;
        netlink.dump(&Message::new(libc::RTM_GETLINK, DUMP, &[0; 16]), |_, _| links += 1).unwrap();
        assert!(links >= 1, "there is a loopback interface everywhere");
        let nothing = Message::new(libc::RTM_DELLINK, ACK, &[0; 16]);
        assert!(netlink.change(&nothing).is_err());
    }
}
