//! Interfaces, addresses and routes: the requests to the kernel.

use super::netlink::{ACK, CREATE, DUMP, EXCL, Message, Netlink, attributes};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const INFO_SLAVE_KIND: u16 = 4;
const INFO_SLAVE_DATA: u16 = 5;
const VETH_PEER: u16 = 1;
const BRPORT_ISOLATED: u16 = 33;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const UP: u32 = libc::IFF_UP as u32;

/// The kernel's `struct ifinfomsg`.
fn link(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut bytes = [0u8; 16];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
    bytes[12..16].copy_from_slice(&change.to_ne_bytes());
    bytes
}

/// The number of an interface, if there is one of that name in this socket's namespace.
pub(super) fn find(netlink: &Netlink, name: &str) -> io::Result<Option<u32>> {
    let mut found = None;
    netlink.dump(&Message::new(libc::RTM_GETLINK, DUMP, &link(0, 0, 0)), |_, body| {
        let named = |(kind, value): &(u16, &[u8])| {
            *kind == IFLA_IFNAME && value.strip_suffix(b"\0").unwrap_or(value) == name.as_bytes()
        };
        if body.len() >= 16 && attributes(&body[16..]).iter().any(named) {
            found = Some(u32::from_ne_bytes([body[4], body[5], body[6], body[7]]));
        }
    })?;
    Ok(found)
}

/// The names of all interfaces in this socket's namespace.
pub(super) fn names(netlink: &Netlink) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    netlink.dump(&Message::new(libc::RTM_GETLINK, DUMP, &link(0, 0, 0)), |_, body| {
        let all = attributes(body.get(16..).unwrap_or_default());
        let name = all.iter().find(|(kind, _)| *kind == IFLA_IFNAME).map(|(_, value)| value);
        names.extend(
            name.map(|value| {
                String::from_utf8_lossy(value.strip_suffix(b"\0").unwrap_or(value)).into_owned()
            }),
        );
    })?;
    Ok(names)
}

/// Makes a bridge that is up.
pub(super) fn add_bridge(netlink: &Netlink, name: &str) -> io::Result<()> {
    let mut message = Message::new(libc::RTM_NEWLINK, ACK | CREATE | EXCL, &link(0, UP, UP));
    message.text(IFLA_IFNAME, name);
    message.nest(IFLA_LINKINFO, |info| {
        info.text(INFO_KIND, "bridge");
    });
    netlink.change(&message)
}

/// Makes a pair: `name` here, on the bridge and up; `eth0` with `hardware` address in another namespace.
pub(super) fn add_veth(
    netlink: &Netlink,
    name: &str,
    bridge: u32,
    namespace: BorrowedFd<'_>,
    hardware: [u8; 6],
) -> io::Result<()> {
    let mut message = Message::new(libc::RTM_NEWLINK, ACK | CREATE | EXCL, &link(0, UP, UP));
    message.text(IFLA_IFNAME, name);
    message.attr(IFLA_MASTER, &bridge.to_ne_bytes());
    message.nest(IFLA_LINKINFO, |info| {
        info.text(INFO_KIND, "veth");
        info.nest(INFO_DATA, |data| {
            data.nest(VETH_PEER, |peer| {
                peer.raw(&link(0, 0, 0)).text(IFLA_IFNAME, "eth0").attr(IFLA_ADDRESS, &hardware);
                peer.attr(IFLA_NET_NS_FD, &namespace.as_raw_fd().to_ne_bytes());
            });
        });
    });
    netlink.change(&message)
}

/// Keeps a port of a bridge from reaching other ports that are kept so; the machine itself it reaches.
pub(super) fn isolate(netlink: &Netlink, index: u32) -> io::Result<()> {
    let mut message = Message::new(libc::RTM_NEWLINK, ACK, &link(index, 0, 0));
    message.nest(IFLA_LINKINFO, |info| {
        info.text(INFO_SLAVE_KIND, "bridge");
        info.nest(INFO_SLAVE_DATA, |data| {
            data.attr(BRPORT_ISOLATED, &[1]);
        });
    });
    netlink.change(&message)
}

