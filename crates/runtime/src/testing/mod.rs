//! For tests of whoever starts containers: a runtime that runs nothing, and the contract that every
//! [`crate::Runtime`] fulfils.

pub mod contract;
mod fake;

pub use fake::{FakeProcess, FakeRuntime};
