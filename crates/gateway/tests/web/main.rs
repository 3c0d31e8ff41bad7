//! Requests for web functions, by real connections: what applications are told, what clients get, and what
//! becomes of those that break the rules.

#![allow(clippy::unwrap_used)] // What fails here fails the test.

mod bad;
mod direct;
mod http1;
mod http2;
mod sockets;
mod waiting;
mod world;
