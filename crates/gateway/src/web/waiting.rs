//! Requests whose clients were sent away to ask again, each under the id of its call. One client at a time waits for
//! the answer or takes it, further ones behind it; who leaves before there is one lets the next go on, and an answer
//! that is not large is there for those who come later, too.

use bytes::{Bytes, BytesMut};
use evoke_core::{CallId, Error};
use evoke_proto::web::{WebEndpoint, WebExchange};
use http::response::Parts;
use http::{Method, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};

use super::WebBody;
use super::exchange::Said;
use crate::connection::AnswerBody;

/// The body of an answer that is kept for who asks once more, in bytes.
const KEPT_BYTES_MAX: usize = 1 << 20;
/// All such bodies together, in KiB.
const KEPT_KIB_MAX: usize = 64 << 10;

/// The requests that wait. Cheap to clone.
#[derive(Clone)]
pub(super) struct Waiting(Arc<Shelf>);

struct Shelf {
    requests: Mutex<HashMap<CallId, Arc<Request>>>,
    /// How long each stays without anybody who asks for it.
    stay: Duration,
    /// For the bodies that are kept, in KiB.
    room: Arc<Semaphore>,
}

/// A request whose client was sent away.
struct Request {
    call: CallId,
    endpoint: WebEndpoint,
    state: Arc<tokio::sync::Mutex<State>>,
    /// Counts who came and left.
    visits: AtomicU64,
}

/// What there is of an answer.
pub(super) enum State {
    /// Nothing yet.
    Unanswered(Box<WebExchange>),
    /// All of it.
    Answered(Box<Kept>),
    /// Somebody took it, or part of it, and it was too large to be kept.
    Taken,
}

pub(super) struct Kept {
    head: Parts,
    body: Bytes,
    _room: OwnedSemaphorePermit,
}

impl Shelf {
    fn requests(&self) -> MutexGuard<'_, HashMap<CallId, Arc<Request>>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// Nothing waits. What does stays for `stay` without anybody who asks for it.
    pub(super) fn new(stay: Duration) -> Self {
        let room = Arc::new(Semaphore::new(KEPT_KIB_MAX));
        Self(Arc::new(Shelf { requests: Mutex::default(), stay, room }))
    }

    /// Keeps a request for a client that comes back.
    pub(super) fn park(&self, endpoint: &WebEndpoint, exchange: WebExchange) {
        let request = Arc::new(Request {
            call: exchange.call,
            endpoint: endpoint.clone(),
            state: Arc::new(State::Unanswered(Box::new(exchange)).into()),
            visits: AtomicU64::new(0),
        });
        self.0.requests().insert(request.call, request.clone());
        // It counts as a client that has just left.
        drop(Visit { shelf: Arc::downgrade(&self.0), request });
    }

    /// A client that asks for a request; none where nothing of this endpoint waits under that id.
    pub(super) fn visit(&self, endpoint: &WebEndpoint, call: CallId) -> Option<Visit> {
        let requests = self.0.requests();
        let request = requests.get(&call).filter(|request| request.endpoint == *endpoint)?.clone();
        request.visits.fetch_add(1, Ordering::AcqRel);
        Some(Visit { shelf: Arc::downgrade(&self.0), request })
    }
}

/// A client that asks for a request that waits.
pub(super) struct Visit {
    shelf: Weak<Shelf>,
    request: Arc<Request>,
}

impl Visit {
    pub(super) fn call(&self) -> CallId {
        self.request.call
    }

    /// Waits until it is this client's turn.
    pub(super) async fn turn(&self) -> OwnedMutexGuard<State> {
        self.request.state.clone().lock_owned().await
    }

    /// The answer on its way to this client, which is kept for others if it turns out to be small.
    pub(super) async fn passing(
        self,
        turn: OwnedMutexGuard<State>,
        answer: Result<Response<AnswerBody>, Box<Said>>,
        method: &Method,
    ) -> Result<Response<AnswerBody>, Box<Said>> {
        let said = match answer {
            Ok(response) => {
                let (head, body) = response.into_parts();
                let AnswerBody::Web(body) = body else { return Ok(Response::from_parts(head, body)) };
                // Who asked for the head alone did not get what others may want.
                let copy = (*method != Method::HEAD).then(|| (clone(&head), BytesMut::new()));
                let mut passing = Passing { body, copy, turn, visit: self };
                passing.look_for_the_end();
                return Ok(Response::from_parts(head, AnswerBody::Web(WebBody::Passing(Box::new(passing)))));
            }
            Err(said) => *said,
        };
        // Words of ours, which are at hand.
        let (head, body) = said.into_parts();
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let mut turn = turn;
        self.keep(&mut turn, clone(&head), body.clone());
        Err(Response::from_parts(head, whole(body)).into())
    }

    fn keep(&self, state: &mut State, head: Parts, body: Bytes) {
        let Some(shelf) = self.shelf.upgrade() else { return };
        let kib = u32::try_from(body.len() / 1024 + 1).unwrap_or(u32::MAX);
        if let Ok(room) = shelf.room.clone().try_acquire_many_owned(kib) {
            *state = State::Answered(Box::new(Kept { head, body, _room: room }));
        }
    }
}

impl Drop for Visit {
    /// With the last client a request's time begins.
    fn drop(&mut self) {
        let Some(shelf) = self.shelf.upgrade() else { return };
        let visits = self.request.visits.fetch_add(1, Ordering::AcqRel) + 1;
        let request = self.request.clone();
        let (stay, shelf) = (shelf.stay, self.shelf.clone());
        // Without a runtime everything ends.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            tokio::time::sleep(stay).await;
            let Some(shelf) = shelf.upgrade() else { return };
            let mut requests = shelf.requests();
            if request.visits.load(Ordering::Acquire) == visits {
                requests.remove(&request.call);
            }
        });
    }
}

impl Kept {
    /// The answer once more.
    pub(super) fn answer(&self) -> Response<AnswerBody> {
        Response::from_parts(clone(&self.head), AnswerBody::Http(whole(self.body.clone())))
    }
}

/// The body of an answer that is copied while it passes.
pub(crate) struct Passing {
    body: WebBody,
    /// None once it is too large, or was kept.
    copy: Option<(Parts, BytesMut)>,
    turn: OwnedMutexGuard<State>,
    visit: Visit,
}

impl Passing {
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            None => self.complete(),
            // An answer with trailers, or one that broke off, is nobody else's.
            Some(Err(_)) => self.copy = None,
            Some(Ok(frame)) => match (frame.data_ref(), &mut self.copy) {
                (Some(data), Some((_, copy))) if copy.len() + data.len() <= KEPT_BYTES_MAX => {
                    copy.extend_from_slice(data);
                }
                _ => self.copy = None,
            },
        }
        self.look_for_the_end();
        Poll::Ready(frame)
    }

    /// Nobody asks for more where the length says that there is none.
    fn look_for_the_end(&mut self) {
        if self.body.is_end_stream() || self.body.size_hint().exact() == Some(0) {
            self.complete();
        }
    }

    fn complete(&mut self) {
        if let Some((head, body)) = self.copy.take() {
            self.visit.keep(&mut self.turn, head, body.freeze());
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn whole(body: Bytes) -> crate::routes::HttpBody {
    Full::new(body).map_err(|never| match never {}).boxed_unsync()
}

fn clone(head: &Parts) -> Parts {
    let (mut copy, ()) = Response::new(()).into_parts();
    copy.status = head.status;
    copy.headers = head.headers.clone();
    copy
}
