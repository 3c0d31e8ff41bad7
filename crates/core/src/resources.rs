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
    pub gpus: Gpus,
}

/// Kinds of GPUs that one pool of machines can have.
pub const GPU_KINDS_MAX: usize = 16;

/// A kind of GPU, numbered from zero by whoever keeps the inventory; below [`GPU_KINDS_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct GpuKind(pub u8);

/// So many whole GPUs of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Gpus {
    /// Which; says nothing where there is none.
    pub kind: GpuKind,
    /// How many.
    pub count: u32,
}

impl Gpus {
    /// No GPU.
    pub const NONE: Self = Self { kind: GpuKind(0), count: 0 };
}
