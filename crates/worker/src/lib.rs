//! The machine's agent (work in progress).
#![allow(dead_code)]
mod lifecycle;
mod output;
mod readiness;
#[cfg(test)]
mod testing;
