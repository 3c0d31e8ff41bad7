//! Ports that several rooms must agree on.

use std::ops::RangeInclusive;

/// The port of a container's own service on its loopback. Above the ephemeral range of the kernel's default.
pub const CONTAINER: u16 = 64_087;

/// The ports of web functions: below those that kernels give to outgoing connections (32768 and up on Linux), and
/// apart from those that people like for servers of their own. In a container, loopback's ports of this range lead
/// to its own service, so that an address means the same inside and outside.
pub const WEB: RangeInclusive<u16> = 24_000..=25_999;
