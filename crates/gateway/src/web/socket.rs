//! An open WebSocket: messages both ways at the same time, each direction only as fast as its reader.

use evoke_proto::web::{FromApp, ToApp, WebEnd, WebExchange};
use futures::{Sink, Stream};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::reply;
use crate::connection::{Connection, stopped};

/// Largest message of a client, in bytes, as the official documentation of web endpoints has it.
const MESSAGE_BYTES_MAX: usize = 2 << 20;
/// Room for what is read at once, in bytes; it is there for each idle socket.
const READ_BYTES: usize = 4 << 10;
/// Messages are sent at once: nothing is gained by holding them back, and the room for it would stay.
const WRITE_BYTES: usize = 0;
/// How long the closing of a socket may take, in milliseconds.
const CLOSE_MS_MAX: u64 = 5_000;
/// Longest reason that a closing can name, in bytes.
const REASON_LEN_MAX: usize = 123;

/// The code of a connection that ended without being closed.
pub(super) const ABNORMAL: u16 = 1006;
/// The code of a closing that names none.
const NO_CODE: u16 = 1005;

/// An open WebSocket.
pub(super) struct Socket {
    stream: WebSocketStream<TokioIo<Upgraded>>,
    exchange: WebExchange,
    write_stall: Duration,
}

/// How a socket ends.
enum End {
    /// The client is gone or going, by this code.
    Client(u16),
    /// The application closes it.
    Close(u16, String),
    /// We close it, and the application is told.
    Cut(CloseCode, &'static str),
}

impl Socket {
    /// The socket over a connection that was upgraded.
    pub(super) async fn over(upgraded: Upgraded, exchange: WebExchange, write_stall: Duration) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BYTES)
            .write_buffer_size(WRITE_BYTES)
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX));
        let io = TokioIo::new(upgraded);
        let stream = WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await;
        Self { stream, exchange, write_stall }
    }

    /// Serves it to its end.
    pub(super) async fn run(mut self, connection: &Connection) {
        let end = self.relay(connection).await;
        let closing = async {
            match end {
                End::Client(code) => {
                    // An error means that the application is gone too.
                    let _ = self.exchange.to_app.send(ToApp::Disconnect(Some(code))).await;
                    // The answer to the client's closing is on its way.
                    let _ = poll_fn(|cx| Pin::new(&mut self.stream).poll_flush(cx)).await;
                }
                End::Close(code, reason) => self.close(code, reason).await,
                End::Cut(code, reason) => {
                    // An error means that the application takes nothing or is gone; then the end of the
                    // exchange tells it.
                    let _ = self.exchange.to_app.try_send(ToApp::Disconnect(Some(code.into())));
                    self.close(code.into(), reason.to_owned()).await;
                }
            }
        };
        // Who does not answer is not waited for.
        let _ = timeout(Duration::from_millis(CLOSE_MS_MAX), closing).await;
    }

    /// Carries messages until something ends that.
    async fn relay(&mut self, connection: &Connection) -> End {
        let Self { stream, exchange, write_stall } = self;
        let (mut incoming, mut sending) = (None, false);
        let mut stop = connection.stop.clone();
        let mut stalled = pin!(tokio::time::sleep(*write_stall));
        loop {
            tokio::select! {
                event = poll_fn(|cx| poll(stream, &mut sending, incoming.is_none(), cx)) => match event {
                    Event::Sent => {}
                    Event::Message(message) => incoming = Some(message),
                    Event::End(end) => return end,
                },
                permit = exchange.to_app.reserve(), if incoming.is_some() => {
                    let message = incoming.take();
                    // Without a permit the application takes nothing any more; its last message says how it
                    // ended.
                    if let (Ok(permit), Some(message)) = (permit, message) {
                        permit.send(message);
                    }
                }
                message = exchange.from_app.recv(), if !sending => {
                    let message = match message {
                        Some(FromApp::Text(text)) => Message::Text(text.into()),
                        Some(FromApp::Binary(bytes)) => Message::Binary(bytes),
                        last => return ended(exchange, last),
                    };
                    if let Err(error) = Pin::new(&mut *stream).start_send(message) {
                        return broken(&error);
                    }
                    sending = true;
                    stalled.as_mut().reset(Instant::now() + *write_stall);
                }
                () = &mut stalled, if sending => {
                    tracing::debug!(call = %exchange.call, "the client of a WebSocket takes nothing any more");
                    return End::Client(ABNORMAL);
                }
                () = stopped(&mut stop) => {
                    return End::Cut(CloseCode::Restart, "The server restarts.");
                }
            }
        }
    }

    /// Says that it is closed and waits for the client to say so too.
    async fn close(&mut self, code: u16, reason: String) {
        let frame = (code != NO_CODE).then(|| CloseFrame { code: code.into(), reason: cut(reason).into() });
        if self.stream.close(frame).await.is_err() {
            return;
        }
        loop {
            match poll_fn(|cx| Pin::new(&mut self.stream).poll_next(cx)).await {
                Some(Ok(Message::Close(_))) | Some(Err(Error::Io(_))) => return,
                // Whatever was on its way.
                Some(Ok(_)) => {}
                // Out of step, as after a message that was too large (the stream gives nothing after its error): the
                // rest is read by the byte, so that what was sent to the client is not lost with the connection.
                Some(Err(_)) | None => break,
            }
        }
        let mut rest = [0; 1 << 10];
        while self.stream.get_mut().read(&mut rest).await.is_ok_and(|some| some > 0) {}
    }
}

