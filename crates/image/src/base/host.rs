//! This machine as a base: its interpreter and libraries, read-only, with the files of /etc that programs
//! need and none that tell of people. What is installed goes to a virtual environment of the image.

use super::{Bases, Found, Miss, Reference, blob};
use crate::digest::Hasher;
use crate::error::{ImageError, Result};
use crate::log::{LogSink, say};
use crate::spec::{HostBind, ImageSpec};
use crate::steps::Root;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// This machine as a base.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HostConfig {
    /// Interpreters offered, in the order of preference: paths on this machine. The one whose version is
    /// asked for is taken.
    pub python: Vec<PathBuf>,
    /// Further folders to show read-only.
    pub extra: Vec<PathBuf>,
    /// Folders that are never shown, nor anything that holds them: the data folder.
    pub never: Vec<PathBuf>,
}

/// System folders that are shown.
const FOLDERS: [&str; 9] =
    ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/opt/cuda", "/usr/local/cuda"];
/// Folders of /etc that programs need and that tell nothing of people.
const ETC_FOLDERS: [&str; 3] = ["/etc/ssl/certs", "/etc/alternatives", "/etc/ld.so.conf.d"];
/// Files of the same kind; the image has copies of them.
const ETC_FILES: [&str; 8] = [
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/mime.types",
    "/etc/protocols",
    "/etc/services",
    "/etc/localtime",
    "/etc/os-release",
    "/etc/pki/tls/certs/ca-bundle.crt",
];
/// Bytes of one such file at most.
const ETC_FILE_MAX: u64 = 16 * 1024 * 1024;
/// Folders of people and of the system's state; nothing in or above them is shown.
const NEVER: [&str; 10] =
    ["/home", "/root", "/etc", "/var", "/proc", "/sys", "/dev", "/run", "/tmp", "/boot"];
/// Where the image's own virtual environment is.
const VENV: &str = "/opt/venv";
/// Time an interpreter has to say its version.
const ASK_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(20);

/// What an interpreter says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Interpreter {
    version: (u32, u32, u32),
    executable: PathBuf,
    base_prefix: PathBuf,
    base_exec_prefix: PathBuf,
}

const ASK: &str = "import sys, json, os; print(json.dumps(dict(version=sys.version_info[:3], \
    executable=os.path.realpath(getattr(sys, '_base_executable', None) or sys.executable), \
    base_prefix=os.path.realpath(sys.base_prefix), base_exec_prefix=os.path.realpath(sys.base_exec_prefix))))";

impl Bases {
    pub(super) async fn host(&self, reference: &Reference, log: &dyn LogSink) -> Found {
        let wanted = match wanted_python(reference) {
            Some(wanted) => wanted,
            None => return Err(Miss::NotMine("it stands in for debian and slim python images only".into())),
        };
        let config = &self.config.host;
        if config.python.is_empty() {
            return Err(Miss::NotMine("no interpreter is configured (images.host.python)".into()));
        }
        let mut seen = Vec::new();
        for path in &config.python {
            let interpreter = match ask(path).await {
                Ok(interpreter) => interpreter,
                Err(error) => {
                    seen.push(error.to_string());
                    continue;
                }
            };
            let (major, minor, patch) = interpreter.version;
            if wanted.is_some_and(|wanted| wanted != (major, minor)) {
                seen.push(format!("{} is Python {major}.{minor}.{patch}", path.display()));
                continue;
            }
            say(log, format!("Using this machine's own Python {major}.{minor}.{patch} ({})", path.display()));
            return Ok(self.host_image(&interpreter, log).await?);
        }
        let (major, minor) = wanted.unwrap_or((3, 0));
        let message = format!("Python {major}.{minor} is asked for, and {}", seen.join("; "));
        Err(Miss::Failed(ImageError::malformed("this machine", message)))
    }

    async fn host_image(&self, interpreter: &Interpreter, log: &dyn LogSink) -> Result<ImageSpec> {
        let (binds, links) = view(&self.config.host, interpreter)?;
        let files = etc_files(Path::new("/"));
        let (major, minor, patch) = interpreter.version;
        let mut hasher = Hasher::new("evoke-host-1");
        hasher.text(&format!("{interpreter:?}{links:?}"));
        for (path, content) in &files {
            hasher.text(path).bytes(content);
        }
        let key = hasher.finish();
        let layer = match self.tools.layer(&key).await? {
            Some(layer) => layer,
            None => {
                let (interpreter, links) = (interpreter.clone(), links.clone());
                let piped = blob::pipe_through("the host layer".into(), move |out| {
                    write_layer(&interpreter, &links, &files, out)
                })?;
                let origin = "a view of this machine".to_owned();
                self.tools.unpack(&Root::default(), piped, &key, origin, log).await?
            }
        };
        let mut image = ImageSpec {
            layers: vec![layer],
            binds,
            cmd: vec!["python3".into()],
            host: true,
            provenance: vec![format!("this machine's Python {major}.{minor}.{patch}")],
            ..ImageSpec::default()
        };
        image.set_env("PATH", &format!("{VENV}/bin:{}", crate::spec::PATH_DEFAULT));
        image.set_env("VIRTUAL_ENV", VENV);
        image.set_env("LANG", "C.UTF-8");
        Ok(image)
    }
}

