//! Runs isolated process trees: namespaces, overlay roots over id-mapped layers, control groups, network
//! slots, seccomp, behind the [`Runtime`] trait.
//!
//! Who is who:
//! - [`helper`] is the only process that keeps root. It is single-threaded, believes nothing it is sent, and
//!   makes containers from validated requests. [`HelperRuntime`] is its client.
//! - the *guest* (crate `evoke-guest`) is PID 1 of each container; [`Guest`] is its client.
//! - [`fdstore`] keeps the descriptors that must outlive a server: the holder has the store, the server a client.
//!
//! Invariants: no container shares a host user with another that lives; whatever a container holds is found
//! again by [`Runtime::list`] and given back by [`Runtime::destroy`], also after any of our processes was
//! killed; user code never runs with a capability outside its own user namespace.

pub mod fds;
pub mod fdstore;
pub mod fuse;
pub mod gpus;
mod guest;
pub mod helper;
mod helper_client;
pub mod memory;
pub mod quota;
mod runtime;
mod spec;
mod volume_entry;

#[cfg(feature = "testing")]
pub mod testing;

pub use guest::{
    CopySpec, Exit, Guest, GuestError, GuestEvent, LayerFacts, LayerPackage, ProcId, ProcStatus, ProcessSpec,
    Program, SurveySpec,
};
pub use helper::{GuestBinary, HelperConfig};
pub use helper_client::HelperRuntime;
pub use runtime::{
    Ended, Finding, FindingState, LayerStats, Runtime, RuntimeError, StartError, StartTimings, Started, Usage,
};
pub use spec::{
    Bind, ContainerSpec, Layer, Limits, ListenerSpec, MemoryFolder, Nest, Network, Owner, Served,
    SuppliedFile, Volume,
};
pub use volume_entry::{Collected, VolumeEntry, VolumeEntryKind};

/// Layers of one container at most.
pub const LAYERS_MAX: usize = 192;
/// Binds of one container at most.
pub const BINDS_MAX: usize = 32;
/// Folders in memory of one container at most.
pub const MEMORY_FOLDERS_MAX: usize = 32;
/// Bytes of the files that one container is given at most.
pub const SUPPLIED_BYTES_MAX: usize = 512 * 1024;
/// Served mounts of one container at most.
pub const SERVED_MAX: usize = 16;
/// GPUs of one container at most.
pub const GPUS_MAX: usize = 64;
/// Files and folders of a driver that a container sees at most.
pub const GPU_FILES_MAX: usize = 160;
/// Volumes of one container at most.
pub const VOLUMES_MAX: usize = 32;
/// Listeners of one container at most.
pub const LISTENERS_MAX: usize = 8;
