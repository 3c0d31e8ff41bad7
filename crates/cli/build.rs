//! Builds the guest, a static program, and puts it where the binary embeds it from.
//!
//! The guest is built by the same cargo with the same lock file into a target folder of its own, so that plain
//! `cargo build` gives the whole thing, offline as well, and no lock of the outer build is waited for.

use std::path::{Path, PathBuf};
use std::process::Command;

/// What the outer build sets for itself and the inner one must not inherit: wrappers (clippy is one), flags
/// that would undo the static link, a target folder that the outer build has locked.
const NOT_INHERITED: [&str; 8] = [
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_TARGET_DIR",
    "CARGO_BUILD_TARGET_DIR",
    "CARGO_BUILD_TARGET",
    "CARGO_PRIMARY_PACKAGE",
    "CLIPPY_ARGS",
];

fn main() {
    if let Err(problem) = build() {
        println!("cargo::error={problem}");
        std::process::exit(1);
    }
}

fn build() -> Result<(), String> {
    let variable = |name: &str| std::env::var(name).map_err(|e| format!("{name}: {e}"));
    let out = PathBuf::from(variable("OUT_DIR")?);
    let root = Path::new(&variable("CARGO_MANIFEST_DIR")?)
        .ancestors()
        .nth(2)
        .map(Path::to_path_buf)
        .ok_or("crates/cli lies in the repository")?;
    for watched in ["crates/guest/src", "crates/guest/Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", root.join(watched).display());
    }
    println!("cargo::rerun-if-changed=build.rs");

    // Naming the target keeps the flags away from build scripts and macros, which run on the host.
    let target = variable("TARGET")?;
    let folder = out.join("guest");
    let mut cargo = Command::new(variable("CARGO")?);
    cargo.current_dir(&root);
    cargo.args(["build", "--package", "evoke-guest", "--bin", "evoke-guest", "--release", "--locked"]);
    cargo.args(["--target", &target]).arg("--target-dir").arg(&folder);
    for name in NOT_INHERITED {
        cargo.env_remove(name);
    }
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static");
    let output = cargo.output().map_err(|e| format!("running cargo for the guest: {e}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).replace('\n', " | ");
        return Err(format!("the guest does not build: {said}"));
    }
    let built = folder.join(&target).join("release").join("evoke-guest");
    let placed = out.join("evoke-guest");
    std::fs::copy(&built, &placed).map_err(|e| format!("copying {}: {e}", built.display()))?;
    Ok(())
}
