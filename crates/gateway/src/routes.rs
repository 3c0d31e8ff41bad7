//! What is not gRPC: blobs, volumes' files, pages, the health check.

use bytes::Bytes;
use evoke_core::{Error, ErrorCode, Principal};
use evoke_proto::grpc::Caller;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use std::sync::Arc;

use crate::blobs::{self, BlobRoute};
use crate::pages::{self, Page};
use crate::volumes::{self, Volumes};
use crate::{BlobStore, PageData, UrlSigner, VolumeStore};

/// Longest code of a login that is shown.
const CODE_LEN_MAX: usize = 16;

/// The body of an answer.
pub type HttpBody = UnsyncBoxBody<Bytes, Error>;

/// Serves requests that are not gRPC.
#[async_trait::async_trait]
pub trait HttpRoutes: Send + Sync {
    /// Answers a request; what goes wrong is in the answer.
    async fn respond(&self, request: Request<Incoming>, caller: &Caller) -> Response<HttpBody>;
}

/// The routes of the platform itself.
pub struct Platform {
    signer: UrlSigner,
    blobs: Arc<dyn BlobStore>,
    volumes: Volumes,
    pages: Arc<dyn PageData>,
}

impl Platform {
    /// The routes over what holds blobs and volumes' files and knows the apps. `signer` checks addresses and
    /// makes those on the pages.
    pub fn new(
        signer: UrlSigner,
        blobs: Arc<dyn BlobStore>,
        volumes: Arc<dyn VolumeStore>,
        pages: Arc<dyn PageData>,
    ) -> Self {
        Self { signer, blobs, volumes: Volumes::new(volumes), pages }
    }
}

#[async_trait::async_trait]
impl HttpRoutes for Platform {
    async fn respond(&self, request: Request<Incoming>, caller: &Caller) -> Response<HttpBody> {
        let path = request.uri().path().to_owned();
        if path == "/healthz" {
            return text(StatusCode::OK, "ok\n");
        }
        if path == "/login" {
            return text(StatusCode::OK, login_page(request.uri().query().unwrap_or_default()));
        }
        if let Some(route) = blobs::route(request.method(), &path) {
            return match self.signer.check(request.method(), &path, request.uri().query()) {
                Ok(()) => self.blob(route, request).await.unwrap_or_else(|error| failure(&error)),
                Err(error) => failure(&error),
            };
        }
        if let Some(route) = volumes::route(request.method(), &path) {
            return match self.signer.check(request.method(), &path, request.uri().query()) {
                Ok(()) => self.volumes.serve(route, request).await.unwrap_or_else(|error| failure(&error)),
                Err(error) => failure(&error),
            };
        }
        // Pages are for people; a container has no use for them.
        let page = pages::route(&path).filter(|_| !matches!(caller.principal, Principal::Container(_)));
        match page {
            Some(page) if matches!(*request.method(), Method::GET | Method::HEAD) => {
                let query = request.uri().query();
                match self.signer.check(request.method(), &path, query) {
                    Ok(()) => self.page(page, caller).await,
                    Err(error) => pages::refusal(&error),
                }
            }
            Some(_) => text(StatusCode::METHOD_NOT_ALLOWED, "This page can only be read.\n"),
            None => text(StatusCode::NOT_FOUND, "There is nothing at this address.\n"),
        }
    }
}

impl Platform {
    async fn blob(&self, route: BlobRoute, request: Request<Incoming>) -> Result<Response<HttpBody>, Error> {
        match route {
            BlobRoute::Put(blob) => blobs::put(&self.blobs, blob, None, request).await,
            BlobRoute::Part(blob, number) => blobs::put(&self.blobs, blob, Some(number), request).await,
            BlobRoute::Complete(blob) => blobs::complete(&self.blobs, blob, request).await,
            BlobRoute::Get(blob) => blobs::get(&self.blobs, blob, request.method() == Method::HEAD).await,
        }
    }

    async fn page(&self, page: Page, caller: &Caller) -> Response<HttpBody> {
        let rendered = match page {
            Page::Home => {
                self.pages.apps().await.map(|apps| pages::home(&apps, &self.signer, &caller.origin))
            }
            Page::App(app) => {
                self.pages.app(app).await.map(|app| pages::app(&app, &self.signer, &caller.origin))
            }
            Page::Image(image) => self.pages.image(image).await.map(|image| pages::image(&image)),
        };
        rendered.unwrap_or_else(|error| pages::refusal(&error))
    }
}

/// What a person reads who was sent here by a client that asks to be let in. Nothing can be approved here: that takes
/// somebody whom the server's machine knows.
fn login_page(query: &str) -> String {
    let code = query.split('&').find_map(|pair| pair.strip_prefix("code=")).unwrap_or("CODE");
    let is_code = code.len() <= CODE_LEN_MAX && code.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let code = if is_code { code } else { "CODE" };
    format!(
        "Somebody asks to use this Evoke server.\n\nWho may use it from its own machine lets them in there, by the \
         code that their client shows:\n\n    evoke token approve {code} --name THEIR_NAME\n\nThe client goes on by \
         itself then. A code is good for 15 minutes.\n"
    )
}

/// An answer of plain text.
pub(crate) fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<HttpBody> {
    whole(status, "text/plain; charset=utf-8", body)
}

/// An answer whose body is at hand.
pub(crate) fn whole(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<HttpBody> {
    let body = Full::new(body.into()).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// The answer that says what failed.
pub(crate) fn failure(error: &Error) -> Response<HttpBody> {
    let status = status_of(error.code);
    if status.is_server_error() {
        tracing::error!(%error, "request failed");
    }
    text(status, format!("{error}\n"))
}

/// The one mapping of our error codes to HTTP's.
pub(crate) fn status_of(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::InvalidArgument => StatusCode::BAD_REQUEST,
        ErrorCode::NotFound => StatusCode::NOT_FOUND,
        ErrorCode::AlreadyExists | ErrorCode::FailedPrecondition => StatusCode::CONFLICT,
        ErrorCode::PermissionDenied => StatusCode::FORBIDDEN,
        ErrorCode::Unauthenticated => StatusCode::UNAUTHORIZED,
        ErrorCode::ResourceExhausted => StatusCode::INSUFFICIENT_STORAGE,
        ErrorCode::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        // Clients of blobs slow down at this status.
        ErrorCode::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorCode::DeadlineExceeded => StatusCode::REQUEST_TIMEOUT,
        ErrorCode::DataLoss | ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
