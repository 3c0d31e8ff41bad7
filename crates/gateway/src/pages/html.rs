//! HTML in which text is always escaped, and the frame that all pages share.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use evoke_core::UnixMs;
use sha2::{Digest, Sha256};
use std::fmt::{self, Write as _};
use std::sync::LazyLock;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The script's hash as a content security policy names it: no other script runs.
pub static SCRIPT_HASH: LazyLock<String> =
    LazyLock::new(|| format!("sha256-{}", STANDARD.encode(Sha256::digest(SCRIPT))));

/// HTML under construction.
pub struct Html(String);

impl Html {
    pub fn new() -> Self {
        Self(String::new())
    }

    /// Adds markup of ours.
    pub fn raw(&mut self, markup: &'static str) -> &mut Self {
        self.0.push_str(markup);
        self
    }

    /// Adds text of anybody's, escaped for elements and quoted attributes.
    pub fn text(&mut self, text: impl fmt::Display) -> &mut Self {
        // Writing to a String cannot fail.
        let _ = write!(Escape(&mut self.0), "{text}");
        self
    }

    /// Adds a moment: readable as it stands, in the reader's time zone once the script ran.
    pub fn time(&mut self, at: UnixMs) -> &mut Self {
        let text = utc(at);
        self.raw("<time datetime=\"").text(text.replace(' ', "T")).raw("Z\">").text(text).raw(" UTC</time>")
    }

    /// Adds a word with a colour by what it says.
    pub fn badge(&mut self, word: &str) -> &mut Self {
        let class = match word {
            "running" | "deployed" | "ready" | "succeeded" | "serving" => "good",
            "failed" | "error" | "crashed" => "bad",
            "stopped" | "exited" | "removed" | "finished" => "quiet",
            _ => "busy",
        };
        self.raw("<span class=\"badge ").text(class).raw("\">").text(word).raw("</span>")
    }

    /// Adds a cell with a number, unobtrusive where it is zero.
    pub fn number(&mut self, number: u64) -> &mut Self {
        self.raw(if number == 0 { "<td class=\"num zero\">" } else { "<td class=\"num\">" });
        self.text(number).raw("</td>")
    }

    /// Adds a table of `rows`, or `nothing` if there are none.
    pub fn table<T>(
        &mut self,
        title: &'static str,
        columns: &[&'static str],
        rows: &[T],
        nothing: &'static str,
        row: impl Fn(&mut Html, &T),
    ) -> &mut Self {
        self.raw("<section><h2>").raw(title).raw("</h2>");
        if rows.is_empty() {
            return self.raw("<p class=\"none\">").raw(nothing).raw("</p></section>");
        }
        self.raw("<div class=\"scroll\"><table><thead><tr>");
        for column in columns {
            // Columns of numbers are marked by a trailing plus sign.
            match column.strip_suffix('+') {
                Some(name) => self.raw("<th class=\"num\">").raw(name),
                None => self.raw("<th>").raw(column),
            }
            .raw("</th>");
        }
        self.raw("</tr></thead><tbody>");
        for item in rows {
            self.raw("<tr>");
            row(self, item);
            self.raw("</tr>");
        }
        self.raw("</tbody></table></div></section>")
    }
}

struct Escape<'a>(&'a mut String);

impl fmt::Write for Escape<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            match c {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                // Terminal colours and other control characters mean nothing here.
                c if c.is_control() && c != '\n' && c != '\t' => self.0.push('\u{FFFD}'),
                c => self.0.push(c),
            }
        }
        Ok(())
    }
}

/// A whole page; a `live` one is fetched again while it is looked at.
pub fn document(title: &str, body: Html, live: bool) -> String {
    let mut page = Html::new();
    page.raw("<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">")
        .raw("<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">")
        .raw("<meta name=\"color-scheme\" content=\"light dark\"><title>")
        .text(title)
        .raw("</title><style>")
        .raw(STYLE)
        .raw("</style></head><body><main")
        .raw(if live { " id=\"live\">" } else { ">" });
    page.0.push_str(&body.0);
    page.raw("</main>");
    page.raw("<script>").raw(SCRIPT).raw("</script></body></html>\n");
    page.0
}

/// A span of time for people.
pub fn duration(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{:.1} s", ms as f64 / 1000.0),
        60_000..3_600_000 => format!("{} min {} s", ms / 60_000, ms / 1000 % 60),
        _ => format!("{} h {} min", ms / 3_600_000, ms / 60_000 % 60),
    }
}

/// Bytes for people.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

/// `2026-01-31 23:59:59`.
pub fn utc(at: UnixMs) -> String {
    let seconds = at.0 / 1000;
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Years from March on, in eras of 400 years of 146,097 days, so that leap days come last.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}
