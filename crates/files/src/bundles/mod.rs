//! What the official client needs inside a container: its own packages under `/pkg`, and the packages it
//! depends on under `/__modal/deps`, each as a read-only tree made on first use from the package index.
//!
//! Layout: `<root>/<key>/tree/…` is a bundle, `<root>/<key>/bundle.json` says what it is made of,
//! `<root>/wheels/` keeps the wheels, `<root>/tmp/` what is being built. A bundle gets its key by a rename
//! once it is complete and synced, and is kept for good; removing its folder has it built again.

mod build;
mod bytecode;
mod client;
mod dependencies;
mod error;
mod own;
mod wheels;

pub use build::{Bundle, Bundles, Package, Talk};
pub use bytecode::{BUNDLE_MOUNT, Bytecode, BytecodeJob};
pub use error::BundleError;
pub use own::digest as own_digest;