/// The Python version that an image stands for: none for `debian`, where any will do.
fn wanted_python(reference: &Reference) -> Option<Option<(u32, u32)>> {
    match reference.official()? {
        "debian" => Some(None),
        "python" => {
            let tag = reference.tag.as_deref()?;
            let version = tag.split('-').next()?;
            let mut parts = version.split('.').map(|p| p.parse().ok());
            match (parts.next().flatten(), parts.next().flatten()) {
                (Some(major), Some(minor)) => Some(Some((major, minor))),
                _ => Some(None),
            }
        }
        _ => None,
    }
}

async fn ask(path: &Path) -> Result<Interpreter> {
    let what = path.display().to_string();
    let run = tokio::process::Command::new(path)
        .args(["-I", "-c", ASK])
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = match tokio::time::timeout(ASK_TIMEOUT, run).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => return Err(ImageError::malformed(what, error)),
        Err(_) => return Err(ImageError::malformed(what, "it does not answer")),
    };
    serde_json::from_slice(&output.stdout)
        .map_err(|e| ImageError::malformed(what, format!("it does not say what it is: {e}")))
}

/// Folders to bind, and links to make for system folders that are links here.
type View = (Vec<HostBind>, BTreeMap<String, String>);

fn view(config: &HostConfig, interpreter: &Interpreter) -> Result<View> {
    let mut binds = Vec::new();
    let mut links = BTreeMap::new();
    for folder in FOLDERS.iter().chain(&ETC_FOLDERS) {
        let path = Path::new(folder);
        let Ok(meta) = path.symlink_metadata() else { continue };
        if meta.is_symlink() && path.parent() == Some(Path::new("/")) {
            if let Ok(target) = std::fs::read_link(path) {
                links.insert((*folder).to_owned(), target.to_string_lossy().into_owned());
            }
            continue;
        }
        add(&mut binds, path.canonicalize().unwrap_or_else(|_| path.to_owned()), path.to_owned());
    }
    let prefixes = [&interpreter.base_prefix, &interpreter.base_exec_prefix];
    for prefix in prefixes.into_iter().chain(&config.extra) {
        let real = prefix.canonicalize().map_err(|e| ImageError::io("find", prefix, &e))?;
        check_shown(config, &real, prefixes.contains(&prefix))?;
        add(&mut binds, real.clone(), real.clone());
        if *prefix != real {
            add(&mut binds, real, prefix.clone());
        }
    }
    Ok((binds, links))
}

/// The small files of /etc, by path without a leading slash.
fn etc_files(root: &Path) -> Vec<(String, Vec<u8>)> {
    use std::io::Read as _;
    let read = |path: &&str| {
        let name = path.trim_start_matches('/');
        let mut content = Vec::new();
        // What this machine lacks, the image lacks.
        let file = std::fs::File::open(root.join(name)).ok()?;
        file.take(ETC_FILE_MAX).read_to_end(&mut content).ok()?;
        Some((name.to_owned(), content))
    };
    ETC_FILES.iter().filter_map(read).collect()
}

/// Adds a bind unless an earlier one shows it already.
fn add(binds: &mut Vec<HostBind>, source: PathBuf, target: PathBuf) {
    let shown =
        binds.iter().any(|b| target.starts_with(&b.target) && b.source == b.target && source == target);
    if !shown {
        binds.push(HostBind { source, target });
    }
}

/// Refuses folders that hold what must not be shown. An interpreter's own folder may lie in a home folder
/// (pyenv's do): it alone is shown then.
fn check_shown(config: &HostConfig, path: &Path, interpreter: bool) -> Result<()> {
    let refuse = |why: String| {
        Err(ImageError::Unsupported(format!("{} is not shown to containers: {why}", path.display())))
    };
    if path.parent().is_none() {
        return refuse("it is the whole machine".into());
    }
    for never in config.never.iter().map(PathBuf::as_path).chain(NEVER.iter().map(Path::new)) {
        if never.starts_with(path) {
            return refuse(format!("it holds {}", never.display()));
        }
        let within = path.starts_with(never);
        let own = interpreter && path.join("bin").is_dir() && path.join("lib").is_dir();
        if within && (!own || config.never.iter().any(|n| n == never)) {
            return refuse(format!("it lies in {}", never.display()));
        }
    }
    let is_home =
        path.join(".ssh").exists() || path.join(".bashrc").exists() || path.join(".profile").exists();
    if is_home { refuse("it is a home folder".into()) } else { Ok(()) }
}

