//! GPUs of this machine: which there are, and what a container needs to use one of them.

mod inventory;

pub use inventory::{Card, cards};
