//! A request that makes its connection something else than HTTP, a WebSocket above all: the server is asked by a
//! connection of its own, and when it agrees, bytes pass both ways as they come.

use evoke_proto::web::{DirectTarget, WebDirect, WebEnd};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use std::sync::Arc;
use tokio::io::copy_bidirectional_with_sizes;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;

use super::body::{Sent, Slot};
use super::line::{Wire, builder};
use super::{Time, named, of_the_answer, request, timed_out, unreachable};
use crate::connection::{AnswerBody, Connection, stopped};
use crate::routes::text;
use crate::web::exchange::{Said, ended};
use crate::web::{WebBody, WebIngress};

/// Room for what is on its way, in bytes and each way; every idle tunnel has it.
const COPY_BYTES: usize = 4 << 10;

/// What a request asked its connection to become, kept from its headers of the hop.
pub(in crate::web) struct Upgrade {
    /// The protocol; none where HTTP/2 asked for a WebSocket.
    pub(in crate::web) protocol: Option<HeaderValue>,
    /// The client's side.
    pub(in crate::web) client: OnUpgrade,
}

impl WebIngress {
    /// Asks the server to upgrade; its answer is the client's.
    pub(in crate::web) async fn tunnel(
        &self,
        connection: &Arc<Connection>,
        mut parts: Parts,
        direct: WebDirect,
        upgrade: Upgrade,
    ) -> Result<Response<AnswerBody>, Box<Said>> {
        let WebDirect { call, target, timeout, headers, slot } = direct;
        let mut slot = Slot::new(slot);
        let over_http2 = upgrade.protocol.is_none();
        let protocol = upgrade.protocol.unwrap_or(HeaderValue::from_static("websocket"));
        if over_http2 {
            parts.method = Method::GET;
            // Base64 is always a header's value.
            if let Ok(key) = HeaderValue::try_from(generate_key()) {
                parts.headers.insert(header::SEC_WEBSOCKET_KEY, key);
            }
        }
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(header::UPGRADE, protocol);
        let mut time = Time::of(timeout);
        let asked = tokio::select! {
            asked = ask(&target, parts, headers) => asked,
            () = time.over() => {
                slot.ended(timed_out());
                return Err(text(StatusCode::GATEWAY_TIMEOUT, "There was no answer in time.\n").into());
            }
        };
        let asked = asked.map_err(|error| unreachable(call, &mut slot, &error))?;
        let mut answer = match asked {
            Ok(answer) => answer,
            Err(error) => {
                let end = WebEnd::Failed(format!("its server gave no answer: {error}"));
                let failed = call.map(|call| ended(call, &end));
                slot.ended(end);
                if let Some(failed) = failed {
                    return Err(failed.into());
                }
                let said = format!("The application's server gave no answer{}.\n", named(call));
                return Err(text(StatusCode::BAD_GATEWAY, said).into());
            }
        };
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Ok(refused(answer, slot).map(AnswerBody::Web));
        }
        let server = hyper::upgrade::on(&mut answer);
        tokio::spawn(join(upgrade.client, server, slot, time, connection.clone()));
        let (mut answered, _) = answer.into_parts();
        if over_http2 {
            of_the_answer(&mut answered.headers);
            answered.headers.remove(header::SEC_WEBSOCKET_ACCEPT);
            answered.status = StatusCode::OK;
        }
        answered.headers.remove(header::CONTENT_LENGTH);
        Ok(Response::from_parts(answered, WebBody::Empty).map(AnswerBody::Web))
    }
}

type Asked = Result<Response<Incoming>, hyper::Error>;

async fn ask(
    target: &DirectTarget,
    parts: Parts,
    headers: Vec<(&'static str, String)>,
) -> std::io::Result<Asked> {
    let io = TokioIo::new(Wire::to(target).await?);
    let (mut sender, line) = builder().handshake(io).await.map_err(std::io::Error::other)?;
    // It ends when the connection becomes something else, or with the answer's body.
    tokio::spawn(async move {
        if let Err(error) = line.with_upgrades().await {
            tracing::debug!(%error, "the connection to an application's server ended early");
        }
    });
    Ok(sender.send_request(request(parts, Sent::Nothing, headers)).await)
}

/// The server answers by HTTP after all.
fn refused(answer: Response<Incoming>, slot: Slot) -> Response<WebBody> {
    let (mut parts, body) = answer.into_parts();
    of_the_answer(&mut parts.headers);
    parts.headers.remove(HeaderName::from_static("sec-websocket-accept"));
    Response::from_parts(parts, WebBody::Refusal(Box::new((body, slot))))
}

async fn join(
    client: OnUpgrade,
    server: OnUpgrade,
    mut slot: Slot,
    mut time: Time,
    connection: Arc<Connection>,
) {
    let (client, server) = match tokio::try_join!(client, server) {
        Ok(both) => both,
        Err(error) => return tracing::debug!(%error, "an upgrade was broken off"),
    };
    let mut stop = connection.stop.clone();
    tokio::select! {
        () = copy(client, server) => slot.ended(WebEnd::Done),
        () = time.over() => slot.ended(timed_out()),
        () = stopped(&mut stop) => {}
    }
}

async fn copy(client: Upgraded, server: Upgraded) {
    let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
    let copied = copy_bidirectional_with_sizes(&mut client, &mut server, COPY_BYTES, COPY_BYTES).await;
    if let Err(error) = copied {
        tracing::debug!(%error, "a tunnel broke off");
    }
}
