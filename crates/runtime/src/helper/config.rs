//! What the helper is told at its start, by whoever starts it as root. Servers cannot change any of it.

use crate::gpus::GpuConfig;
use std::path::PathBuf;

/// The helper's configuration.
#[derive(Debug, Clone)]
pub struct HelperConfig {
    /// The data folder: absolute, existing, owned by the service user.
    pub data: PathBuf,
    /// The service user, whose trees containers may be given.
    pub service_uid: u32,
    /// Its group.
    pub service_gid: u32,
    /// The program that becomes PID 1 of every container.
    pub guest: GuestBinary,
    /// Host trees outside of the data folder that may be bound read-only or be layers: nothing by default.
    pub read_only_roots: Vec<PathBuf>,
    /// Whether to make a bridge and translate addresses; without it every container has loopback only.
    pub network: bool,
    /// Where GPUs come from.
    pub gpus: GpuConfig,
}

impl HelperConfig {
    /// The defaults for a data folder.
    pub fn new(data: PathBuf, service_uid: u32, service_gid: u32, guest: GuestBinary) -> Self {
        Self {
            data,
            service_uid,
            service_gid,
            guest,
            read_only_roots: Vec::new(),
            network: true,
            gpus: GpuConfig::default(),
        }
    }
}

/// Where the guest program comes from.
#[derive(Debug, Clone)]
pub enum GuestBinary {
    /// Carried inside our own binary.
    Embedded(&'static [u8]),
    /// A file, read once at the start.
    File(PathBuf),
}
