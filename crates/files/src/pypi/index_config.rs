//! Which package index the host uses, from what pip and uv read: environment variables, then the
//! configuration files of pip.

use crate::HostEnv;
use serde::{Deserialize, Serialize};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The index that is used where nothing is configured.
const DEFAULT_INDEX: &str = "https://pypi.org/simple";

/// The host's package indexes. Serialisable, so that a process which can read the person's files takes it
/// and hands it to one that can't. The addresses may hold credentials: don't show them unredacted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexConfig {
    /// The main index.
    pub index_url: String,
    /// Further indexes, asked after it.
    pub extra_index_urls: Vec<String>,
}

impl Default for IndexConfig {
    fn default() -> Self {
        Self { index_url: DEFAULT_INDEX.into(), extra_index_urls: Vec::new() }
    }
}

impl IndexConfig {
    /// What the host is configured for. A file that is not there or not readable counts as empty.
    pub fn of_host(host: &HostEnv) -> Self {
        let mut settings = FileSettings::default();
        for path in files_of(host) {
            if let Ok(text) = fs::read_to_string(&path) {
                settings.read(&text);
            }
        }
        let index = host.first(&["PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL"]).map(str::to_owned);
        let extra = host.first(&["PIP_EXTRA_INDEX_URL", "UV_EXTRA_INDEX_URL"]).map(words);
        Self {
            index_url: index.or(settings.index_url).unwrap_or_else(|| DEFAULT_INDEX.into()),
            extra_index_urls: extra.unwrap_or(settings.extra_index_urls),
        }
    }

    /// All indexes in the order in which they are asked.
    pub fn all(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.index_url.as_str()).chain(self.extra_index_urls.iter().map(String::as_str))
    }
}

/// The configuration files of pip, from the weakest to the strongest.
fn files_of(host: &HostEnv) -> Vec<PathBuf> {
    let named = host.path("PIP_CONFIG_FILE");
    // pip reads no file at all where this one is named.
    if named.as_deref() == Some(Path::new("/dev/null")) {
        return Vec::new();
    }
    let mut files: Vec<PathBuf> = match host.get("XDG_CONFIG_DIRS") {
        Some(folders) => folders.split(':').map(|folder| Path::new(folder).join("pip/pip.conf")).collect(),
        None => vec!["/etc/xdg/pip/pip.conf".into()],
    };
    files.reverse();
    files.push("/etc/pip.conf".into());
    let home = host.path("HOME");
    files.extend(home.as_ref().map(|home| home.join(".pip/pip.conf")));
    let config = host.path("XDG_CONFIG_HOME").or_else(|| home.map(|home| home.join(".config")));
    files.extend(config.map(|config| config.join("pip/pip.conf")));
    files.extend(host.path("VIRTUAL_ENV").map(|env| env.join("pip.conf")));
    files.extend(named);
    files
}

#[derive(Default)]
struct FileSettings {
    index_url: Option<String>,
    extra_index_urls: Vec<String>,
}

impl FileSettings {
    /// Takes over what a file of pip says; `[install]` is stronger than `[global]`.
    fn read(&mut self, text: &str) {
        for section in ["global", "install"] {
            if let Some(value) = setting(text, section, "index-url") {
                self.index_url = Some(value);
            }
            if let Some(value) = setting(text, section, "extra-index-url") {
                self.extra_index_urls = words(&value);
            }
        }
    }
}

/// One setting of an INI file; lines that begin with a space go on with the value before them.
fn setting(text: &str, section: &str, name: &str) -> Option<String> {
    let mut inside = false;
    let mut value: Option<String> = None;
    let mut open = false;
    for line in text.lines() {
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with(['#', ';']) {
            continue;
        }
        if line.starts_with([' ', '\t']) {
            if let Some(value) = value.as_mut().filter(|_| open) {
                value.push(' ');
                value.push_str(trimmed);
            }
            continue;
        }
        open = false;
        if let Some(header) = trimmed.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
            inside = header.trim() == section;
            continue;
        }
        let Some((key, given)) = trimmed.split_once(['=', ':']) else { continue };
        if inside && key.trim().to_ascii_lowercase().replace('_', "-") == name {
            value = Some(given.trim().to_owned());
            open = true;
        }
    }
    value.map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_win_over_files_and_later_files_over_earlier() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().to_str().unwrap();
        let none = folder.path().join("none").to_str().unwrap().to_owned();
        let write = |path: &str, text: &str| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write(".pip/pip.conf", "[global]\nindex-url = https://old.test/simple\n");
        write(
            ".config/pip/pip.conf",
            "[global]\n# c\nindex_url: https://user.test/simple\nextra-index-url =\n    https://x.test\n    https://y.test\ntimeout=3\n[other]\nindex-url=https://no.test\n",
        );
        let base = [("HOME", home), ("XDG_CONFIG_DIRS", none.as_str())];
        let of = |more: &[(&'static str, &'static str)]| {
            IndexConfig::of_host(&HostEnv::of_pairs(base.into_iter().chain(more.iter().copied())))
        };
        let config = of(&[]);
        assert_eq!(
            config.all().collect::<Vec<_>>(),
            ["https://user.test/simple", "https://x.test", "https://y.test"]
        );
        assert_eq!(of(&[("UV_INDEX_URL", "https://uv.test")]).index_url, "https://uv.test");
        let both = of(&[("UV_INDEX_URL", "https://uv.test"), ("PIP_INDEX_URL", "https://pip.test")]);
        assert_eq!(both.index_url, "https://pip.test");
        assert_eq!(of(&[("PIP_CONFIG_FILE", "/dev/null")]), IndexConfig::default());
        assert_eq!(of(&[("PIP_EXTRA_INDEX_URL", "https://z.test")]).extra_index_urls, ["https://z.test"]);
    }
}
