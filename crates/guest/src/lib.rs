//! The program that is PID 1 of every container, and the messages it speaks.
//!
//! The binary is static and runs in an empty root. The library part exists so that the runtime shares
//! [`wire`] and [`packet`] with it, and so that its pieces can be tested as ordinary code.

pub mod packet;
pub mod wire;
