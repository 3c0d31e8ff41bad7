//! Builds the protocol: finds the pinned release of the official client, reads the schema that it carries
//! and writes the messages and the table of RPCs. No `protoc`, no copy of the schema in this repository.

mod access;
mod archive;
mod generate;
mod python_literal;
mod well_known;
mod wheel;

use std::path::PathBuf;
use std::process::ExitCode;

/// The members of the wheel that hold the schema, in the order of their dependence.
const DESCRIPTOR_MEMBERS: [&str; 2] = ["modal_proto/api_pb2.py", "modal_proto/task_command_router_pb2.py"];

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    println!("cargo:rerun-if-changed=build");
    println!("cargo:rerun-if-changed={}", wheel::LOCK_FILE);
    println!("cargo:rerun-if-env-changed={}", wheel::ENV_WHEEL);
    let manifest = PathBuf::from(required_env("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(required_env("OUT_DIR")?);

    let lock = wheel::Lock::read(&manifest.join(wheel::LOCK_FILE))?;
    let bytes = wheel::find(&lock, &manifest, &out)?;
    let mut files = vec![well_known::file()];
    for member in DESCRIPTOR_MEMBERS {
        let text = archive::member(&bytes, member).map_err(|e| format!("{}: {member}: {e}", lock.file))?;
        let literal = python_literal::first_argument(&text, b"AddSerializedFile(")
            .map_err(|e| format!("{}: {member}: {e}", lock.file))?;
        files.push(generate::parse(&literal).map_err(|e| format!("{}: {member}: {e}", lock.file))?);
    }
    println!("cargo:rustc-env=EVOKE_MODAL_VERSION={}", lock.version);
    generate::write(files, &out)
}

fn required_env(name: &str) -> Result<String, String> {
    std::env::var(name).map_err(|_| format!("{name} is not set: this program is run by cargo"))
}
