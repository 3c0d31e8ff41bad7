//! Opens the container's listening sockets before any program runs.

use crate::step::{Step, StepError, invalid};
use crate::tree;
use crate::wire::Listen;
use rustix::fs::{AtFlags, CWD, Mode};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketAddrV4, SocketFlags, SocketType, bind, listen, socket_with,
};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};

/// Connections that may wait to be accepted, among others while no server runs.
const BACKLOG: i32 = 1024;

/// Opens one listener. Must run inside the container's root and network.
pub(crate) fn open(listener: &Listen) -> Result<OwnedFd, StepError> {
    match listener {
        Listen::Tcp { port } => open_tcp(*port).step(format!("listening on 127.0.0.1:{port}")),
        Listen::Unix { path } => open_unix(path).step(format!("listening on {path}")),
    }
}

fn open_tcp(port: u16) -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

fn open_unix(path: &str) -> io::Result<OwnedFd> {
    let parts = tree::components(path.as_bytes())?;
    let Some((name, parents)) = parts.split_last() else { return Err(invalid("a socket needs a name")) };
    let root = rustix::fs::open("/", rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC, Mode::empty())?;
    let parent = tree::make_dirs(root.as_fd(), &parents.join(&b'/'))?;
    match rustix::fs::unlinkat(&parent, *name, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::fs::chmodat(CWD, path, Mode::from_raw_mode(0o666), AtFlags::empty())?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}
