//! Waiting until a descriptor becomes readable.

use std::io;
use std::os::fd::OwnedFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers `fd` with the reactor of the current runtime. The descriptor is to be in non-blocking mode, or
/// not to be read through the result.
pub(crate) fn watch_readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // Deprecated in favour of an unsafe function whose condition is that the descriptor stays the same and
    // open: an owned descriptor that is never replaced does.
    #[allow(deprecated)]
    AsyncFd::with_interest(fd, Interest::READABLE)
}
