//! File systems in containers that a process without any privilege serves (FUSE).
//!
//! The helper makes the mount, as it makes all; what speaks for it is a descriptor. Programs that serve file
//! systems want to mount them themselves, by the set-user-id program `fusermount`, which hands them such a
//! descriptor. One of ours takes its place on their path: it hands over the descriptor that they were started
//! with, and so needs no privilege either.

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// The names by which programs look for the one that mounts.
pub const FUSERMOUNT: [&str; 2] = ["fusermount3", "fusermount"];
/// The number of the descriptor in the program that serves; above those that it and its children use.
const NUMBER: RawFd = 100;
/// Where a program that serves says by which socket it wants its descriptor.
pub const SOCKET: &str = "_FUSE_COMMFD";

/// Has `command` started with the descriptor of a mount.
pub fn give(command: &mut Command, served: OwnedFd) {
    // SAFETY: what runs between fork and exec is one system call on descriptors that stay open until then.
    unsafe {
        command.pre_exec(move || {
            if libc::dup2(served.as_raw_fd(), NUMBER) < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
}

/// What our `fusermount` does: hands over the descriptor. Unmounting is nothing to do: the mount is its
/// container's, and gone with it.
pub fn fusermount(arguments: &[String], socket: Option<&str>) -> io::Result<()> {
    if arguments.iter().any(|argument| argument == "-u") {
        return Ok(());
    }
    let number: Option<RawFd> = socket.and_then(|text| text.parse().ok());
    let number = number.ok_or_else(|| io::Error::other(format!("{SOCKET} names no socket")))?;
    // SAFETY: both are open for as long as this process lives: the one was inherited from the program that
    // serves, the other is where that program asked for it. The kernel refuses what is not open.
    let (socket, served) = unsafe { (BorrowedFd::borrow_raw(number), BorrowedFd::borrow_raw(NUMBER)) };
    let fds = [served];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::Error::other("no room for one descriptor"));
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}
