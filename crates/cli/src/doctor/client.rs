//! The person's side: the interpreter, its client package, and the package index.

use super::Check;
use crate::interpreter::{CLIENT_VERSION, Client, Interpreter};
use evoke_files::HostEnv;
use evoke_files::fetch::Fetcher;

/// The index that pip uses where nothing else is configured.
const INDEX_DEFAULT: &str = "https://pypi.org/simple";
/// A small page of the index, which the client bundles need anyway.
const INDEX_PAGE: &str = "synchronicity/";
/// Bytes of that page at most.
const PAGE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// All checks of this file.
pub(super) fn checks() -> Vec<Check> {
    vec![interpreter(), index(&HostEnv::of_this_process())]
}

fn interpreter() -> Check {
    let found = std::env::current_dir().map_err(Into::into).and_then(|folder| Interpreter::find(&folder));
    let judged = found.and_then(|python| Ok((python.client()?, python)));
    match judged {
        Ok((client, python)) => {
            let name = format!("{} ({}.{})", python.executable.display(), python.major, python.minor);
            match client {
                Client::Own => {
                    let version = python.client.unwrap_or_default();
                    Check::ok("python client", format!("{name} with modal {version}"))
                }
                Client::Bundle => {
                    Check::ok("python client", format!("{name}; Evoke's own client {CLIENT_VERSION} is used"))
                }
                Client::BundleInsteadOf(version) => Check::warn(
                    "python client",
                    format!(
                        "{name} with modal {version}; Evoke's own client {CLIENT_VERSION} is used instead"
                    ),
                    format!("{} -m pip install modal=={CLIENT_VERSION}", python.executable.display()),
                ),
            }
        }
        Err(error) => {
            let mend = error
                .chain()
                .find_map(|e| e.downcast_ref::<evoke_core::Error>()?.hint.clone())
                .unwrap_or_else(|| "activate an environment with Python 3.10 to 3.15".to_owned());
            Check::fail("python client", error.to_string().lines().next().unwrap_or_default(), mend)
        }
    }
}

/// Warns only: images that are built already run without it.
fn index(host: &HostEnv) -> Check {
    let base = host.first(&["PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL"]).unwrap_or(INDEX_DEFAULT);
    let url = format!("{}/{INDEX_PAGE}", base.trim_end_matches('/'));
    let shown = evoke_files::fetch::redact_url(base);
    let asked = Fetcher::from_host(host).and_then(|fetcher| fetcher.get_bytes(&url, &[], PAGE_BYTES_MAX));
    match asked {
        Ok(_) => Check::ok("package index", format!("{shown} answers")),
        Err(error) => Check::warn(
            "package index",
            format!("{shown}: {error}"),
            "new images with Python packages cannot be built; set PIP_INDEX_URL or a proxy (HTTPS_PROXY) and \
             restart the server",
        ),
    }
}
