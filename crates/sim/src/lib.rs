//! A simulated world around the call engine and the real SQLite store: clients, containers and machines that
//! behave badly, a server that dies between any decision and its commit, a clock that jumps. Everything
//! follows from one seed, so that a failure can be run again.
//!
//! [`run`] plays one seed and returns a [`Summary`], or what was violated:
//! * an acknowledged input ends, with exactly one output, which no client ever sees change;
//! * a container never works on more than its function allows, and never on the same attempt twice;
//! * a result that counts comes from an attempt that ran on the container named in it;
//! * counted retries stay within the policy, and attempts within the named bounds;
//! * a pool never has more serving containers than its maximum;
//! * once faults stop, everything ends within a bound, and what is left are the minimums.

mod check;
mod clients;
mod containers;
mod faults;
mod random;
mod script;
mod server;
mod world;

pub use world::{Summary, run};
