//! How this machine reaches package indexes: mirrors, proxies, certificates. Passed to the commands of a
//! build by environment and one read-only folder, so that no layer keeps any of it.

use crate::error::{ImageError, Result};
use crate::steps::ReadOnlyBind;
use std::path::{Path, PathBuf};

/// Where commands see the folder: no program looks there by itself.
const TARGET: &str = "/__evoke/host";
/// The index that pip uses where none is configured.
const INDEX: &str = "https://pypi.org/simple";
/// Bytes of a certificate bundle or configuration file at most.
const FILE_MAX: u64 = 16 * 1024 * 1024;
/// Variables that name a bundle of certificate authorities, for the tools that builds use.
const BUNDLE_VARIABLES: [&str; 8] = [
    "SSL_CERT_FILE",
    "PIP_CERT",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "CARGO_HTTP_CAINFO",
    "NODE_EXTRA_CA_CERTS",
    "AWS_CA_BUNDLE",
];
/// Variables handed on as they are.
const PLAIN_VARIABLES: [&str; 14] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "ALL_PROXY",
    "all_proxy",
    "NO_PROXY",
    "no_proxy",
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
    "PIP_TRUSTED_HOST",
    "PIP_DEFAULT_TIMEOUT",
    "UV_DEFAULT_INDEX",
    "UV_INDEX",
];
/// Keys of pip.conf and the variables that say the same.
const PIP_KEYS: [(&str, &str); 5] = [
    ("index-url", "PIP_INDEX_URL"),
    ("extra-index-url", "PIP_EXTRA_INDEX_URL"),
    ("trusted-host", "PIP_TRUSTED_HOST"),
    ("timeout", "PIP_DEFAULT_TIMEOUT"),
    ("proxy", "PIP_PROXY"),
];
/// Where distributions keep the bundle that holds this machine's own authorities too.
const SYSTEM_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];
/// Where an administrator puts authorities of the company's own.
const OWN_AUTHORITIES: [&str; 2] = ["/usr/local/share/ca-certificates", "/etc/pki/ca-trust/source/anchors"];

/// What commands of a build need to know of this machine's network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostNetwork {
    env: Vec<(String, String)>,
    bind: Option<ReadOnlyBind>,
    notes: Vec<String>,
    index_url: Option<String>,
}

impl HostNetwork {
    /// Reads the configuration: `lookup` gives environment variables, `root` is `/` but in tests, `home` the
    /// person's home folder. What commands must read is copied to `folder`.
    pub fn read(
        lookup: &dyn Fn(&str) -> Option<String>,
        root: &Path,
        home: Option<&Path>,
        folder: &Path,
    ) -> Result<Self> {
        let mut network = Self::default();
        let get = |name: &str| lookup(name).filter(|value| !value.trim().is_empty());
        for (name, value) in pip_settings(&get, root, home) {
            network.set(&name, &value);
        }
        for name in PLAIN_VARIABLES {
            if let Some(value) = get(name) {
                network.set(name, &value);
            }
        }
        network.name_for_uv();
        network.index_url = network.value("PIP_INDEX_URL").or(network.value("UV_DEFAULT_INDEX"));
        std::fs::create_dir_all(folder).map_err(|e| ImageError::io("make", folder, &e))?;
        let bundle = find_bundle(&get, root, home);
        if let Some(bundle) = &bundle {
            write(folder, "ca.crt", &read(bundle)?)?;
            for name in BUNDLE_VARIABLES {
                network.set(name, &format!("{TARGET}/ca.crt"));
            }
        }
        let apt = apt_conf(root, bundle.is_some());
        if !apt.is_empty() {
            write(folder, "apt.conf", apt.as_bytes())?;
            network.set("APT_CONFIG", &format!("{TARGET}/apt.conf"));
        }
        if bundle.is_some() || !apt.is_empty() {
            network.bind = Some(ReadOnlyBind { source: folder.to_owned(), target: TARGET.into() });
        }
        network.note_local_addresses();
        Ok(network)
    }

    /// Variables for a command; what the image sets itself comes after them.
    pub fn env(&self) -> &[(String, String)] {
        &self.env
    }

    /// The folder that the variables point into, if there is one.
    pub fn bind(&self) -> Option<&ReadOnlyBind> {
        self.bind.as_ref()
    }

    /// Things the person should know, once per build.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The index that packages come from.
    pub fn index_url(&self) -> &str {
        self.index_url.as_deref().unwrap_or(INDEX)
    }

