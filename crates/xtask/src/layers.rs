//! `cargo xtask layers`: dependencies between our crates point down only.
//!
//! The table below is the architecture. A dependency that it does not list fails, and so does a crate that
//! it does not know, so that a new crate gets its place decided on purpose.

use crate::Finding;
use anyhow::{Context, Result};
use std::path::Path;

/// A crate and the crates of ours that its code may use. `core` goes without saying.
const LAYERS: [(&str, &[&str]); 16] = [
    ("core", &[]),
    ("proto", &[]),
    ("sched", &[]),
    ("store", &[]),
    ("files", &[]),
    ("guest", &[]),
    ("runtime", &["guest"]),
    ("engine", &["sched", "store"]),
    ("image", &["files", "runtime"]),
    ("worker", &["proto", "runtime", "image", "files"]),
    ("control", &["proto", "store", "sched", "engine", "files", "image"]),
    ("gateway", &["proto"]),
    ("baseline", &["proto", "gateway"]),
    ("cli", ALL),
    ("sim", ALL),
    ("xtask", ALL),
];
const ALL: &[&str] = &[
    "proto", "sched", "store", "files", "guest", "runtime", "engine", "image", "worker", "control", "gateway",
];
/// Crates that only tests may use.
const DEV_ONLY: [&str; 1] = ["sim"];
/// External crates that a room must not use, and why.
const EXTERNAL: [(&str, &[&str], &str); 3] = [
    ("core", &["tokio", "rusqlite", "hyper", "ureq"], "it has no I/O and no async runtime"),
    ("sched", &["tokio", "rusqlite", "hyper", "ureq", "getrandom"], "it only decides"),
    ("engine", &["tokio", "rusqlite", "hyper", "ureq", "getrandom"], "it only decides"),
];

/// Reads every crate's manifest and compares it with the table.
pub(crate) fn check(root: &Path) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let folder = root.join("crates");
    let mut crates: Vec<_> = std::fs::read_dir(&folder)
        .with_context(|| format!("reading {}", folder.display()))?
        .collect::<std::io::Result<Vec<_>>>()?
        .into_iter()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    crates.sort();
    for name in crates {
        let path = folder.join(&name).join("Cargo.toml");
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        check_manifest(&name, &text, &mut findings).with_context(|| format!("reading {}", path.display()))?;
    }
    Ok(findings)
}

fn check_manifest(name: &str, text: &str, findings: &mut Vec<Finding>) -> Result<()> {
    let place = format!("crates/{name}/Cargo.toml");
    let manifest: toml::Table = text.parse()?;
    let Some((_, allowed)) = LAYERS.iter().find(|(layer, _)| *layer == name) else {
        findings.push(Finding::new(place, "is not in the table of layers (crates/xtask/src/layers.rs)"));
        return Ok(());
    };
    for section in ["dependencies", "build-dependencies"] {
        for dependency in keys(&manifest, section) {
            if let Some(room) = dependency.strip_prefix("evoke-") {
                if DEV_ONLY.contains(&room) && !DEV_ONLY.contains(&name) && name != "xtask" {
                    findings
                        .push(Finding::new(&place, format!("{room} is for tests: a dev-dependency only")));
                } else if room != "core" && !DEV_ONLY.contains(&room) && !allowed.contains(&room) {
                    findings.push(Finding::new(&place, format!("{name} must not depend on {room}")));
                }
            }
            for (_, banned, why) in EXTERNAL.iter().filter(|(room, ..)| *room == name) {
                if banned.contains(&dependency.as_str()) {
                    findings
                        .push(Finding::new(&place, format!("{name} must not depend on {dependency}: {why}")));
                }
            }
        }
    }
    Ok(())
}

fn keys(manifest: &toml::Table, section: &str) -> Vec<String> {
    manifest.get(section).and_then(|s| s.as_table()).map(|t| t.keys().cloned().collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, manifest: &str) -> Vec<String> {
        let mut findings = Vec::new();
        check_manifest(name, manifest, &mut findings).unwrap();
        findings.into_iter().map(|f| f.what).collect()
    }

    #[test]
    fn arrows_point_down() {
        let cases = [
            ("worker", "[dependencies]\nevoke-proto.workspace = true", None),
            ("worker", "[dependencies]\nevoke-store.workspace = true", Some("must not depend on store")),
            ("gateway", "[dependencies]\nevoke-store.workspace = true", Some("must not depend on store")),
            ("sched", "[dependencies]\ntokio = \"1\"", Some("it only decides")),
            ("store", "[dev-dependencies]\nevoke-sim.workspace = true", None),
            ("store", "[dependencies]\nevoke-sim.workspace = true", Some("dev-dependency")),
            ("novel", "[dependencies]", Some("table of layers")),
        ];
        for (name, manifest, wanted) in cases {
            let got = found(name, manifest);
            match wanted {
                None => assert!(got.is_empty(), "{name}: {got:?}"),
                Some(text) => assert!(got.iter().any(|w| w.contains(text)), "{name}: {got:?}"),
            }
        }
    }
}
