//! Capture of a container's stdout and stderr: from the pipe into a spool file, from there to control.
//!
//! The kernel moves the bytes from pipe to spool in one call, so that at every instant each byte is in
//! exactly one of the two and a SIGKILL of this process neither loses nor repeats any. What has been taken
//! over by control is known by offset. Everything that waits is bounded: when control is slow the spool
//! fills to its bound, then the pipe fills, then the container waits in its own write.

mod cut;
mod spool;
mod stream;
mod tags;

pub(crate) use spool::{Spool, spool_path};
pub(crate) use stream::{Capture, CaptureConfig, Source};
