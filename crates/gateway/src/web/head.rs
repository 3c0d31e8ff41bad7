//! A request's headers: what the application is told of them, and what the gateway says itself.
//!
//! Whoever comes in is on the outside: what it says about who it is (`X-Forwarded-*` and the like) is dropped
//! and what is true is put in its place. Headers under the gateway's own prefix never pass. Names that differ
//! only by an underscore from such a header count as that header, because WSGI cannot tell them apart.

use bytes::Bytes;
use evoke_proto::Peer;
use evoke_proto::web::WebHead;
use http::header::{self, Entry};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version};

use crate::connection::Connection;

/// What headers of ours begin with.
const OWN_PREFIX: &str = "evoke-";
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const PROXY_KEY: HeaderName = HeaderName::from_static("modal-key");
const PROXY_SECRET: HeaderName = HeaderName::from_static("modal-secret");
/// What is said about the way that a request took, which only the gateway knows.
const OF_THE_WAY: [&str; 5] =
    ["forwarded", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-real-ip"];
/// Secrets of the platform; applications have no use for them.
const SECRETS: [&str; 2] = ["modal-secret", "x-modal-token-secret"];
/// What is between two neighbours and not for who is behind them.
const OF_THE_HOP: [&str; 10] = [
    "connection",
    "expect",
    "http2-settings",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// What is wrong with a request's head, with the status that says so.
pub(super) type Refusal = (StatusCode, &'static str);

/// Whether a request may be served at all. `body_bytes_max` is what its body may have.
pub(super) fn screen(parts: &Parts, body_bytes_max: u64) -> Result<(), Refusal> {
    let headers = &parts.headers;
    let hosts = headers.get_all(header::HOST).iter().count();
    if hosts > 1 || (hosts == 0 && parts.version == Version::HTTP_11) {
        return Err((StatusCode::BAD_REQUEST, "A request names its host once.\n"));
    }
    let codings = headers.get_all(header::TRANSFER_ENCODING);
    if codings.iter().any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"chunked")) {
        return Err((StatusCode::NOT_IMPLEMENTED, "The only transfer encoding served is `chunked`.\n"));
    }
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if length.is_some_and(|length: u64| length > body_bytes_max) {
        return Err((StatusCode::PAYLOAD_TOO_LARGE, TOO_LARGE));
    }
    if parts.uri.path().is_empty() {
        return Err((StatusCode::BAD_REQUEST, "A request names a path.\n"));
    }
    Ok(())
}

/// Said to who sends more than is taken.
pub(super) const TOO_LARGE: &str = "The body of a request may have at most 4 GiB.\n";

/// Takes the proxy token out of the headers, whether it is complete or not.
pub(super) fn proxy_token(headers: &mut HeaderMap) -> Option<(String, String)> {
    let text = |value: HeaderValue| value.to_str().ok().map(str::to_owned);
    let secret = headers.remove(PROXY_SECRET).and_then(text);
    let key = headers.remove(PROXY_KEY).and_then(text);
    Some((key?, secret?))
}

/// Makes the headers what the application may see of them.
pub(super) fn clean(parts: &mut Parts, connection: &Connection) {
    let host = match parts.uri.authority() {
        Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
        None => parts.headers.get(header::HOST).cloned(),
    };
    let headers = &mut parts.headers;
    let mut drop: Vec<HeaderName> = headers.keys().filter(|name| is_dropped(name)).cloned().collect();
    drop.extend(named_by_connection(headers));
    for name in drop {
        headers.remove(name);
    }
    join_cookies(headers);
    if let Some(host) = host {
        headers.insert(FORWARDED_HOST, host.clone());
        headers.insert(header::HOST, host);
    }
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
    if let Some(client) = &connection.client {
        headers.insert(FORWARDED_FOR, client.clone());
    }
}

/// The headers that only the neighbour is to see, by its own word.
pub(super) fn named_by_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    let values = headers.get_all(header::CONNECTION).into_iter();
    let names = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let names = names.filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok());
    // `Connection: content-length` must not make a body into another request.
    names.filter(|name| !is_needed(name)).collect()
}

fn is_needed(name: &HeaderName) -> bool {
    [header::HOST, header::CONTENT_LENGTH, header::COOKIE, header::AUTHORIZATION].contains(name)
}

fn is_dropped(name: &HeaderName) -> bool {
    let name = name.as_str();
    let one_of = |names: &[&str]| names.contains(&name);
    if name.contains('_') {
        let dashed = name.replace('_', "-");
        return dashed.starts_with(OWN_PREFIX) || OF_THE_WAY.contains(&&*dashed);
    }
    name.starts_with(OWN_PREFIX) || one_of(&OF_THE_HOP) || one_of(&OF_THE_WAY) || one_of(&SECRETS)
}

/// HTTP/2 may send cookies one by one; applications expect them in one header.
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(header::COOKIE).iter().nth(1).is_none() {
        return;
    }
    if let Entry::Occupied(cookies) = headers.entry(header::COOKIE) {
        let all: Vec<_> = cookies.iter().map(|value| value.as_bytes().to_vec()).collect();
        let (name, _) = cookies.remove_entry();
        // Joined from values that were valid, by what is valid.
        if let Ok(joined) = HeaderValue::from_maybe_shared(Bytes::from(all.join(&b"; "[..]))) {
            headers.insert(name, joined);
        }
    }
}

/// The head of a request whose headers are clean.
pub(super) fn web_head(parts: &Parts, connection: &Connection, websocket: Option<Vec<String>>) -> WebHead {
    let headers = parts.headers.iter();
    let copy = Bytes::copy_from_slice;
    let headers = headers.map(|(name, value)| (copy(name.as_str().as_bytes()), copy(value.as_bytes())));
    WebHead {
        method: if websocket.is_some() { "GET".to_owned() } else { parts.method.as_str().to_owned() },
        scheme: if websocket.is_some() { "ws" } else { "http" }.to_owned(),
        raw_path: parts.uri.path().to_owned(),
        query: parts.uri.query().map(|query| Bytes::copy_from_slice(query.as_bytes())).unwrap_or_default(),
        headers: headers.collect(),
        http_version: match parts.version {
            Version::HTTP_2 => "2",
            Version::HTTP_10 => "1.0",
            _ => "1.1",
        }
        .to_owned(),
        client: match connection.peer {
            Peer::Net(address) => Some(address),
            Peer::Unix | Peer::Local => None,
        },
        websocket,
    }
}

/// Whether a header of an application's answer is only for its neighbour.
pub(super) fn is_of_the_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection" | "keep-alive" | "proxy-connection" | "te" | "transfer-encoding" | "upgrade"
    )
}
