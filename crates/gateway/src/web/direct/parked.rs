//! A direct answer that takes too long, as an exchange of messages that waits for its client to come back.

use bytes::Bytes;
use evoke_core::CallId;
use evoke_proto::web::{FromApp, WebEnd, WebExchange};
use tokio::sync::mpsc;

use super::Awaited;
use super::body::DirectBody;
use crate::web::direct::{Pool, of_the_answer, timed_out};

/// Messages that wait for the client.
const MESSAGES_WAITING_MAX: usize = 4;

/// The exchange that a request becomes. It goes on by a task of its own.
pub(super) fn exchange(call: CallId, awaited: Awaited) -> WebExchange {
    // Nothing more is sent to the server by messages: its request is complete.
    let (to_app, _) = mpsc::channel(1);
    let (send, from_app) = mpsc::channel(MESSAGES_WAITING_MAX);
    tokio::spawn(async move {
        tokio::select! {
            end = relay(awaited, &send) => {
                // Nobody waits for it any more where this fails.
                let _ = send.send(FromApp::Ended(end)).await;
            }
            // Nobody came back, or who did went away.
            () = send.closed() => {}
        }
    });
    WebExchange { call, to_app, from_app }
}

async fn relay(mut awaited: Awaited, send: &mpsc::Sender<FromApp>) -> WebEnd {
    let answer = match awaited.answer().await {
        None => {
            awaited.slot.ended(timed_out());
            return timed_out();
        }
        Some(Ok(answer)) => answer,
        Some(Err(unanswered)) => {
            let why = format!("its server gave no answer: {}", unanswered.error);
            awaited.slot.ended(WebEnd::Failed(why.clone()));
            return WebEnd::Failed(why);
        }
    };
    let (mut parts, body) = answer.into_parts();
    of_the_answer(&mut parts.headers);
    let copy = Bytes::copy_from_slice;
    let headers = parts.headers.iter();
    let headers =
        headers.map(|(name, value)| (copy(name.as_str().as_bytes()), copy(value.as_bytes()))).collect();
    let start = FromApp::Start { status: parts.status.as_u16(), headers, trailers: false };
    let Awaited { target, slot, line, time, .. } = awaited;
    // Whoever drops the receiving end ends this, so that what fails to be sent needs no look.
    let _ = send.send(start).await;
    let mut body = DirectBody::new(body, line, Pool::default(), target, slot, time);
    while let Some(frame) = std::future::poll_fn(|cx| body.poll(cx)).await {
        match frame {
            Ok(frame) => {
                if let Ok(bytes) = frame.into_data() {
                    let _ = send.send(FromApp::Body(bytes, true)).await;
                }
            }
            Err(error) => return WebEnd::Failed(error.message),
        }
    }
    let _ = send.send(FromApp::Body(Bytes::new(), false)).await;
    WebEnd::Done
}
