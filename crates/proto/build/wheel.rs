//! Finds the pinned wheel of the official client: where the environment says, in a cache, or in the package
//! index. Whatever its source, its hash decides.

use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The lock file, relative to the crate.
pub const LOCK_FILE: &str = "modal.lock";
/// Names a wheel file to build from.
pub const ENV_WHEEL: &str = "EVOKE_MODAL_WHEEL";
/// The index asked when neither the environment nor pip's configuration names one.
const DEFAULT_INDEX: &str = "https://pypi.org/simple";
/// Seconds that one download through curl may take.
const DOWNLOAD_SECONDS_MAX: &str = "300";

/// Which release is pinned.
pub struct Lock {
    pub version: String,
    pub file: String,
    sha256: String,
}

impl Lock {
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let value = |key: &str| {
            text.lines()
                .filter(|line| !line.starts_with('#'))
                .filter_map(|line| line.split_once('='))
                .find(|(name, _)| name.trim() == key)
                .map(|(_, value)| value.trim().to_owned())
                .ok_or_else(|| format!("{}: no line '{key} = …'", path.display()))
        };
        Ok(Self { version: value("version")?, file: value("file")?, sha256: value("sha256")? })
    }

    fn verify(&self, bytes: &[u8], source: &str) -> Result<(), String> {
        let digest = Sha256::digest(bytes);
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        if hex == self.sha256 {
            return Ok(());
        }
        Err(format!(
            "{source} is not the pinned {}: its sha256 is {hex}, expected {}",
            self.file, self.sha256
        ))
    }

    fn load(&self, path: &Path) -> Result<Vec<u8>, String> {
        let bytes = fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
        self.verify(&bytes, &path.display().to_string())?;
        Ok(bytes)
    }
}

/// The wheel's bytes, verified.
pub fn find(lock: &Lock, manifest: &Path, out: &Path) -> Result<Vec<u8>, String> {
    if let Some(path) = std::env::var_os(ENV_WHEEL) {
        println!("cargo:rerun-if-changed={}", Path::new(&path).display());
        return lock.load(Path::new(&path)).map_err(|e| format!("{ENV_WHEEL}: {e}"));
    }
    let caches = cache_folders(manifest);
    let mut tried = Vec::new();
    for folder in &caches {
        match lock.load(&folder.join(&lock.file)) {
            Ok(bytes) => return Ok(bytes),
            Err(e) => tried.push(e),
        }
    }
    match download(lock, &out.join("download")) {
        Ok(bytes) => {
            keep(&caches, &lock.file, &bytes);
            Ok(bytes)
        }
        Err(failures) => {
            tried.extend(failures);
            Err(format!(
                "The build needs the published client package '{}' (sha256 {}) for the protocol's schema, \
                 and did not find it:\n  - {}\nThe mend: connect to a package index once (PIP_INDEX_URL names \
                 another than {DEFAULT_INDEX}), or put the file into one of\n  - {}\nor name it: {ENV_WHEEL}=/path/to/{}",
                lock.file,
                lock.sha256,
                tried.join("\n  - "),
                caches.iter().map(|c| c.display().to_string()).collect::<Vec<_>>().join("\n  - "),
                lock.file,
            ))
        }
    }
}

/// Where wheels are kept: the user's cache (shared by all checkouts), then the repository's own.
fn cache_folders(manifest: &Path) -> Vec<PathBuf> {
    let user = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .map(|cache| cache.join("evoke"));
    let repository = manifest.ancestors().nth(2).map(|root| root.join(".cache"));
    user.into_iter().chain(repository).collect()
}

/// Saves the wheel in the first cache that can be written. Failing to is not an error: the next build
/// downloads it again.
fn keep(caches: &[PathBuf], file: &str, bytes: &[u8]) {
    for folder in caches {
        let staged = folder.join(format!("{file}.{}", std::process::id()));
        let saved = fs::create_dir_all(folder)
            .and_then(|()| fs::write(&staged, bytes))
            .and_then(|()| fs::rename(&staged, folder.join(file)));
        match saved {
            Ok(()) => return,
            Err(e) => println!("cargo:warning=the wheel was not kept in {}: {e}", folder.display()),
        }
    }
}

