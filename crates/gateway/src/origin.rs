//! The address by which a caller reached this server, for the URLs that it is given.

use http::{Request, header};
use std::sync::Arc;

/// Longest host and port believed, in bytes.
const AUTHORITY_LEN_MAX: usize = 260;

/// The base address of the URLs for whoever sent `request`: the host that the request names, else (and where
/// that could not be an address) the listener's.
pub(crate) fn of<B>(request: &Request<B>, listener: &Arc<str>) -> Arc<str> {
    let authority = match request.uri().authority() {
        Some(authority) => Some(authority.as_str()),
        None => request.headers().get(header::HOST).and_then(|host| host.to_str().ok()),
    };
    match authority.filter(|text| is_authority(text)) {
        Some(authority) => format!("http://{authority}").into(),
        None => listener.clone(),
    }
}

/// Whether `text` is a host, with or without a port. What else a request may name (credentials, markup) must
/// not come back in an address.
fn is_authority(text: &str) -> bool {
    let host = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => {
            if port.is_empty() || port.len() > 5 || !port.bytes().all(|b| b.is_ascii_digit()) {
                return false;
            }
            host
        }
        _ => text,
    };
    let name = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(inside) => return inside.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host,
    };
    let fits = !name.is_empty() && text.len() <= AUTHORITY_LEN_MAX;
    fits && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn believes_hosts_and_nothing_else() {
        let listener: Arc<str> = "http://127.0.0.1:1".into();
        let cases = [
            ("localhost:8100", "http://localhost:8100"),
            ("evoke.example.com", "http://evoke.example.com"),
            ("10.0.0.1:80", "http://10.0.0.1:80"),
            ("[::1]:8100", "http://[::1]:8100"),
            ("[::1]", "http://[::1]"),
            ("user@host", "http://127.0.0.1:1"),
            ("host:", "http://127.0.0.1:1"),
            ("host:x", "http://127.0.0.1:1"),
            ("a b", "http://127.0.0.1:1"),
            ("<b>", "http://127.0.0.1:1"),
            ("[x]", "http://127.0.0.1:1"),
            ("", "http://127.0.0.1:1"),
        ];
        for (host, expected) in cases {
            let request = Request::builder().uri("/x").header("host", host).body(()).unwrap();
            assert_eq!(&*of(&request, &listener), expected, "{host}");
        }
        let request = Request::builder().uri("http://over.h2:7/x").body(()).unwrap();
        assert_eq!(&*of(&request, &listener), "http://over.h2:7");
    }
}