    fn value(&self, name: &str) -> Option<String> {
        self.env.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone())
    }

    fn set(&mut self, name: &str, value: &str) {
        match self.env.iter_mut().find(|(k, _)| k == name) {
            Some((_, old)) => value.clone_into(old),
            None => self.env.push((name.to_owned(), value.to_owned())),
        }
    }

    /// uv reads no variable of pip's.
    fn name_for_uv(&mut self) {
        for (pip, uv) in [("PIP_INDEX_URL", "UV_DEFAULT_INDEX"), ("PIP_EXTRA_INDEX_URL", "UV_INDEX")] {
            if let (Some(value), None) = (self.value(pip), self.value(uv)) {
                self.set(uv, &value);
            }
        }
        if self.value("PIP_INDEX_URL").is_none() {
            if let Some(value) = self.value("UV_DEFAULT_INDEX") {
                self.set("PIP_INDEX_URL", &value);
            }
        }
    }

    fn note_local_addresses(&mut self) {
        let local = |value: &String| {
            value.contains("://127.") || value.contains("://localhost") || value.contains("://[::1]")
        };
        for (name, value) in &self.env {
            if local(value) {
                self.notes.push(format!(
                    "{name} names an address of this machine's own loopback, which containers do not reach"
                ));
            }
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    use std::io::Read;
    let file = std::fs::File::open(path).map_err(|e| ImageError::io("open", path, &e))?;
    let mut bytes = Vec::new();
    file.take(FILE_MAX).read_to_end(&mut bytes).map_err(|e| ImageError::io("read", path, &e))?;
    Ok(bytes)
}

/// Writes a file in one piece: a command that runs sees the old one or the new one.
fn write(folder: &Path, name: &str, content: &[u8]) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let path = folder.join(name);
    let draft =
        tempfile::NamedTempFile::new_in(folder).map_err(|e| ImageError::io("write in", folder, &e))?;
    std::io::Write::write_all(&mut draft.as_file(), content)
        .and_then(|()| draft.as_file().set_permissions(std::fs::Permissions::from_mode(0o644)))
        .map_err(|e| ImageError::io("write", draft.path(), &e))?;
    draft.persist(&path).map_err(|e| ImageError::io("rename to", &path, &e.error))?;
    Ok(())
}

/// The files that pip reads, the strongest last.
fn pip_files(get: &dyn Fn(&str) -> Option<String>, root: &Path, home: Option<&Path>) -> Vec<PathBuf> {
    let mut files = vec![root.join("etc/pip.conf")];
    if let Some(home) = home {
        files.extend([home.join(".pip/pip.conf"), home.join(".config/pip/pip.conf")]);
    }
    files.extend(get("PIP_CONFIG_FILE").map(PathBuf::from));
    files
}

fn pip_entries(
    get: &dyn Fn(&str) -> Option<String>,
    root: &Path,
    home: Option<&Path>,
) -> Vec<(String, String)> {
    pip_files(get, root, home)
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok())
        .flat_map(|text| ini_entries(&text))
        .collect()
}

fn pip_settings(
    get: &dyn Fn(&str) -> Option<String>,
    root: &Path,
    home: Option<&Path>,
) -> Vec<(String, String)> {
    pip_entries(get, root, home)
        .into_iter()
        .filter_map(|(key, value)| {
            let (_, name) = PIP_KEYS.iter().find(|(k, _)| *k == key)?;
            Some(((*name).to_owned(), value))
        })
        .collect()
}

/// `key = value` of the sections that hold for installs; values of several lines are joined.
fn ini_entries(text: &str) -> Vec<(String, String)> {
    let mut section = String::new();
    let mut entries: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = trimmed.strip_prefix('[') {
            section = name.trim_end_matches(']').to_ascii_lowercase();
            continue;
        }
        if !matches!(section.as_str(), "global" | "install") {
            continue;
        }
        let more = line.starts_with([' ', '\t']);
        match (more, trimmed.split_once('='), entries.last_mut()) {
            (true, _, Some((_, value))) => {
                value.push(' ');
                value.push_str(trimmed);
            }
            (false, Some((key, value)), _) => {
                entries.push((key.trim().to_ascii_lowercase().replace('_', "-"), value.trim().to_owned()));
            }
            _ => {}
        }
    }
    entries.into_iter().map(|(k, v)| (k, v.trim().to_owned())).filter(|(_, v)| !v.is_empty()).collect()
}

