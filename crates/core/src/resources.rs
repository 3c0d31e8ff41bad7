//! Amounts of CPU, memory and devices, in one unit each.

use serde::{Deserialize, Serialize};

/// What a container asks for (reservation) or has at most (limit).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Resources {
    /// CPU in thousandths of a core.
    pub milli_cpu: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Whole GPUs.
    pub gpus: u32,
}
