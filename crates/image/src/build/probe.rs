//! Looks at a finished image by its own Python: which version, which C library, which packages.

use crate::error::Result;
use crate::log::{LogSink, LogStream, say};
use crate::spec::{ImageSpec, Libc, PythonInfo, PythonPackage};
use crate::steps::{Builder, Command, Root};
use serde::Deserialize;
use std::sync::{Mutex, PoisonError};

/// Bytes of the answer at most.
const ANSWER_MAX: usize = 4 * 1024 * 1024;
/// Packages kept at most.
const PACKAGES_MAX: usize = 10_000;
/// Comes before the answer, whatever else is printed.
const MARK: &str = "evoke-probe:";

/// Python 3.6 and newer understand it. `-I` keeps user code out of it.
const SCRIPT: &str = r#"
import json, sys
answer = {"version": sys.version.split()[0], "minor": sys.version_info[1], "major": sys.version_info[0], "path": sys.executable}
try:
    import platform
    answer["libc"] = list(platform.libc_ver())
except Exception:
    answer["libc"] = ["", ""]
try:
    import glob
    answer["musl"] = bool(glob.glob("/lib/ld-musl-*"))
except Exception:
    answer["musl"] = False
packages = {}
try:
    from importlib import metadata
    for dist in metadata.distributions():
        name = dist.metadata["Name"]
        if name and name not in packages:
            packages[name] = dist.version
except Exception:
    pass
answer["packages"] = sorted((k, str(v)) for k, v in packages.items())
print("evoke-probe:" + json.dumps(answer))
"#;

#[derive(Debug, Deserialize)]
struct Answer {
    version: String,
    major: u32,
    minor: u32,
    path: String,
    libc: (String, String),
    musl: bool,
    packages: Vec<(String, String)>,
}

/// Keeps what the probe prints.
#[derive(Default)]
struct Kept(Mutex<String>);

impl LogSink for Kept {
    fn write(&self, stream: LogStream, text: &str) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if stream == LogStream::Stdout && kept.len() + text.len() <= ANSWER_MAX {
            kept.push_str(text);
        }
    }
}

/// Fills in what the image's own Python says. An image without one is an image, too.
pub(super) async fn look(builder: &dyn Builder, image: &mut ImageSpec, log: &dyn LogSink) -> Result<()> {
    let before = image.python.take();
    image.libc = None;
    image.packages.clear();
    if image.layers.is_empty() {
        return Ok(());
    }
    for program in ["python", "python3"] {
        let command = Command {
            root: Root::of(image),
            argv: vec![program.into(), "-I".into(), "-c".into(), SCRIPT.into()],
            env: image.env.clone(),
            cwd: "/".into(),
            user: String::new(),
            binds: Vec::new(),
            mounts: Vec::new(),
            volumes: None,
            network: false,
            commit: None,
        };
        let kept = Kept::default();
        let (end, _) = builder.run(command, &kept).await?;
        let text = kept.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        let answer = text.lines().find_map(|line| line.strip_prefix(MARK));
        if let Some(answer) = answer.filter(|_| end.success()) {
            match serde_json::from_str(answer) {
                Ok(answer) => {
                    fill(image, answer, before.as_ref());
                    return Ok(());
                }
                Err(error) => tracing::warn!(%error, "the image's python gave an answer that cannot be read"),
            }
        }
    }
    say(log, "note: the image has no Python on its path");
    Ok(())
}

/// `before` is the Python of the image that this one was built on.
fn fill(image: &mut ImageSpec, answer: Answer, before: Option<&PythonInfo>) {
    image.libc = match (answer.libc.0.as_str(), answer.musl) {
        ("glibc", _) => Some(Libc::Glibc(Some(answer.libc.1).filter(|v| !v.is_empty()))),
        ("", true) | ("musl", _) => Some(Libc::Musl),
        _ => Some(Libc::Glibc(None)),
    };
    if answer.major == 3 {
        let version = format!("Python {}", answer.version);
        let inherited = before.filter(|python| (&python.path, &python.version) == (&answer.path, &version));
        let layers = inherited.map_or(0, |python| python.layers);
        image.python = Some(PythonInfo {
            version,
            path: answer.path,
            minor: answer.minor,
            layers: if layers > 0 { layers } else { image.layers.len() },
        });
    }
    let packages = answer.packages.into_iter().take(PACKAGES_MAX);
    image.packages = packages.map(|(name, version)| PythonPackage { name, version }).collect();
}