/// The one layer of a host image: folders, links, accounts of its own, and a virtual environment.
fn write_layer(
    interpreter: &Interpreter,
    links: &BTreeMap<String, String>,
    files: &[(String, Vec<u8>)],
    out: &mut dyn std::io::Write,
) -> Result<()> {
    let mut tree = crate::tree::TreeWriter::new("the host layer", out);
    let (major, minor, patch) = interpreter.version;
    for folder in ["etc", "opt", "root", "tmp", "var", "var/tmp", "var/lib", "home", "run"] {
        tree.folder(folder, if folder.ends_with("tmp") { 0o1777 } else { 0o755 })?;
    }
    for (name, target) in links {
        tree.link(name.trim_start_matches('/'), target)?;
    }
    tree.file(
        "etc/passwd",
        0o644,
        b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    )?;
    tree.file("etc/group", 0o644, b"root:x:0:\ntty:x:5:\nstaff:x:50:\nnogroup:x:65534:\n")?;
    tree.file("etc/nsswitch.conf", 0o644, b"passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n")?;
    for (path, content) in files {
        tree.file(path, 0o644, content)?;
    }
    let venv = VENV.trim_start_matches('/');
    let site = format!("{venv}/lib/python{major}.{minor}/site-packages");
    for folder in [
        venv,
        &format!("{venv}/bin"),
        &format!("{venv}/lib"),
        &format!("{venv}/lib/python{major}.{minor}"),
        &site,
    ] {
        tree.folder(folder, 0o755)?;
    }
    let executable = interpreter.executable.display();
    let home = interpreter.executable.parent().unwrap_or(Path::new("/usr/bin")).display();
    let config = format!(
        "home = {home}\ninclude-system-site-packages = true\nversion = {major}.{minor}.{patch}\nexecutable = {executable}\n"
    );
    tree.file(&format!("{venv}/pyvenv.cfg"), 0o644, config.as_bytes())?;
    for name in ["python".to_owned(), "python3".to_owned(), format!("python{major}.{minor}")] {
        tree.link(&format!("{venv}/bin/{name}"), &executable.to_string())?;
    }
    for name in ["pip".to_owned(), "pip3".to_owned(), format!("pip{major}.{minor}")] {
        let script = format!(
            "#!{VENV}/bin/python\nimport runpy\nrunpy.run_module('pip', run_name='__main__', alter_sys=True)\n"
        );
        tree.file(&format!("{venv}/bin/{name}"), 0o755, script.as_bytes())?;
    }
    tree.finish()
}

/// Interpreters worth offering: the one handed in, then those of the usual places.
pub fn find_interpreters(preferred: Option<PathBuf>) -> Vec<PathBuf> {
    let usual = ["/usr/local/bin/python3", "/usr/bin/python3"].map(PathBuf::from);
    let mut found: Vec<PathBuf> = Vec::new();
    for path in preferred.into_iter().chain(usual) {
        let runs = path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
        if runs && !found.contains(&path) {
            found.push(path);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_what_it_stands_for() {
        let of = |text: &str| wanted_python(&Reference::parse(text).unwrap());
        assert_eq!(of("python:3.11.12-slim-bookworm"), Some(Some((3, 11))));
        assert_eq!(of("python:3-slim"), Some(None));
        assert_eq!(of("debian:bookworm-slim"), Some(None));
        assert_eq!(of("ubuntu:22.04"), None);
        assert_eq!(of("me/python:3.11"), None);
    }

    #[test]
    fn never_shows_what_must_not_be_shown() {
        let data = tempfile::tempdir().unwrap();
        let config = HostConfig { never: vec![data.path().to_owned()], ..HostConfig::default() };
        for path in ["/", "/home", "/home/x", "/root", "/etc", "/var/lib/x", "/tmp/x"] {
            assert!(check_shown(&config, Path::new(path), false).is_err(), "{path}");
        }
        let inside = data.path().join("in");
        for part in ["bin", "lib"] {
            std::fs::create_dir_all(inside.join(part)).unwrap();
        }
        assert!(check_shown(&config, &inside, true).is_err());
        assert!(check_shown(&HostConfig::default(), &inside, true).is_ok());
        std::fs::create_dir(inside.join(".ssh")).unwrap();
        assert!(check_shown(&HostConfig::default(), &inside, true).is_err());
        assert!(check_shown(&config, Path::new("/usr"), false).is_ok());
    }
}
