//! `evoke image list`, `show` and `prune`: which images there are, what each layer of one brought, and the
//! removal of what nothing needs. The
//! other sub-verbs of `image` are the official CLI's own.

use crate::local::{ImageQuestion, Request};
use crate::own_verbs::{self, Asking, text};
use anyhow::Result;
use clap::{Parser, Subcommand};
use evoke_gateway::size;
use serde_json::Value;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

/// The sub-verbs that are ours.
const OURS: [&str; 3] = ["list", "show", "prune"];
/// Packages of a layer that are shown to people; `--json` has all.
const PACKAGES_SHOWN: usize = 12;

#[derive(Debug, Parser)]
#[command(
    name = "evoke image",
    about = "Images, what their layers brought, and their removal",
    disable_help_subcommand = true
)]
struct Words {
    #[command(flatten)]
    asking: Asking,
    #[command(subcommand)]
    verb: Sub,
}

#[derive(Debug, Subcommand)]
enum Sub {
    /// List the images of the server, newest first
    List,
    /// Show the layers of an image: step, size, files and packages added, changed and removed
    Show {
        /// Id of the image (im-…)
        image: String,
    },
    /// Remove images, layers and mounted files that nothing needs: no function of an app that is not stopped
    /// (any version of it), no name, no build
    Prune {
        /// Only say what would be removed
        #[arg(long)]
        dry_run: bool,
        /// Keep images and layers that were used within this time, as 30d, 12h, 10m or 0s; mounted files stay for an
        /// hour at least
        #[arg(long, value_name = "TIME", default_value = "10m", value_parser = milliseconds)]
        unused_for: u64,
    },
}

/// `30d`, `12h`, `10m`, `0s` in milliseconds.
fn milliseconds(text: &str) -> Result<u64, String> {
    let units = [("d", 24 * 3600 * 1000), ("h", 3600 * 1000), ("m", 60 * 1000), ("s", 1000)];
    let value = units.iter().find_map(|(unit, ms)| {
        let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
        number.checked_mul(*ms)
    });
    value.ok_or_else(|| format!("'{text}' is not a time such as 30d, 12h, 10m or 0s"))
}

/// Whether the words after `evoke` are ours to answer.
pub(crate) fn is_ours(words: &[OsString]) -> bool {
    own_verbs::is_ours("image", &OURS, words)
}

/// Runs the verb.
pub(crate) fn run(data: Option<&Path>, words: Vec<OsString>) -> Result<ExitCode> {
    let words: Words = own_verbs::parsed(words);
    let question = match words.verb {
        Sub::List => ImageQuestion::List,
        Sub::Show { image } => ImageQuestion::Show { id: image },
        Sub::Prune { dry_run, unused_for } => ImageQuestion::Prune { unused_ms: unused_for, dry_run },
    };
    let shown = match &question {
        ImageQuestion::List => listed,
        ImageQuestion::Show { .. } => layers_shown,
        ImageQuestion::Prune { dry_run: true, .. } => would_be_removed,
        ImageQuestion::Prune { dry_run: false, .. } => removed,
    };
    words.asking.answered(data, &Request::Image { question }, shown)
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_default()
}

/// A line for each image.
fn listed(answer: &Value) -> String {
    let images = answer.as_array().map(Vec::as_slice).unwrap_or_default();
    if images.is_empty() {
        return "no images\n".to_owned();
    }
    images.iter().map(|image| format!("{}\n", line_of(image, number(image, "layers")))).collect()
}

