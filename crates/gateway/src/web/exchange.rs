//! The life of a request: who may, its beginning, the wait for its answer, being sent away to ask again.

use evoke_core::{CallId, Error, ErrorCode};
use evoke_proto::web::{Begun, FromApp, WebEnd, WebEndpoint, WebExchange};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body::Body;
use hyper::body::Incoming;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;

use super::direct::{Passed, Upgrade};
use super::handshake::Opening;
use super::upload::{Upload, Uploaded};
use super::waiting::{State, Visit};
use super::{WebIngress, handshake, head, reply, upload};
use crate::connection::{AnswerBody, Connection};
use crate::routes::{HttpBody, status_of, text};

/// By what a request that asks again says which one it is.
const CALL_PARAMETER: &str = "__modal_function_call_id";
/// How long a client should wait before it asks again where there is no room, in seconds.
const RETRY_AFTER_S: &str = "1";

/// Containers that are tried for one request, where nothing could be sent to the ones before.
const CONTAINERS_TRIED_MAX: u32 = 5;

/// An answer of the gateway itself.
pub(super) type Said = Response<HttpBody>;

impl WebIngress {
    /// Answers a request for a web function.
    pub(crate) async fn answer(
        &self,
        endpoint: WebEndpoint,
        connection: &Arc<Connection>,
        request: Request<Incoming>,
    ) -> Response<AnswerBody> {
        let (parts, body) = request.into_parts();
        // Who asked whether to send the body hears from the answer that it is not wanted.
        let asks = parts.headers.contains_key(header::EXPECT);
        let answered = match self.begin(&endpoint, connection, parts).await {
            Ok((became, parts, place)) => self.go_on(endpoint, connection, became, parts, place, body).await,
            Err(said) => {
                if !asks && !body.is_end_stream() {
                    tokio::spawn(upload::swallow(body));
                }
                Err(said)
            }
        };
        answered.unwrap_or_else(|said| (*said).map(AnswerBody::Http))
    }

    /// Everything that does not need the body.
    async fn begin(
        &self,
        endpoint: &WebEndpoint,
        connection: &Arc<Connection>,
        mut parts: Parts,
    ) -> Result<(Became, Parts, Place), Box<Said>> {
        head::screen(&parts, self.inner.limits.body_bytes).map_err(|(status, why)| text(status, why))?;
        self.admit(endpoint, &mut parts).await?;
        let (place, opening) = (Place::of(&parts), handshake::opening(&parts)?);
        let upgrade = handshake::upgrade(&mut parts);
        head::clean(&mut parts, connection);
        if let Some(opening) = opening {
            return Ok((Became::Opening(opening, upgrade), parts, place));
        }
        let asked = place.call().filter(|_| matches!(parts.method, Method::GET | Method::HEAD));
        let became = match asked {
            Some(call) => Became::Resumed(self.resume(endpoint, call)?),
            None => {
                let head = head::web_head(&parts, connection, None);
                let begun = self.inner.apps.begin(endpoint, head).await;
                Became::Begun(begun.map_err(|error| refused(&error))?, upgrade)
            }
        };
        Ok((became, parts, place))
    }

    async fn go_on(
        &self,
        endpoint: WebEndpoint,
        connection: &Arc<Connection>,
        became: Became,
        parts: Parts,
        place: Place,
        body: Incoming,
    ) -> Result<Response<AnswerBody>, Box<Said>> {
        let (mut became, mut parts, mut body, mut tries) = (became, parts, body, 0);
        let (exchange, upload) = loop {
            break match became {
                Became::Opening(opening, Some(upgrade)) => {
                    return self.open(&endpoint, connection, parts, opening, upgrade).await;
                }
                Became::Opening(_, None) => {
                    let why = "This connection cannot become a WebSocket.\n";
                    return Err(text(StatusCode::BAD_REQUEST, why).into());
                }
                Became::Begun(Begun::Direct(direct), Some(upgrade)) => {
                    return self.tunnel(connection, parts, direct, upgrade).await;
                }
                Became::Begun(Begun::Direct(direct), None) => {
                    (parts, body) = match self.pass(&endpoint, &place, parts, body, direct).await {
                        Passed::To(answer) => return answer,
                        Passed::Nowhere(unsent) => *unsent,
                    };
                    tries += 1;
                    if tries >= CONTAINERS_TRIED_MAX {
                        let why = "None of the application's containers can be reached.\n";
                        return Err(text(StatusCode::INTERNAL_SERVER_ERROR, why).into());
                    }
                    let head = head::web_head(&parts, connection, None);
                    let again = self.inner.apps.begin(&endpoint, head).await;
                    became = Became::Begun(again.map_err(|error| refused(&error))?, None);
                    continue;
                }
                Became::Begun(Begun::Messages(exchange), _) => {
                    let limits = &self.inner.limits;
                    let (most, stall) = (limits.body_bytes, limits.body_stall);
                    let watch = connection.watch.clone();
                    let upload = Upload::start(body, &exchange.to_app, most, stall, watch).await;
                    (exchange, upload)
                }
                Became::Resumed(visit) => return self.wait_again(parts.method, place, visit).await,
            };
        };
        self.wait(endpoint, parts.method, place, exchange, upload).await
    }