/// The bundle that this machine is told to trust, if it is not every machine's.
fn find_bundle(get: &dyn Fn(&str) -> Option<String>, root: &Path, home: Option<&Path>) -> Option<PathBuf> {
    let named = BUNDLE_VARIABLES[..4].iter().find_map(|name| get(name)).map(PathBuf::from);
    let of_pip =
        || pip_entries(get, root, home).into_iter().rev().find(|(k, _)| k == "cert").map(|(_, v)| v.into());
    if let Some(path) = named.or_else(of_pip).filter(|path| path.is_file()) {
        return Some(path);
    }
    let own = OWN_AUTHORITIES.iter().any(|folder| {
        std::fs::read_dir(root.join(&folder[1..])).is_ok_and(|mut entries| entries.next().is_some())
    });
    if !own {
        return None;
    }
    SYSTEM_BUNDLES.iter().map(|path| root.join(&path[1..])).find(|path| path.is_file())
}

/// apt's proxies and authorities.
fn apt_conf(root: &Path, bundle: bool) -> String {
    let mut text = String::new();
    let mut files = vec![root.join("etc/apt/apt.conf")];
    if let Ok(entries) = std::fs::read_dir(root.join("etc/apt/apt.conf.d")) {
        let mut more: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
        more.sort();
        files.extend(more);
    }
    for file in files {
        let Ok(content) = std::fs::read_to_string(&file) else { continue };
        for line in content.lines().map(str::trim) {
            let lower = line.to_ascii_lowercase();
            let proxy = ["acquire::http::proxy", "acquire::https::proxy", "acquire::ftp::proxy"]
                .iter()
                .any(|key| lower.starts_with(key));
            if proxy && line.ends_with(';') {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    if bundle {
        text.push_str(&format!("Acquire::https::CAInfo \"{TARGET}/ca.crt\";\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_with(pairs: &[(&str, &str)], root: &Path, folder: &Path) -> HostNetwork {
        let lookup = |name: &str| pairs.iter().find(|(k, _)| *k == name).map(|(_, v)| (*v).to_owned());
        HostNetwork::read(&lookup, root, Some(&root.join("home")), folder).unwrap()
    }

    #[test]
    fn a_plain_machine_passes_nothing_on() {
        let (root, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let network = read_with(&[], root.path(), folder.path());
        assert!(network.env().is_empty() && network.bind().is_none());
        assert_eq!(network.index_url(), INDEX);
    }

    #[test]
    fn passes_mirrors_proxies_and_certificates_on() {
        let (root, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            path
        };
        let ca = put("my.crt", "certificate");
        put(
            "etc/pip.conf",
            "[global]\nindex-url = http://weak/simple\nextra-index-url =\n  http://a\n  http://b\n[freeze]\ntimeout = 1\n",
        );
        put("home/.config/pip/pip.conf", "[global]\nindex_url: x\nindex-url=http://strong/simple\n");
        put("etc/apt/apt.conf.d/1", "Acquire::http::Proxy \"http://p:1\";\nAPT::Other \"x\";\n");
        let pairs = [("SSL_CERT_FILE", ca.to_str().unwrap()), ("https_proxy", "http://127.0.0.1:3128")];
        let network = read_with(&pairs, root.path(), folder.path());
        let value = |name: &str| network.value(name);
        assert_eq!(value("PIP_INDEX_URL").as_deref(), Some("http://strong/simple"));
        assert_eq!(value("UV_DEFAULT_INDEX").as_deref(), Some("http://strong/simple"));
        assert_eq!(value("PIP_EXTRA_INDEX_URL").as_deref(), Some("http://a http://b"));
        assert_eq!(value("PIP_DEFAULT_TIMEOUT"), None);
        assert_eq!(value("REQUESTS_CA_BUNDLE").as_deref(), Some("/__evoke/host/ca.crt"));
        assert_eq!(network.notes().len(), 1);
        let apt = std::fs::read_to_string(folder.path().join("apt.conf")).unwrap();
        assert!(apt.contains("http://p:1") && apt.contains("CAInfo") && !apt.contains("Other"));
        assert_eq!(std::fs::read_to_string(folder.path().join("ca.crt")).unwrap(), "certificate");
    }

    #[test]
    fn a_company_authority_of_the_system_is_passed_on() {
        let (root, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for folder in ["usr/local/share/ca-certificates", "etc/ssl/certs"] {
            std::fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        std::fs::write(root.path().join("etc/ssl/certs/ca-certificates.crt"), "all").unwrap();
        assert!(read_with(&[], root.path(), folder.path()).bind().is_none());
        std::fs::write(root.path().join("usr/local/share/ca-certificates/x.crt"), "own").unwrap();
        assert!(read_with(&[], root.path(), folder.path()).bind().is_some());
    }
}
