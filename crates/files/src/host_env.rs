//! What the host's configuration says, read once: environment variables and the home folder. The only
//! place of this crate that looks at the process environment; everything else takes a [`HostEnv`], so that
//! tests (and a server that dropped its user) can hand in another one.

use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf};

/// The variables that this crate reads. Others are not kept, so that no secret is passed on by chance.
const VARIABLES: &[&str] = &[
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "ALL_PROXY",
    "all_proxy",
    "NO_PROXY",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
    "PIP_CONFIG_FILE",
    "UV_DEFAULT_INDEX",
    "UV_INDEX_URL",
    "UV_EXTRA_INDEX_URL",
    "VIRTUAL_ENV",
    "XDG_CONFIG_HOME",
    "XDG_CONFIG_DIRS",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_ECR",
    "EVOKE_MODAL_WHEEL",
    "HOME",
];

/// A snapshot of the host's configuration. Serialisable, so that a process which can read the person's
/// files takes it and hands it to one that can't.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostEnv {
    variables: BTreeMap<String, String>,
}

impl HostEnv {
    /// What the environment of this process says.
    pub fn of_this_process() -> Self {
        let variables = VARIABLES
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?)))
            .collect();
        Self { variables }
    }

    /// A made-up environment; unknown variables are kept too.
    pub fn of_pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        Self { variables: pairs.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect() }
    }

    /// The variable's value, where it is set and not empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.trim().is_empty())
    }

    /// The first of `names` that is set and not empty.
    pub fn first(&self, names: &[&str]) -> Option<&str> {
        names.iter().find_map(|name| self.get(name))
    }

    /// The variable as a path.
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        self.get(name).map(PathBuf::from)
    }
}