enum Event {
    Sent,
    Message(ToApp),
    End(End),
}

/// Goes on sending what is to be sent, and reads the next message if `read`.
fn poll(
    stream: &mut WebSocketStream<TokioIo<Upgraded>>,
    sending: &mut bool,
    read: bool,
    cx: &mut Context<'_>,
) -> Poll<Event> {
    if *sending {
        match Pin::new(&mut *stream).poll_flush(cx) {
            Poll::Ready(Ok(())) => {
                *sending = false;
                return Poll::Ready(Event::Sent);
            }
            Poll::Ready(Err(error)) => return Poll::Ready(Event::End(broken(&error))),
            Poll::Pending => {}
        }
    }
    if !read {
        return Poll::Pending;
    }
    loop {
        let next = ready!(Pin::new(&mut *stream).poll_next(cx));
        let event = match next {
            Some(Ok(Message::Text(text))) => Event::Message(ToApp::Text(text.as_str().to_owned())),
            Some(Ok(Message::Binary(bytes))) => Event::Message(ToApp::Binary(bytes)),
            Some(Ok(Message::Close(frame))) => {
                Event::End(End::Client(frame.map_or(NO_CODE, |frame| frame.code.into())))
            }
            // Pings are answered as they are read.
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => continue,
            Some(Err(error)) => Event::End(broken(&error)),
            None => Event::End(End::Client(ABNORMAL)),
        };
        return Poll::Ready(event);
    }
}

/// The end that an error of the client makes.
fn broken(error: &Error) -> End {
    let (code, reason) = match error {
        Error::Capacity(_) => (CloseCode::Size, "A message may have at most 2 MiB."),
        Error::Utf8(_) => (CloseCode::Invalid, "A text was not UTF-8."),
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => return End::Client(ABNORMAL),
        Error::Protocol(_) => (CloseCode::Protocol, "A frame broke the rules."),
        _ => return End::Client(ABNORMAL),
    };
    End::Cut(code, reason)
}

/// The end that the application's last message makes.
fn ended(exchange: &WebExchange, last: Option<FromApp>) -> End {
    let call = exchange.call;
    match last {
        Some(FromApp::Close(code, reason)) => {
            if code == NO_CODE || CloseCode::from(code).is_allowed() {
                return End::Close(code, reason);
            }
            reply::warn_of(call, &format!("closed a WebSocket with the code {code}"));
            End::Close(CloseCode::Error.into(), format!("The application failed ({call})."))
        }
        Some(FromApp::Ended(WebEnd::Done)) => End::Close(CloseCode::Normal.into(), String::new()),
        Some(FromApp::Ended(WebEnd::TimedOut(_))) => {
            End::Close(CloseCode::Error.into(), format!("The application's time is over ({call})."))
        }
        Some(FromApp::Ended(WebEnd::Cancelled)) => {
            End::Close(CloseCode::Error.into(), format!("The WebSocket was cancelled ({call})."))
        }
        Some(FromApp::Ended(WebEnd::Failed(_))) | None => {
            End::Close(CloseCode::Error.into(), format!("The application failed ({call})."))
        }
        Some(other) => {
            reply::warn_of(call, &reply::out_of_place(&other));
            End::Close(CloseCode::Error.into(), format!("The application failed ({call})."))
        }
    }
}

/// As much of a reason as fits.
fn cut(mut reason: String) -> String {
    let mut length = reason.len().min(REASON_LEN_MAX);
    while !reason.is_char_boundary(length) {
        length -= 1;
    }
    reason.truncate(length);
    reason
}