/// Gets the wheel from the package index, by pip (which knows the user's index, proxy and certificates) or
/// by curl. Gives every failure if none succeeds.
fn download(lock: &Lock, folder: &Path) -> Result<Vec<u8>, Vec<String>> {
    let mut failures = Vec::new();
    if let Err(e) = fs::create_dir_all(folder) {
        return Err(vec![format!("{}: {e}", folder.display())]);
    }
    let target = folder.join(&lock.file);
    for python in ["python3", "python"] {
        let mut pip = Command::new(python);
        pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"])
            .args(["--ignore-requires-python", "--disable-pip-version-check", "--retries=1", "--dest"])
            .arg(folder)
            .arg(format!("modal=={}", lock.version))
            .env("PIP_REQUIRE_VIRTUALENV", "0");
        match run(pip).and_then(|_| lock.load(&target)) {
            Ok(bytes) => return Ok(bytes),
            Err(e) => failures.push(format!("{python} -m pip download: {e}")),
        }
    }
    match download_by_curl(lock, &target) {
        Ok(bytes) => Ok(bytes),
        Err(e) => {
            failures.push(format!("curl: {e}"));
            Err(failures)
        }
    }
}

fn download_by_curl(lock: &Lock, target: &Path) -> Result<Vec<u8>, String> {
    let index = index_url();
    let page_url = format!("{}/modal/", index.trim_end_matches('/'));
    let page = run(curl(&page_url))?;
    let page = String::from_utf8_lossy(&page);
    let link = page
        .split("href=\"")
        .filter_map(|rest| rest.split('"').next())
        .map(|link| link.split('#').next().unwrap_or_default())
        .find(|link| link.ends_with(&lock.file))
        .ok_or_else(|| format!("{page_url} does not list {}", lock.file))?;
    let mut command = curl(&resolve(&page_url, link)?);
    command.arg("--output").arg(target);
    run(command)?;
    lock.load(target)
}

fn curl(url: &str) -> Command {
    let mut command = Command::new("curl");
    command.args([
        "--silent",
        "--show-error",
        "--fail",
        "--location",
        "--max-time",
        DOWNLOAD_SECONDS_MAX,
        url,
    ]);
    command
}

/// The index that pip would use: the environment's, its configuration's, or the public one.
fn index_url() -> String {
    if let Ok(url) = std::env::var("PIP_INDEX_URL") {
        return url;
    }
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let configured = std::env::var_os("PIP_CONFIG_FILE").map(PathBuf::from);
    let files = configured.into_iter().chain([
        home.join(".config/pip/pip.conf"),
        home.join(".pip/pip.conf"),
        PathBuf::from("/etc/pip.conf"),
    ]);
    for file in files {
        let Ok(text) = fs::read_to_string(file) else { continue };
        let found = text
            .lines()
            .filter_map(|line| line.split_once(['=', ':']))
            .find(|(key, _)| matches!(key.trim(), "index-url" | "index_url"));
        if let Some((_, url)) = found {
            return url.trim().to_owned();
        }
    }
    DEFAULT_INDEX.to_owned()
}

/// The address that `link` means on the page at `base`.
fn resolve(base: &str, link: &str) -> Result<String, String> {
    if link.contains("://") {
        return Ok(link.to_owned());
    }
    let (scheme, rest) = base.split_once("://").ok_or_else(|| format!("'{base}' is not an address"))?;
    let host = rest.split('/').next().unwrap_or_default();
    if link.starts_with('/') {
        return Ok(format!("{scheme}://{host}{link}"));
    }
    let mut folder: Vec<&str> = rest.trim_end_matches('/').split('/').collect();
    let mut link = link;
    while let Some(up) = link.strip_prefix("../") {
        if folder.len() > 1 {
            folder.pop();
        }
        link = up;
    }
    Ok(format!("{scheme}://{}/{link}", folder.join("/")))
}

/// Runs a program to its end; gives what it printed.
fn run(mut command: Command) -> Result<Vec<u8>, String> {
    let output = command.output().map_err(|e| e.to_string())?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let talk = String::from_utf8_lossy(&output.stderr);
    Err(talk.lines().last().unwrap_or("failed and said nothing").to_owned())
}
