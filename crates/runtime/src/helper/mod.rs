//! The privileged helper.

mod config;
pub(crate) mod request;

pub use config::{GuestBinary, HelperConfig};

use std::os::fd::OwnedFd;

/// Runs the helper until `control` closes; never returns. Must be called as root from a process with a single
/// thread. Each packet on `control` brings one descriptor: the helper's end of a fresh socket to a server.
pub fn main(control: OwnedFd, config: HelperConfig) -> ! {
    let _ = (control, config);
    std::process::exit(1)
}
