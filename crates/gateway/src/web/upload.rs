//! A request's body on its way to the application, in pieces that are bounded, as fast as the application reads
//! and no faster.

use bytes::{Bytes, BytesMut};
use evoke_proto::web::ToApp;
use http_body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::wire::Watch;

/// Largest piece that is sent at once, in bytes.
const PIECE_BYTES_MAX: usize = 256 << 10;

/// How much of a body that nobody wants is read all the same, in bytes, and how long, in milliseconds: a client that
/// is cut while it still sends may never see the answer.
const SWALLOWED_BYTES_MAX: u64 = 16 << 20;
const SWALLOWED_MS_MAX: u64 = 5_000;

/// How a body's way ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Uploaded {
    /// The application has all of it, or wants no more.
    Whole,
    /// The client went away in the middle.
    Gone,
    /// There was more of it than is taken.
    TooLarge,
    /// The client stopped sending in the middle.
    Stalled,
}

/// A body on its way. It is let go when this is dropped.
#[derive(Debug)]
pub(super) struct Upload {
    task: JoinHandle<Uploaded>,
    /// Tells that the application wants no more of it.
    answered: Option<oneshot::Sender<()>>,
}

impl Upload {
    /// Sends `body` to an application. None where that is done already: there is no body.
    pub(super) async fn start(
        body: Incoming,
        to_app: &mpsc::Sender<ToApp>,
        bytes_max: u64,
        stall: Duration,
        watch: Option<Watch>,
    ) -> Option<Self> {
        if body.is_end_stream() {
            // An error means that the application is gone, which its other channel says too.
            let _ = to_app.send(ToApp::Body(Bytes::new(), false)).await;
            return None;
        }
        // By a task, because the application may answer and not be read while it still reads.
        let (answered, is_answered) = oneshot::channel();
        let to_app = to_app.clone();
        let task = tokio::spawn(async move {
            let mut body = body;
            let ended = tokio::select! {
                ended = pump(&mut body, to_app, bytes_max, stall, watch) => ended,
                Ok(()) = is_answered => Uploaded::Whole,
            };
            if ended == Uploaded::Whole {
                swallow(body).await;
            }
            ended
        });
        Some(Self { task, answered: Some(answered) })
    }

    /// The answer is complete: the rest, if it is not long, is read for nobody.
    pub(super) fn finish(mut self) {
        if let Some(answered) = self.answered.take() {
            // An error means that it has ended already.
            let _ = answered.send(());
        }
    }

    /// Resolves when the body's way has ended.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Uploaded> {
        // Nobody else can end the task, so an error is a panic in it: nothing more will come.
        Pin::new(&mut self.task).poll(cx).map(|ended| ended.unwrap_or(Uploaded::Gone))
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if self.answered.is_some() {
            self.task.abort();
        }
    }
}

/// What was read and not yet sent. A frame that came alone is never copied.
#[derive(Default)]
struct Waiting {
    first: Bytes,
    rest: BytesMut,
}

impl Waiting {
    fn len(&self) -> usize {
        self.first.len() + self.rest.len()
    }

    fn push(&mut self, bytes: Bytes) {
        if self.len() == 0 {
            self.first = bytes;
        } else {
            self.rest.extend_from_slice(&bytes);
        }
    }

    fn take(&mut self) -> Bytes {
        if self.first.is_empty() {
            self.first = self.rest.split().freeze();
        }
        self.first.split_to(self.first.len().min(PIECE_BYTES_MAX))
    }
}

/// Reads what nobody wants, as far as that is not long.
pub(super) async fn swallow(mut body: Incoming) {
    let reading = async {
        let mut left = SWALLOWED_BYTES_MAX;
        while let Some(Ok(frame)) = body.frame().await {
            let length = frame.data_ref().map_or(0, |data| data.len() as u64);
            match left.checked_sub(length) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    };
    // Who takes longer is cut.
    let _ = tokio::time::timeout(Duration::from_millis(SWALLOWED_MS_MAX), reading).await;
}

async fn pump(
    body: &mut Incoming,
    to_app: mpsc::Sender<ToApp>,
    bytes_max: u64,
    stall: Duration,
    watch: Option<Watch>,
) -> Uploaded {
    let (mut waiting, mut total, mut ended) = (Waiting::default(), 0_u64, false);
    let closed = async {
        match &watch {
            Some(watch) => watch.closed().await,
            None => std::future::pending().await,
        }
    };
    let mut closed = pin!(closed);
    loop {
        let full = waiting.len() >= PIECE_BYTES_MAX;
        tokio::select! {
            biased;
            permit = to_app.reserve(), if ended || waiting.len() > 0 => {
                let Ok(permit) = permit else { return Uploaded::Whole };
                let piece = waiting.take();
                let more = !ended || waiting.len() > 0;
                permit.send(ToApp::Body(piece, more));
                if !more {
                    return Uploaded::Whole;
                }
            }
            // While the application does not read, what comes in small pieces becomes larger ones.
            frame = tokio::time::timeout(stall, body.frame()), if !ended && !full => {
                match frame {
                    Ok(Some(Ok(frame))) => {
                        // Trailers of a request have no message.
                        let Ok(bytes) = frame.into_data() else { continue };
                        total += bytes.len() as u64;
                        if total > bytes_max {
                            return gone(&to_app, Uploaded::TooLarge).await;
                        }
                        waiting.push(bytes);
                    }
                    Ok(None) => ended = true,
                    Ok(Some(Err(_broken))) => return gone(&to_app, Uploaded::Gone).await,
                    Err(_elapsed) => return gone(&to_app, Uploaded::Stalled).await,
                }
            }
            // While nothing is read, reading does not tell.
            () = &mut closed, if !ended && full => return Uploaded::Gone,
        }
    }
}

/// The application must not take what it has for the whole.
async fn gone(to_app: &mpsc::Sender<ToApp>, how: Uploaded) -> Uploaded {
    if how == Uploaded::Gone {
        // An error means that the application is gone itself.
        let _ = to_app.send(ToApp::Disconnect(None)).await;
    }
    how
}
