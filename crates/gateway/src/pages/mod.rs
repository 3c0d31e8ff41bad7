//! Pages for people: the apps, one page per app, and one per image. Rendered here, readable without scripts; a few lines of
//! script only fetch the page again while it is looked at.

mod app;
mod home;
mod html;
mod image;

use evoke_core::{AppId, CallId, Error, FunctionId, ImageId, TaskId, UnixMs};
pub use html::{size, utc};
use http::{HeaderValue, Response, StatusCode, header};

pub(crate) use app::app;
pub(crate) use home::home;
pub(crate) use image::image;

use crate::routes::{HttpBody, status_of, whole};
use html::{Html, SCRIPT_HASH};

/// What the pages show. Called once per view, so it should not be dear.
#[async_trait::async_trait]
pub trait PageData: Send + Sync {
    /// All apps worth showing, newest first.
    async fn apps(&self) -> Result<Vec<AppRow>, Error>;
    /// One app; NOT_FOUND if there is none.
    async fn app(&self, app: AppId) -> Result<AppPage, Error>;
    /// One image; NOT_FOUND if there is none.
    async fn image(&self, image: ImageId) -> Result<ImagePage, Error>;
}

/// An app, in a line.
#[derive(Debug, Clone)]
pub struct AppRow {
    /// The app.
    pub id: AppId,
    /// Its name or description.
    pub name: String,
    /// Its environment.
    pub environment: String,
    /// Its state, in a word: `running`, `deployed`, `stopped`.
    pub state: String,
    /// When it was made.
    pub created: UnixMs,
    /// When it stopped.
    pub stopped: Option<UnixMs>,
    /// Containers that exist.
    pub containers: u64,
}

/// An app, as a page.
#[derive(Debug, Clone)]
pub struct AppPage {
    /// The line about it.
    pub app: AppRow,
    /// Its functions, by name.
    pub functions: Vec<FunctionRow>,
    /// Its latest calls, newest first.
    pub calls: Vec<CallRow>,
    /// Its containers: those that live, then those that ended last.
    pub containers: Vec<ContainerRow>,
    /// The end of its log, oldest first.
    pub logs: Vec<LogLine>,
}

/// A function of an app.
#[derive(Debug, Clone)]
pub struct FunctionRow {
    /// The function.
    pub id: FunctionId,
    /// Its name.
    pub name: String,
    /// What its containers run in; none once it is forgotten.
    pub image: Option<ImageId>,
    /// Containers that exist for it.
    pub containers: u64,
    /// Inputs that wait.
    pub queued: u64,
    /// Inputs that are worked on.
    pub running: u64,
    /// Inputs that ended well.
    pub succeeded: u64,
    /// Inputs that failed.
    pub failed: u64,
}

/// A call of a function.
#[derive(Debug, Clone)]
pub struct CallRow {
    /// The call.
    pub id: CallId,
    /// The function's name.
    pub function: String,
    /// When it began.
    pub created: UnixMs,
    /// When its last input ended.
    pub finished: Option<UnixMs>,
    /// Its inputs.
    pub inputs: u64,
    /// Those that ended well.
    pub succeeded: u64,
    /// Those that failed.
    pub failed: u64,
}

/// A container.
#[derive(Debug, Clone)]
pub struct ContainerRow {
    /// The container.
    pub id: TaskId,
    /// The function's name.
    pub function: String,
    /// Where it is in its life, in a word.
    pub state: String,
    /// When it was asked for.
    pub created: UnixMs,
    /// How long it took until it was ready for input, in milliseconds.
    pub start_ms: Option<u64>,
    /// When it ended.
    pub ended: Option<UnixMs>,
    /// How it ended, in words; empty while it lives.
    pub outcome: String,
}

/// A line of an app's log.
#[derive(Debug, Clone)]
pub struct LogLine {
    /// When it was written.
    pub at: UnixMs,
    /// The container that wrote it; none for the platform's own lines.
    pub task: Option<TaskId>,
    /// Whether it came from standard error.
    pub error: bool,
    /// The text, without the end of the line.
    pub text: String,
}

/// An image, as a page.
#[derive(Debug, Clone)]
pub struct ImagePage {
    /// The image.
    pub id: ImageId,
    /// How far it is, in a word.
    pub state: String,
    /// When it was first asked for.
    pub created: UnixMs,
    /// What it is published as.
    pub names: Vec<String>,
    /// The Python in it, in words.
    pub python: Option<String>,
    /// Why its build failed; empty otherwise.
    pub error: String,
    /// Its layers, the lowest first.
    pub layers: Vec<LayerRow>,
}

/// A layer of an image.
#[derive(Debug, Clone)]
pub struct LayerRow {
    /// What made it.
    pub step: String,
    /// How long that took, in milliseconds.
    pub took_ms: u64,
    /// Bytes of its files.
    pub bytes: u64,
    /// Files that it added.
    pub added: u64,
    /// Files that it changed.
    pub changed: u64,
    /// Files that it removed.
    pub removed: u64,
    /// Packages that it touched.
    pub packages: Vec<PackageRow>,
}

/// A package that a layer touched.
#[derive(Debug, Clone)]
pub struct PackageRow {
    /// Its name.
    pub name: String,
    /// The version below the layer; none where the layer added it.
    pub before: Option<String>,
    /// The version that the layer has; none where it removed it.
    pub after: Option<String>,
}

/// Which page an address means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Page {
    Home,
    App(AppId),
    Image(ImageId),
}

/// Which page a path means, if it is a page's.
pub(crate) fn route(path: &str) -> Option<Page> {
    match path {
        "/" => Some(Page::Home),
        _ => match path.strip_prefix("/images/") {
            Some(image) => image.parse().ok().map(Page::Image),
            None => path.strip_prefix("/apps/")?.parse().ok().map(Page::App),
        },
    }
}

/// The page that says why there is none.
pub(crate) fn refusal(error: &Error) -> Response<HttpBody> {
    let status = status_of(error.code);
    let mut body = Html::new();
    body.raw("<header><h1>").text(status.canonical_reason().unwrap_or("Error")).raw("</h1></header><p>");
    body.text(&error.message).raw("</p>");
    if status == StatusCode::FORBIDDEN {
        body.raw("<p>Pages open by the address that Evoke prints: run or deploy the app again, or see <code>evoke status</code>.</p>");
    } else if let Some(hint) = &error.hint {
        body.raw("<p>").text(hint).raw("</p>");
    }
    respond(status, html::document("Evoke", body, false))
}

/// A page as an answer, with what a browser must not do with it.
fn respond(status: StatusCode, document: String) -> Response<HttpBody> {
    let mut response = whole(status, "text/html; charset=utf-8", document);
    let policy = format!(
        "default-src 'none'; style-src 'unsafe-inline'; script-src '{}'; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
        *SCRIPT_HASH
    );
    let headers = response.headers_mut();
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    // The address is the permission: it must not travel on.
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests;
