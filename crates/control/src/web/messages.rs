//! Messages of web requests as they travel to and from containers: `DataChunk`s with ASGI messages inside.

use bytes::Bytes;
use evoke_proto::api::asgi::{self, websocket_receive, websocket_send};
use evoke_proto::web::{FromApp, ToApp};
use evoke_proto::{Code, Status, api};
use prost::Message;

/// The close code that a WebSocket has if the application names none (RFC 6455, normal closure).
const CLOSE_DEFAULT: u32 = 1000;

/// A message to the application as the chunk with this index.
pub(crate) fn chunk(index: u64, message: ToApp, websocket: bool) -> api::DataChunk {
    use asgi::Type;
    let message = match message {
        ToApp::Body(body, more_body) => Type::HttpRequest(asgi::HttpRequest { body, more_body }),
        ToApp::Connect => Type::WebsocketConnect(asgi::WebsocketConnect {}),
        ToApp::Text(text) => received(websocket_receive::Content::Text(text)),
        ToApp::Binary(bytes) => received(websocket_receive::Content::Bytes(bytes)),
        ToApp::Disconnect(code) if websocket => {
            Type::WebsocketDisconnect(asgi::WebsocketDisconnect { code: code.map(u32::from) })
        }
        ToApp::Disconnect(_) => Type::HttpDisconnect(asgi::HttpDisconnect {}),
    };
    let message = api::Asgi { r#type: Some(message) };
    api::DataChunk {
        data_format: api::DataFormat::Asgi as i32,
        index,
        data_oneof: Some(api::data_chunk::DataOneof::Data(message.encode_to_vec().into())),
    }
}

fn received(content: websocket_receive::Content) -> asgi::Type {
    asgi::Type::WebsocketReceive(asgi::WebsocketReceive { content: Some(content) })
}

/// A message of the application.
pub(crate) fn message(data: Bytes) -> Result<FromApp, Status> {
    use asgi::Type;
    let message = api::Asgi::decode(data)
        .map_err(|error| Status::invalid(format!("A message of a web function is malformed: {error}")))?;
    Ok(match message.r#type {
        Some(Type::HttpResponseStart(start)) => FromApp::Start {
            status: u16::try_from(start.status).unwrap_or_default(),
            headers: pairs(start.headers),
            trailers: start.trailers,
        },
        Some(Type::HttpResponseBody(body)) => FromApp::Body(body.body, body.more_body),
        Some(Type::HttpResponseTrailers(trailers)) => {
            FromApp::Trailers(pairs(trailers.headers), trailers.more_trailers)
        }
        Some(Type::WebsocketAccept(accept)) => {
            FromApp::Accept { subprotocol: accept.subprotocol, headers: pairs(accept.headers) }
        }
        Some(Type::WebsocketSend(send)) => match send.content {
            Some(websocket_send::Content::Text(text)) => FromApp::Text(text),
            Some(websocket_send::Content::Bytes(bytes)) => FromApp::Binary(bytes),
            None => FromApp::Text(String::new()),
        },
        Some(Type::WebsocketClose(close)) => {
            let code = close.code.unwrap_or(CLOSE_DEFAULT);
            FromApp::Close(u16::try_from(code).unwrap_or_default(), close.reason)
        }
        other => {
            let text = format!("A web function cannot send this message: {other:?}");
            return Err(Status::new(Code::InvalidArgument, text));
        }
    })
}

/// Headers travel as one list of names and values in turn.
fn pairs(flat: Vec<Bytes>) -> Vec<(Bytes, Bytes)> {
    let mut pairs = Vec::with_capacity(flat.len() / 2);
    let mut flat = flat.into_iter();
    while let (Some(name), Some(value)) = (flat.next(), flat.next()) {
        pairs.push((name, value));
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_app(message: asgi::Type) -> Result<FromApp, Status> {
        super::message(api::Asgi { r#type: Some(message) }.encode_to_vec().into())
    }

    #[test]
    fn unset_fields_have_the_documented_meaning() {
        let close = asgi::WebsocketClose { code: None, reason: "bye".into() };
        assert_eq!(of_app(asgi::Type::WebsocketClose(close)), Ok(FromApp::Close(1000, "bye".into())));
        let odd = [b"a", b"1", b"b"].map(|part| Bytes::from_static(part)).to_vec();
        let start = asgi::HttpResponseStart { status: 204, headers: odd, trailers: false };
        let headers = vec![(Bytes::from_static(b"a"), Bytes::from_static(b"1"))];
        assert_eq!(
            of_app(asgi::Type::HttpResponseStart(start)),
            Ok(FromApp::Start { status: 204, headers, trailers: false })
        );
    }

    #[test]
    fn a_disconnect_is_of_its_kind() {
        let inner = |websocket| {
            let chunk = chunk(1, ToApp::Disconnect(Some(1001)), websocket);
            let Some(api::data_chunk::DataOneof::Data(data)) = chunk.data_oneof else { unreachable!() };
            api::Asgi::decode(data).unwrap().r#type
        };
        assert!(matches!(inner(false), Some(asgi::Type::HttpDisconnect(_))));
        let code = Some(1001);
        assert_eq!(inner(true), Some(asgi::Type::WebsocketDisconnect(asgi::WebsocketDisconnect { code })));
    }

    #[test]
    fn what_only_clients_say_is_refused_from_an_application() {
        assert!(of_app(asgi::Type::WebsocketConnect(asgi::WebsocketConnect {})).is_err());
        assert!(message(Bytes::from_static(b"\xff")).is_err());
    }
}