    async fn admit(&self, endpoint: &WebEndpoint, parts: &mut Parts) -> Result<(), Box<Said>> {
        if !endpoint.requires_proxy_auth {
            return Ok(());
        }
        let admitted = match head::proxy_token(&mut parts.headers) {
            Some((key, secret)) => {
                let admitted = self.inner.apps.admit(endpoint, &key, &secret).await;
                admitted.map_err(|error| refused(&error))?
            }
            None => false,
        };
        if admitted {
            return Ok(());
        }
        let why = "This address is only for who shows a proxy token, by the headers `Modal-Key` and \
            `Modal-Secret`.\n";
        Err(text(StatusCode::UNAUTHORIZED, why).into())
    }

    fn resume(&self, endpoint: &WebEndpoint, call: &str) -> Result<Visit, Box<Said>> {
        let call = call.parse::<CallId>().ok();
        call.and_then(|call| self.inner.waiting.visit(endpoint, call)).ok_or_else(nothing_waits)
    }

    /// Waits for the answer of a request whose client was sent away, for whoever asks for it now.
    async fn wait_again(
        &self,
        method: Method,
        place: Place,
        visit: Visit,
    ) -> Result<Response<AnswerBody>, Box<Said>> {
        let mut deadline = pin!(tokio::time::sleep(self.inner.limits.answer));
        let mut turn = tokio::select! {
            turn = visit.turn() => turn,
            () = &mut deadline => return Err(sent_away(place.to_ask_again(visit.call())).into()),
        };
        let message = match &mut *turn {
            State::Answered(kept) => return Ok(kept.answer()),
            State::Taken => return Err(nothing_waits()),
            // Who leaves meanwhile leaves the request as it is.
            State::Unanswered(exchange) => tokio::select! {
                message = exchange.from_app.recv() => message,
                () = &mut deadline => return Err(sent_away(place.to_ask_again(visit.call())).into()),
            },
        };
        let State::Unanswered(exchange) = std::mem::replace(&mut *turn, State::Taken) else {
            return Err(nothing_waits());
        };
        let answer = answered(message, &method, *exchange, None);
        visit.passing(turn, answer, &method).await
    }

    /// Waits until the application answers, its client must be sent away, or it is clear that there will be
    /// no answer.
    async fn wait(
        &self,
        endpoint: WebEndpoint,
        method: Method,
        place: Place,
        mut exchange: WebExchange,
        mut upload: Option<Upload>,
    ) -> Result<Response<AnswerBody>, Box<Said>> {
        let mut deadline = pin!(tokio::time::sleep(self.inner.limits.answer));
        loop {
            let sending = upload.is_some();
            let uploaded = poll_fn(|cx| match &mut upload {
                Some(upload) => upload.poll(cx),
                None => std::task::Poll::Pending,
            });
            tokio::select! {
                message = exchange.from_app.recv() => {
                    return answered(message, &method, exchange, upload);
                }
                ended = uploaded, if sending => {
                    upload = None;
                    match ended {
                        Uploaded::Whole => {}
                        Uploaded::TooLarge => {
                            return Err(text(StatusCode::PAYLOAD_TOO_LARGE, head::TOO_LARGE).into());
                        }
                        Uploaded::Gone | Uploaded::Stalled => {
                            let why = "The request's body did not come in time.\n";
                            return Err(text(StatusCode::REQUEST_TIMEOUT, why).into());
                        }
                    }
                }
                // A body that still comes is no wait.
                () = &mut deadline, if !sending => {
                    let location = place.to_ask_again(exchange.call);
                    self.inner.waiting.park(&endpoint, exchange);
                    return Err(sent_away(location).into());
                }
            }
        }
    }
}

/// What a request became before its body is looked at.
enum Became {
    /// It opens a WebSocket.
    Opening(Opening, Option<Upgrade>),
    /// It has begun.
    Begun(Begun, Option<Upgrade>),
    /// It goes on waiting for an answer.
    Resumed(Visit),
}

/// What an application's first message makes of a request.
fn answered(
    message: Option<FromApp>,
    method: &Method,
    exchange: WebExchange,
    upload: Option<Upload>,
) -> Result<Response<AnswerBody>, Box<Said>> {
    let call = exchange.call;
    match message {
        Some(FromApp::Start { status, headers, trailers }) => {
            let begun = reply::begin(exchange, upload, method, (status, headers, trailers));
            let response = begun.map_err(|why| garbage(call, &why))?;
            Ok(response.map(AnswerBody::Web))
        }
        message => {
            if let Some(upload) = upload {
                upload.finish();
            }
            Err(match message {
                Some(FromApp::Ended(end)) => ended(call, &end).into(),
                Some(other) => garbage(call, &reply::out_of_place(&other)).into(),
                None => ended(call, &reply::unknown_end()).into(),
            })
        }
    }
}