fn line_of(image: &Value, layers: u64) -> String {
    let names: Vec<&str> =
        image["names"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let about = match text(image, "error") {
        "" if names.is_empty() => text(image, "step").to_owned(),
        "" => names.join(", "),
        error => error.lines().next().unwrap_or_default().to_owned(),
    };
    format!(
        "{}  {}  {:<8}  {:>2} layers  {:>9}  {}",
        text(image, "id"),
        text(image, "created"),
        text(image, "state"),
        layers,
        size(number(image, "bytes")),
        shortened(&about)
    )
}

fn removed(answer: &Value) -> String {
    format!("removed {}\n", counted(answer))
}

fn would_be_removed(answer: &Value) -> String {
    format!("would remove {}\n", counted(answer))
}

fn counted(answer: &Value) -> String {
    format!(
        "{} images, {} layers ({}), {} downloads ({}), {} sets of mounted files, {} contents ({})",
        number(answer, "images"),
        number(answer, "layers"),
        size(number(answer, "layer_bytes")),
        number(answer, "downloads"),
        size(number(answer, "download_bytes")),
        number(answer, "mounts"),
        number(answer, "contents"),
        size(number(answer, "content_bytes"))
    )
}

/// An image with its layers, bottom first.
fn layers_shown(answer: &Value) -> String {
    let layers = answer["layers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut lines = vec![line_of(answer, layers.len() as u64)];
    if !text(answer, "error").is_empty() {
        lines.push(text(answer, "error").to_owned());
    }
    for layer in layers {
        let files = &layer["files"];
        lines.push(format!("\n{}", shortened(text(layer, "step"))));
        lines.push(format!(
            "  {}  files +{} ~{} -{}  in {:.1} s",
            size(number(layer, "bytes")),
            number(files, "added"),
            number(files, "changed"),
            number(files, "removed"),
            number(layer, "took_ms") as f64 / 1000.0
        ));
        for kind in ["python", "debian"] {
            let packages = layer[kind].as_array().map(Vec::as_slice).unwrap_or_default();
            lines.extend(packages.iter().take(PACKAGES_SHOWN).map(|package| package_line(kind, package)));
            if packages.len() > PACKAGES_SHOWN {
                lines.push(format!("  {kind} … and {} more", packages.len() - PACKAGES_SHOWN));
            }
        }
    }
    lines.join("\n") + "\n"
}

fn package_line(kind: &str, package: &Value) -> String {
    let name = text(package, "name");
    match (package["before"].as_str(), package["after"].as_str()) {
        (Some(before), Some(after)) => format!("  {kind} ~ {name} {before} -> {after}"),
        (Some(before), None) => format!("  {kind} - {name} {before}"),
        (None, after) => format!("  {kind} + {name} {}", after.unwrap_or_default()),
    }
}

/// One line of a step, of a length that a terminal takes.
fn shortened(step: &str) -> String {
    const CHARS_MAX: usize = 100;
    let line = step.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= CHARS_MAX {
        return line;
    }
    line.chars().take(CHARS_MAX - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_our_sub_verbs_are_taken_from_the_official_group() {
        let words = |list: &[&str]| list.iter().map(OsString::from).collect::<Vec<_>>();
        for ours in OURS {
            assert!(is_ours(&words(&["image", ours])));
        }
        for theirs in [&["image", "logs", "x"][..], &["image", "names", "list"], &["image"], &["app", "list"]]
        {
            assert!(!is_ours(&words(theirs)), "{theirs:?}");
        }
    }

    #[test]
    fn times_have_a_unit() {
        assert_eq!(
            ["2d", "3h", "10m", "0s"].map(milliseconds),
            [Ok(172_800_000), Ok(10_800_000), Ok(600_000), Ok(0)]
        );
        for bad in ["", "5", "m", "-1s", "1w", "99999999999999999999d"] {
            assert!(milliseconds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn layers_are_shown_with_what_they_brought() {
        let answer = json!({
            "id": "im-1", "created": "2026-01-01T00:00:00Z", "state": "ready", "names": [], "bytes": 1_500,
            "step": "RUN pip install six", "error": "",
            "layers": [{
                "step": "RUN pip install\n  six", "bytes": 2_000_000, "took_ms": 1_500,
                "files": { "added": 3, "changed": 1, "removed": 2 },
                "python": [{ "name": "six", "before": "1", "after": "2" }, { "name": "x", "after": "1" }],
                "debian": [{ "name": "git", "before": "1" }],
            }],
        });
        let shown = layers_shown(&answer);
        let expected = "\nRUN pip install six\n  2.0 MB  files +3 ~1 -2  in 1.5 s\n  python ~ six 1 -> 2\n  \
                        python + x 1\n  debian - git 1\n";
        assert!(
            shown.starts_with("im-1  2026-01-01T00:00:00Z  ready      1 layers     1.5 kB  RUN pip"),
            "{shown}"
        );
        assert!(shown.ends_with(expected), "{shown}");
    }
}
