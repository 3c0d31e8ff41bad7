//! Which web function a request is for, by the host that it names.

use evoke_proto::web::{WebAddress, WebEndpoint};
use http::{HeaderMap, Request, Uri, header};
use std::net::IpAddr;

use super::WebIngress;

impl WebIngress {
    /// The web function that a request on another listener is for: by its host, where that is a web
    /// function's, or by the port that the host names, where it is not `own_port`. None: the request is for
    /// whoever the listener is for.
    pub(crate) fn route<B>(&self, request: &Request<B>, own_port: Option<u16>) -> Option<WebEndpoint> {
        let (host, port) = split(authority(request.uri(), request.headers())?)?;
        self.by_name(host).or_else(|| {
            let port = port.filter(|port| Some(*port) != own_port)?;
            self.inner.apps.endpoint(&WebAddress::Port(port))
        })
    }

    /// The web function that a request on a listener for web functions is for: by its host, else the one at
    /// `default`.
    pub(super) fn route_or<B>(&self, request: &Request<B>, default: &WebAddress) -> Option<WebEndpoint> {
        let named = authority(request.uri(), request.headers()).and_then(split);
        named.and_then(|(host, _)| self.by_name(host)).or_else(|| self.inner.apps.endpoint(default))
    }

    fn by_name(&self, host: &str) -> Option<WebEndpoint> {
        if is_machine(host) {
            return None;
        }
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        self.inner.apps.endpoint(&WebAddress::Host(host))
    }
}

/// The host, with or without a port, that a request names.
fn authority<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Option<&'a str> {
    match uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => headers.get(header::HOST)?.to_str().ok(),
    }
}

/// The two parts of an authority.
fn split(authority: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match authority.rsplit_once(':') {
        // Within brackets it is part of an address.
        Some((host, port)) if !port.ends_with(']') => (host, Some(port.parse().ok()?)),
        _ => (authority, None),
    };
    (!host.is_empty()).then_some((host, port))
}

/// Whether a host means a machine and no name of a web function.
fn is_machine(host: &str) -> bool {
    let address = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_are_a_host_and_maybe_a_port() {
        let cases = [
            ("localhost:81", Some(("localhost", Some(81)))),
            ("a--b.localhost", Some(("a--b.localhost", None))),
            ("[::1]:81", Some(("[::1]", Some(81)))),
            ("[::1]", Some(("[::1]", None))),
            (":81", None),
            ("a:", None),
            ("a:99999", None),
            ("a:-1", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(split(text), expected, "{text}");
        }
    }

    #[test]
    fn addresses_are_machines_and_names_are_not() {
        for (host, machine) in [
            ("127.0.0.1", true),
            ("[::1]", true),
            ("LocalHost", true),
            ("a.localhost", false),
            ("example.com", false),
        ] {
            assert_eq!(is_machine(host), machine, "{host}");
        }
    }
}