fn nothing_waits() -> Box<Said> {
    let why =
        "No request waits here under that id: its answer was fetched already, or was not fetched in time.\n";
    text(StatusCode::NOT_FOUND, why).into()
}

/// The answer for an application that broke the rules.
pub(super) fn garbage(call: CallId, why: &str) -> Said {
    reply::warn_of(call, why);
    let said = format!("The application {why} ({call}).\n");
    text(StatusCode::INTERNAL_SERVER_ERROR, said)
}

/// The answer for a request whose application ended without one. Why it did is for those who may read its logs.
pub(super) fn ended(call: CallId, end: &WebEnd) -> Said {
    let (status, what) = match end {
        WebEnd::Done => {
            reply::warn_of(call, "returned without an answer");
            (StatusCode::INTERNAL_SERVER_ERROR, "The application returned without an answer")
        }
        WebEnd::Failed(why) => {
            tracing::debug!(%call, why, "a web function failed before it answered");
            (StatusCode::INTERNAL_SERVER_ERROR, "The application failed before it answered")
        }
        WebEnd::Unreachable(why) => {
            tracing::debug!(%call, why, "a web function cannot be reached");
            (StatusCode::INTERNAL_SERVER_ERROR, "The application failed before it answered")
        }
        WebEnd::TimedOut(_) => (StatusCode::GATEWAY_TIMEOUT, "The application did not answer in its time"),
        WebEnd::Cancelled => (StatusCode::BAD_GATEWAY, "The request was cancelled before it was answered"),
    };
    text(status, format!("{what} ({call}).\n"))
}

/// The answer for a request that could not begin.
pub(super) fn refused(error: &Error) -> Said {
    let status = match error.code {
        // A limit of the function, not of what is stored.
        ErrorCode::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        ErrorCode::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        code => status_of(code),
    };
    if status == StatusCode::INTERNAL_SERVER_ERROR {
        tracing::error!(%error, "a request for a web function could not begin");
    }
    let mut said = text(status, format!("{error}\n"));
    if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
        said.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_S));
    }
    said
}

pub(super) fn sent_away(location: String) -> Said {
    let mut said = text(StatusCode::SEE_OTHER, "The answer takes longer: ask again where this points.\n");
    // Made of what was part of a valid address.
    if let Ok(location) = HeaderValue::from_str(&location) {
        said.headers_mut().insert(header::LOCATION, location);
    }
    said
}

/// Where a request was sent to, as far as it takes to send its client there again.
pub(super) struct Place {
    uri: Uri,
    host: Option<HeaderValue>,
}

impl Place {
    fn of(parts: &Parts) -> Self {
        Self { uri: parts.uri.clone(), host: parts.headers.get(header::HOST).cloned() }
    }

    /// The request that this one asks again for.
    fn call(&self) -> Option<&str> {
        self.parameters().find_map(|parameter| parameter.strip_prefix(CALL_PARAMETER)?.strip_prefix('='))
    }

    fn parameters(&self) -> impl Iterator<Item = &str> {
        self.uri.query().unwrap_or_default().split('&').filter(|parameter| !parameter.is_empty())
    }

    pub(super) fn to_ask_again(&self, call: CallId) -> String {
        let host = self.host.as_ref().and_then(|host| host.to_str().ok());
        let path = self.uri.path();
        // A path alone may begin with two slashes, and then would be a host.
        let base = match self.uri.authority().map(Authority::as_str).or(host) {
            Some(authority) => format!("http://{authority}{path}"),
            None => format!("/{}", path.trim_start_matches('/')),
        };
        let others = self.parameters().filter(|parameter| {
            parameter.split_once('=').map_or(*parameter, |(name, _)| name) != CALL_PARAMETER
        });
        let mut parameters: Vec<&str> = others.collect();
        let own = format!("{CALL_PARAMETER}={call}");
        parameters.push(&own);
        format!("{base}?{}", parameters.join("&"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(target: &str, host: &str) -> Place {
        let request = Request::builder().uri(target).header(header::HOST, host).body(()).unwrap();
        Place::of(&request.into_parts().0)
    }

    #[test]
    fn who_is_sent_away_is_sent_to_the_same_address() {
        let call = CallId::from_bits(7);
        let cases = [
            ("/", "h:1", "http://h:1/?"),
            ("/a?b=c&d", "h:1", "http://h:1/a?b=c&d&"),
            ("//evil.example/x", "h", "http://h//evil.example/x?"),
            ("/a?__modal_function_call_id=fc-1&b=2", "h", "http://h/a?b=2&"),
        ];
        for (target, host, expected) in cases {
            let location = place(target, host).to_ask_again(call);
            assert_eq!(location, format!("{expected}__modal_function_call_id={call}"), "{target}");
            assert_eq!(place(&location, host).call(), Some(call.to_string().as_str()));
        }
        assert_eq!(place("/a?x__modal_function_call_id=fc-1", "h").call(), None);
    }
}
