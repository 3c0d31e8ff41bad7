//! The page of all apps.

use http::{Response, StatusCode};

use super::html::{Html, document};
use super::{AppRow, respond};
use crate::UrlSigner;
use crate::routes::HttpBody;

/// The page. Its links are signed for whoever may see it, and may so see every app.
pub(crate) fn home(apps: &[AppRow], signer: &UrlSigner, origin: &str) -> Response<HttpBody> {
    let mut body = Html::new();
    body.raw("<header><p class=\"brand\">Evoke</p><h1>Apps</h1></header>");
    let columns = ["App", "State", "Environment", "Containers+", "Created"];
    let nothing = "No app yet. Run one: <code>evoke run app.py</code>";
    body.table("All apps", &columns, apps, nothing, |html, row| {
        html.raw("<td><a href=\"").text(signer.app(origin, row.id)).raw("\">").text(name(row)).raw("</a>");
        html.raw("<br><code>").text(row.id).raw("</code></td><td>").badge(&row.state).raw("</td><td>");
        html.text(&row.environment).raw("</td>").number(row.containers).raw("<td>").time(row.created);
        html.raw("</td>");
    });
    respond(StatusCode::OK, document("Apps · Evoke", body, true))
}

/// What to call an app.
pub(crate) fn name(app: &AppRow) -> String {
    if app.name.is_empty() { app.id.to_string() } else { app.name.clone() }
}
