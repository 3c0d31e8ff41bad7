//! How a request becomes a WebSocket: by an upgrade of HTTP/1.1, or by the extended CONNECT of HTTP/2
//! (RFC 8441). It is accepted only when the application accepts it.

use evoke_proto::web::{Begun, FromApp, ToApp, WebEndpoint, WebExchange};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Version, header};
use hyper::ext::Protocol;
use hyper::upgrade::OnUpgrade;
use std::sync::Arc;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::direct::Upgrade;
use super::exchange::{Said, ended, garbage, refused};
use super::reply::{self, WebBody};
use super::socket::Socket;
use super::{WebIngress, head};
use crate::connection::{AnswerBody, Connection};
use crate::routes::text;

/// The one version of the protocol.
const VERSION: HeaderValue = HeaderValue::from_static("13");

/// What a client that opens a WebSocket said, as far as the answer needs it.
pub(super) struct Opening {
    /// Proves that the answer is to this question; none over HTTP/2, which needs no proof.
    key: Option<HeaderValue>,
    protocols: Vec<String>,
}

/// Whether a request opens a WebSocket, or what is wrong with how it tries to.
pub(super) fn opening(parts: &Parts) -> Result<Option<Opening>, Box<Said>> {
    let headers = &parts.headers;
    let extended =
        parts.extensions.get::<Protocol>().is_some_and(|protocol| protocol.as_str() == "websocket");
    let by_connect = parts.version == Version::HTTP_2 && parts.method == Method::CONNECT && extended;
    let by_upgrade = parts.version == Version::HTTP_11
        && has_token(headers, &header::CONNECTION, "upgrade")
        && has_token(headers, &header::UPGRADE, "websocket");
    if !by_connect && !by_upgrade {
        return Ok(None);
    }
    if headers.get(header::SEC_WEBSOCKET_VERSION) != Some(&VERSION) {
        let mut said = text(StatusCode::UPGRADE_REQUIRED, "The version of WebSockets served is 13.\n");
        said.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, VERSION);
        return Err(said.into());
    }
    let key = headers.get(header::SEC_WEBSOCKET_KEY).filter(|_| by_upgrade);
    if by_upgrade && (parts.method != Method::GET || !key.is_some_and(is_key)) {
        let why = "A WebSocket is opened by a GET with a `Sec-WebSocket-Key` of 16 bytes.\n";
        return Err(text(StatusCode::BAD_REQUEST, why).into());
    }
    let protocols = tokens(headers, &header::SEC_WEBSOCKET_PROTOCOL).map(str::to_owned).collect();
    Ok(Some(Opening { key: key.cloned(), protocols }))
}

/// What a request asks its connection to become, if it does.
pub(super) fn upgrade(parts: &mut Parts) -> Option<Upgrade> {
    let client = parts.extensions.remove::<OnUpgrade>()?;
    if parts.method == Method::CONNECT {
        return Some(Upgrade { protocol: None, client });
    }
    let asked = has_token(&parts.headers, &header::CONNECTION, "upgrade");
    // Who comes by HTTP/1 and would have HTTP/2 is served by HTTP/1.
    let protocol = parts.headers.get(header::UPGRADE).filter(|name| asked && *name != "h2c")?;
    Some(Upgrade { protocol: Some(protocol.clone()), client })
}

