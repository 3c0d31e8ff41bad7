//! Which proxy a request goes through, as the host's environment says.

use super::{FetchError, redact_url, url::split_url};
use crate::HostEnv;

/// The proxies for the two schemes and the hosts reached directly.
#[derive(Debug, Clone, Default)]
pub(super) struct Proxies {
    pub http: Option<ureq::Proxy>,
    pub https: Option<ureq::Proxy>,
    direct: Vec<String>,
}

impl Proxies {
    /// Reads `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` in either case; lower case wins, as
    /// with curl.
    pub fn from_host(host: &HostEnv) -> Result<Self, FetchError> {
        let direct = host
            .first(&["no_proxy", "NO_PROXY"])
            .unwrap_or_default()
            .split([',', ' '])
            .map(|entry| entry.trim().trim_start_matches("*.").trim_start_matches('.').to_ascii_lowercase())
            .filter(|entry| !entry.is_empty())
            .collect();
        Ok(Self {
            // A TLS connection to the proxy itself is only made for tunnels.
            http: proxy_of(host, &["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])?,
            https: proxy_of(host, &["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"])?,
            direct,
        })
    }

    /// Whether `url` is reached without a proxy: its host is, or lies below, an entry of `NO_PROXY`.
    pub fn is_direct(&self, url: &str) -> bool {
        let Some(parts) = split_url(url) else { return false };
        let host = parts.host.to_ascii_lowercase();
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
            _ => host.as_str(),
        };
        self.direct.iter().any(|entry| {
            entry == "*"
                || entry == name
                || *entry == host
                || name.strip_suffix(entry.as_str()).is_some_and(|rest| rest.ends_with('.'))
        })
    }
}

fn proxy_of(host: &HostEnv, names: &'static [&'static str]) -> Result<Option<ureq::Proxy>, FetchError> {
    let Some((variable, address)) = names.iter().find_map(|name| Some((*name, host.get(name)?))) else {
        return Ok(None);
    };
    let address = address.trim();
    let full = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
    ureq::Proxy::new(&full).map(Some).map_err(|e| FetchError::Proxy {
        variable,
        proxy: redact_url(&full),
        reason: e.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_proxy_matches_hosts_and_domains() {
        let host = HostEnv::of_pairs([
            ("HTTPS_PROXY", "http://u:p@proxy.test:3128"),
            ("http_proxy", "proxy.test:3129"),
            ("NO_PROXY", "localhost, .corp.test,*.lan,10.0.0.1,special.test:8080"),
        ]);
        let proxies = Proxies::from_host(&host).unwrap();
        assert_eq!(proxies.https.as_ref().unwrap().port(), 3128);
        assert_eq!(proxies.http.as_ref().unwrap().port(), 3129);
        let cases = [
            ("https://localhost:1/x", true),
            ("https://a.corp.test/", true),
            ("https://corp.test/", true),
            ("https://notcorp.test/", false),
            ("http://x.lan", true),
            ("http://10.0.0.1:80/", true),
            ("http://special.test:8080/", true),
            ("http://special.test:8081/", false),
            ("https://pypi.org/simple", false),
        ];
        for (url, wanted) in cases {
            assert_eq!(proxies.is_direct(url), wanted, "{url}");
        }
    }

    #[test]
    fn a_bad_proxy_is_named() {
        let host = HostEnv::of_pairs([("HTTPS_PROXY", "gopher://u:p@x:1")]);
        let error = Proxies::from_host(&host).unwrap_err().to_string();
        assert!(error.contains("HTTPS_PROXY"), "{error}");
    }
}
