//! The page of one app.

use evoke_core::UnixMs;
use http::{Response, StatusCode};

use super::home::name;
use super::html::{Html, document, duration, utc};
use super::{AppPage, CallRow, ContainerRow, FunctionRow, LogLine, respond};
use crate::UrlSigner;
use crate::routes::HttpBody;

/// The page. Its links are signed for whoever may see it, and may so see its images.
pub(crate) fn app(page: &AppPage, signer: &UrlSigner, origin: &str) -> Response<HttpBody> {
    let mut body = Html::new();
    head(&mut body, page);
    let columns = ["Function", "Containers+", "Queued+", "Running+", "Succeeded+", "Failed+"];
    let function = |html: &mut Html, row: &FunctionRow| function(html, row, signer, origin);
    body.table("Functions", &columns, &page.functions, "This app has no functions.", function);
    let columns = ["Call", "Function", "State", "Inputs+", "Succeeded+", "Failed+", "Started", "Time+"];
    body.table("Calls", &columns, &page.calls, "Nothing was called yet.", call);
    let columns = ["Container", "Function", "State", "Started", "Ready after+", "Lived+"];
    body.table("Containers", &columns, &page.containers, "No container was started yet.", container);
    logs(&mut body, &page.logs);
    let title = format!("{} · Evoke", name(&page.app));
    respond(StatusCode::OK, document(&title, body, true))
}

fn head(body: &mut Html, page: &AppPage) {
    let app = &page.app;
    body.raw("<header><p class=\"brand\">Evoke</p><h1>").text(name(app)).raw(" ").badge(&app.state);
    body.raw("</h1><p class=\"facts\"><code>").text(app.id).raw("</code> · ").text(&app.environment);
    body.raw(" · since ").time(app.created);
    if let Some(stopped) = app.stopped {
        body.raw(" · stopped ").time(stopped);
    }
    body.raw("</p></header>");
    let sum = |count: fn(&FunctionRow) -> u64| page.functions.iter().map(count).sum::<u64>();
    body.raw("<dl class=\"figures\">");
    for (label, number) in [
        ("containers", app.containers),
        ("queued", sum(|f| f.queued)),
        ("running", sum(|f| f.running)),
        ("succeeded", sum(|f| f.succeeded)),
        ("failed", sum(|f| f.failed)),
    ] {
        body.raw("<div><dt>").raw(label).raw("</dt><dd>").text(number).raw("</dd></div>");
    }
    body.raw("</dl>");
}

fn function(html: &mut Html, row: &FunctionRow, signer: &UrlSigner, origin: &str) {
    html.raw("<td>").text(&row.name).raw("<br><code>").text(row.id).raw("</code>");
    if let Some(image) = row.image {
        html.raw(" · <a href=\"").text(signer.image(origin, image)).raw("\">image</a>");
    }
    html.raw("</td>");
    for number in [row.containers, row.queued, row.running, row.succeeded, row.failed] {
        html.number(number);
    }
}

fn call(html: &mut Html, row: &CallRow) {
    html.raw("<td><code>").text(row.id).raw("</code></td><td>").text(&row.function).raw("</td><td>");
    let state = match (row.finished, row.failed) {
        (None, _) => "running",
        (Some(_), 0) => "succeeded",
        (Some(_), _) => "failed",
    };
    html.badge(state).raw("</td>");
    html.number(row.inputs)
        .number(row.succeeded)
        .number(row.failed)
        .raw("<td>")
        .time(row.created)
        .raw("</td>");
    span(html, row.created, row.finished);
}

fn container(html: &mut Html, row: &ContainerRow) {
    html.raw("<td><code>").text(row.id).raw("</code></td><td>").text(&row.function).raw("</td><td>");
    html.badge(&row.state);
    if !row.outcome.is_empty() {
        html.raw(" <span class=\"outcome\">").text(&row.outcome).raw("</span>");
    }
    html.raw("</td><td>").time(row.created).raw("</td><td class=\"num\">");
    match row.start_ms {
        Some(ms) => html.text(duration(ms)),
        None => html.raw("–"),
    }
    .raw("</td>");
    span(html, row.created, row.ended);
}

/// A cell with how long something took.
fn span(html: &mut Html, from: UnixMs, to: Option<UnixMs>) {
    html.raw("<td class=\"num\">");
    match to {
        Some(to) => html.text(duration(to.since(from))),
        None => html.raw("–"),
    }
    .raw("</td>");
}

fn logs(body: &mut Html, lines: &[LogLine]) {
    body.raw("<section><h2>Log</h2>");
    if lines.is_empty() {
        body.raw("<p class=\"none\">Nothing was printed yet.</p></section>");
        return;
    }
    body.raw("<pre class=\"log\">");
    for line in lines {
        let task = line.task.map(|task| task.to_string()).unwrap_or_default();
        body.raw("<span class=\"at\" title=\"")
            .text(task)
            .raw("\">")
            .text(&utc(line.at)[11..])
            .raw("</span> ");
        body.raw(if line.error { "<span class=\"err\">" } else { "<span>" })
            .text(&line.text)
            .raw("</span>\n");
    }
    body.raw("</pre></section>");
}
