//! The program that is PID 1 of every container, and the messages it speaks.
//!
//! The binary is static and runs in an empty root; it is executed by the privileged helper inside fresh
//! namespaces, with nothing but its control socket. The first message decides what it becomes:
//! - [`wire::ToGuest::Setup`]: the init of a container. It attaches the mounts it is sent, leaves the host's
//!   tree for good, opens the container's listeners, and then starts, signals and reaps programs on request.
//! - [`wire::ToGuest::Unpack`]: a one-shot that unpacks an archive as the root of a user namespace.
//!
//! What protects it from the programs it runs: the kernel ignores signals to a namespace's PID 1 that it has
//! no handler for; it is not dumpable, so its memory, descriptors and executable can't be opened; programs
//! hold fewer capabilities than it does, may not gain any, and run under a system call allow-list. Its only
//! channel is a socket that no program ever has.
//!
//! The library exists so that the runtime shares [`wire`], [`packet`] and [`tree`] with the program.

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("the guest's system call list exists for x86_64 and aarch64 only");

mod copy;
mod fork;
mod listeners;
mod mounts;
pub mod packet;
mod privileges;
mod process;
mod root;
mod seccomp;
mod serve;
mod step;
mod survey;
pub mod tree;
mod unpack;
mod users;
mod volumes;
pub mod wire;

pub use serve::run;
pub use unpack::{MAKING, READING};

/// Where volumes are mounted in a container, each under its id. Programs and the official client know the path.
pub const VOLUMES_FOLDER: &str = "/__modal/volumes";
/// The number of the control socket's descriptor when the guest is executed.
pub const CONTROL_FD: i32 = 3;
