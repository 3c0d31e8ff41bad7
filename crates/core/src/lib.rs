//! The vocabulary of Evoke: typed ids, error codes, resource amounts, lifecycle phases, and the traits
//! through which time and randomness come in. No I/O and no async runtime, so that every decision built
//! on it runs in simulation.
//!
//! Entry points: [`id`] for ids, [`Error`] and [`ErrorCode`] for failures, [`Clock`] and [`Entropy`] for
//! the outside world, [`Principal`] for who is asking.

mod clock;
mod error;
mod hex;
pub mod id;
mod phase;
pub mod ports;
mod principal;
mod resources;

pub use clock::{Clock, Entropy, SeededEntropy, SystemClock, SystemEntropy, UnixMs};
pub use error::{Error, ErrorCode, Result};
pub use hex::hex;
pub use id::{
    AppId, BlobId, CallId, ClassId, DefinitionId, DictId, EnvironmentId, FunctionId, ImageId, InputId,
    MountId, QueueId, SecretId, SharedVolumeId, TaskId, VolumeId,
};
pub use phase::{Phase, StartPath};
pub use principal::{Principal, View};
pub use resources::{GPU_KINDS_MAX, GpuKind, Gpus, Resources};