/// Switches an interface on.
pub(super) fn set_up(netlink: &Netlink, index: u32) -> io::Result<()> {
    netlink.change(&Message::new(libc::RTM_NEWLINK, ACK, &link(index, UP, UP)))
}

/// Deletes an interface.
pub(super) fn delete(netlink: &Netlink, index: u32) -> io::Result<()> {
    netlink.change(&Message::new(libc::RTM_DELLINK, ACK, &link(index, 0, 0)))
}

/// Gives an interface an address; one that it has already is fine.
pub(super) fn add_address(netlink: &Netlink, index: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
    let mut fixed = [0u8; 8];
    fixed[0] = libc::AF_INET as u8;
    fixed[1] = prefix;
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    let mut message = Message::new(libc::RTM_NEWADDR, ACK | CREATE | EXCL, &fixed);
    message.attr(IFA_LOCAL, &address.octets()).attr(IFA_ADDRESS, &address.octets());
    match netlink.change(&message) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}

/// The addresses of an interface.
pub(super) fn addresses(netlink: &Netlink, index: u32) -> io::Result<Vec<Ipv4Addr>> {
    let mut found = Vec::new();
    let mut fixed = [0u8; 8];
    fixed[0] = libc::AF_INET as u8;
    netlink.dump(&Message::new(libc::RTM_GETADDR, DUMP, &fixed), |_, body| {
        if body.len() < 8 || body[4..8] != index.to_ne_bytes() {
            return;
        }
        for (kind, value) in attributes(&body[8..]) {
            if let (IFA_LOCAL, Ok(octets)) = (kind, <[u8; 4]>::try_from(value)) {
                found.push(Ipv4Addr::from(octets));
            }
        }
    })?;
    Ok(found)
}

/// The kernel's `struct rtmsg` for IPv4's main table.
fn route(prefix: u8) -> [u8; 12] {
    let mut fixed = [0u8; 12];
    fixed[0] = libc::AF_INET as u8;
    fixed[1] = prefix;
    fixed[4] = libc::RT_TABLE_MAIN;
    fixed[5] = libc::RTPROT_STATIC;
    fixed[6] = libc::RT_SCOPE_UNIVERSE;
    fixed[7] = libc::RTN_UNICAST;
    fixed
}

/// Sends everything without a better route to `gateway`.
pub(super) fn add_default_route(netlink: &Netlink, index: u32, gateway: Ipv4Addr) -> io::Result<()> {
    let mut message = Message::new(libc::RTM_NEWROUTE, ACK | CREATE, &route(0));
    message.attr(RTA_GATEWAY, &gateway.octets()).attr(RTA_OIF, &index.to_ne_bytes());
    netlink.change(&message)
}

/// Every IPv4 destination that has a route, except the default one: network, prefix, interface.
pub(super) fn routes(netlink: &Netlink) -> io::Result<Vec<(Ipv4Addr, u8, u32)>> {
    let mut found = Vec::new();
    netlink.dump(&Message::new(libc::RTM_GETROUTE, DUMP, &route(0)), |_, body| {
        if body.len() < 12 || body[1] == 0 {
            return;
        }
        let all = attributes(&body[12..]);
        let value = |wanted| all.iter().find(|(kind, _)| *kind == wanted).map(|(_, value)| *value);
        let destination = value(RTA_DST).and_then(|v| <[u8; 4]>::try_from(v).ok());
        let interface =
            value(RTA_OIF).and_then(|v| <[u8; 4]>::try_from(v).ok()).map_or(0, u32::from_ne_bytes);
        found.extend(destination.map(|octets| (Ipv4Addr::from(octets), body[1], interface)));
    })?;
    Ok(found)
}