/// 16 bytes in base64.
fn is_key(key: &HeaderValue) -> bool {
    let key = key.as_bytes();
    let sign = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    key.len() == 24 && key.ends_with(b"==") && key[..22].iter().all(sign)
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

fn has_token(headers: &HeaderMap, name: &HeaderName, wanted: &str) -> bool {
    tokens(headers, name).any(|token| token.eq_ignore_ascii_case(wanted))
}

impl WebIngress {
    /// Answers a request that opens a WebSocket and whose headers are clean.
    pub(super) async fn open(
        &self,
        endpoint: &WebEndpoint,
        connection: &Arc<Connection>,
        parts: Parts,
        opening: Opening,
        upgrade: Upgrade,
    ) -> Result<Response<AnswerBody>, Box<Said>> {
        let head = head::web_head(&parts, connection, Some(opening.protocols.clone()));
        let begun = self.inner.apps.begin(endpoint, head).await.map_err(|error| refused(&error))?;
        let mut exchange = match begun {
            Begun::Messages(exchange) => exchange,
            Begun::Direct(direct) => return self.tunnel(connection, parts, direct, upgrade).await,
        };
        // An error means that the application is gone, which its other channel says too.
        let _ = exchange.to_app.send(ToApp::Connect).await;
        let call = exchange.call;
        match exchange.from_app.recv().await {
            Some(FromApp::Accept { subprotocol, headers }) => {
                let answer = accepted(&opening, subprotocol, headers).map_err(|why| garbage(call, &why))?;
                let socket = self.clone().talk(exchange, connection.clone(), upgrade.client);
                tokio::spawn(socket);
                Ok(answer.map(AnswerBody::Web))
            }
            Some(FromApp::Close(..)) => {
                Err(text(StatusCode::FORBIDDEN, "The application refused the WebSocket.\n").into())
            }
            // It answers with a page instead.
            Some(FromApp::Start { status, headers, trailers }) => {
                let begun = reply::begin(exchange, None, &Method::GET, (status, headers, trailers));
                let response = begun.map_err(|why| garbage(call, &why))?;
                Ok(response.map(AnswerBody::Web))
            }
            Some(FromApp::Ended(end)) => Err(ended(call, &end).into()),
            Some(other) => Err(garbage(call, &reply::out_of_place(&other)).into()),
            None => Err(ended(call, &reply::unknown_end()).into()),
        }
    }

    async fn talk(self, exchange: WebExchange, connection: Arc<Connection>, upgrade: OnUpgrade) {
        match upgrade.await {
            Ok(upgraded) => {
                let socket = Socket::over(upgraded, exchange, self.inner.limits.write_stall).await;
                socket.run(&connection).await;
            }
            Err(error) => {
                tracing::debug!(call = %exchange.call, %error, "the client of a WebSocket went away");
                // An error means that the application is gone too.
                let _ = exchange.to_app.try_send(ToApp::Disconnect(Some(super::socket::ABNORMAL)));
            }
        }
    }
}

fn accepted(
    opening: &Opening,
    subprotocol: Option<String>,
    given: Vec<(bytes::Bytes, bytes::Bytes)>,
) -> Result<Response<WebBody>, String> {
    let mut response = Response::new(WebBody::Empty);
    let mut headers = reply::headers(given)?;
    for name in [header::CONTENT_LENGTH, header::SEC_WEBSOCKET_EXTENSIONS] {
        headers.remove(name);
    }
    if let Some(protocol) = subprotocol {
        let value = HeaderValue::from_str(&protocol)
            .map_err(|_| format!("chose the protocol {protocol:?}, which is no header's value"))?;
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, value);
    }
    if let Some(key) = &opening.key {
        let accept = derive_accept_key(key.as_bytes());
        // Base64 is always a header's value.
        if let Ok(accept) = HeaderValue::from_str(&accept) {
            headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        }
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    }
    *response.headers_mut() = headers;
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    #[test]
    fn only_whole_questions_open_a_socket() {
        let good = [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "WebSocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-protocol", "a, b"),
        ];
        let status = |changed: Option<(&str, &str)>, method: &str| {
            let mut request = Request::builder().method(method).uri("/");
            for (name, value) in good {
                let value = changed.filter(|(other, _)| *other == name).map_or(value, |(_, value)| value);
                request = request.header(name, value);
            }
            match opening(&request.body(()).unwrap().into_parts().0) {
                Ok(Some(opening)) => {
                    assert_eq!(opening.protocols, ["a", "b"]);
                    101
                }
                Ok(None) => 0,
                Err(said) => said.status().as_u16(),
            }
        };
        assert_eq!(status(None, "GET"), 101);
        assert_eq!(status(None, "POST"), 400);
        for (name, value, expected) in [
            ("connection", "keep-alive", 0),
            ("upgrade", "h2c", 0),
            ("sec-websocket-version", "8", 426),
            ("sec-websocket-key", "short", 400),
        ] {
            assert_eq!(status(Some((name, value)), "GET"), expected, "{name}");
        }
    }
}
