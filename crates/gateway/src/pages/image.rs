//! The page of one image: what each of its layers brought.

use http::{Response, StatusCode};

use super::html::{Html, document, duration, size};
use super::{ImagePage, LayerRow, PackageRow, respond};
use crate::routes::HttpBody;

/// Packages of a layer that are shown; the rest is counted.
const PACKAGES_SHOWN: usize = 40;

/// The page.
pub(crate) fn image(page: &ImagePage) -> Response<HttpBody> {
    let mut body = Html::new();
    body.raw("<header><p class=\"brand\">Evoke</p><h1>Image ").badge(&page.state).raw("</h1>");
    body.raw("<p class=\"facts\"><code>").text(page.id).raw("</code> · since ").time(page.created);
    for fact in page.names.iter().chain(&page.python) {
        body.raw(" · ").text(fact);
    }
    body.raw("</p></header>");
    if !page.error.is_empty() {
        body.raw("<pre class=\"log\"><span class=\"err\">").text(&page.error).raw("</span></pre>");
    }
    body.raw("<dl class=\"figures\"><div><dt>layers</dt><dd>").text(page.layers.len());
    let bytes = page.layers.iter().map(|layer| layer.bytes).sum();
    body.raw("</dd></div><div><dt>size</dt><dd>").text(size(bytes)).raw("</dd></div></dl>");
    let columns = ["Step", "Size+", "Added+", "Changed+", "Removed+", "Took+"];
    body.table("Layers, the lowest first", &columns, &page.layers, "It has no layers.", layer);
    respond(StatusCode::OK, document("Image · Evoke", body, false))
}

fn layer(html: &mut Html, row: &LayerRow) {
    html.raw("<td class=\"step\"><code>").text(&row.step).raw("</code>");
    if !row.packages.is_empty() {
        html.raw("<br><span class=\"outcome\">");
        for (at, change) in row.packages.iter().take(PACKAGES_SHOWN).enumerate() {
            html.raw(if at == 0 { "" } else { ", " });
            package(html, change);
        }
        if row.packages.len() > PACKAGES_SHOWN {
            html.raw(" and ").text(row.packages.len() - PACKAGES_SHOWN).raw(" more");
        }
        html.raw("</span>");
    }
    html.raw("</td><td class=\"num\">").text(size(row.bytes)).raw("</td>");
    for number in [row.added, row.changed, row.removed] {
        html.number(number);
    }
    html.raw("<td class=\"num\">").text(duration(row.took_ms)).raw("</td>");
}

fn package(html: &mut Html, change: &PackageRow) {
    match (&change.before, &change.after) {
        (Some(before), Some(after)) => {
            html.raw("~ ").text(&change.name).raw(" ").text(before).raw(" → ").text(after)
        }
        (Some(before), None) => html.raw("− ").text(&change.name).raw(" ").text(before),
        (None, after) => {
            html.raw("+ ").text(&change.name).raw(" ").text(after.as_deref().unwrap_or_default())
        }
    };
}
