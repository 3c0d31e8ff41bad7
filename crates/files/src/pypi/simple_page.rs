//! A project's page in an index: JSON (PEP 691) or HTML (PEP 503).

use super::{IndexFile, Yanked};
use crate::fetch::join_url;
use serde::Deserialize;
use std::collections::BTreeMap;

/// The media types we take, best first.
pub(super) const ACCEPT: &str = "application/vnd.pypi.simple.v1+json, \
     application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.01";

#[derive(Deserialize)]
struct JsonPage {
    files: Vec<JsonFile>,
}

#[derive(Deserialize)]
struct JsonFile {
    filename: String,
    url: String,
    #[serde(default)]
    hashes: BTreeMap<String, String>,
    size: Option<u64>,
    #[serde(rename = "requires-python")]
    requires_python: Option<String>,
    #[serde(default)]
    yanked: JsonYanked,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum JsonYanked {
    Flag(bool),
    Reason(#[allow(dead_code, reason = "only its presence counts")] String),
}

impl Default for JsonYanked {
    fn default() -> Self {
        JsonYanked::Flag(false)
    }
}

/// Reads a page of either form; `url` is where it was found.
pub(super) fn read_page(url: &str, media_type: &str, body: &[u8]) -> Result<Vec<IndexFile>, String> {
    if media_type.contains("json") {
        let page: JsonPage = serde_json::from_slice(body).map_err(|e| e.to_string())?;
        return Ok(page.files.into_iter().filter_map(|file| of_json(url, file)).collect());
    }
    Ok(read_html(url, &String::from_utf8_lossy(body)))
}

fn of_json(page: &str, file: JsonFile) -> Option<IndexFile> {
    let yanked = if matches!(file.yanked, JsonYanked::Flag(false)) { Yanked::No } else { Yanked::Yes };
    Some(IndexFile {
        url: join_url(page, &file.url)?,
        sha256: file.hashes.get("sha256").and_then(|hex| hex.parse().ok()),
        length: file.size,
        // A condition that is not understood is taken for none, as pip does.
        requires_python: file.requires_python.and_then(|text| text.parse().ok()),
        file_name: file.filename,
        yanked,
    })
}

fn read_html(page: &str, html: &str) -> Vec<IndexFile> {
    let mut files = Vec::new();
    let mut rest = html;
    while let Some(open) = rest.find('<') {
        rest = &rest[open + 1..];
        let is_link = rest
            .get(..2)
            .is_some_and(|tag| tag.eq_ignore_ascii_case("a ") || tag.eq_ignore_ascii_case("a\n"));
        if !is_link {
            continue;
        }
        let (attributes, after) = read_attributes(&rest[1..]);
        rest = after;
        let text = rest.split('<').next().unwrap_or_default();
        files.extend(of_link(page, &attributes, text));
    }
    files
}

fn of_link(page: &str, attributes: &BTreeMap<String, String>, text: &str) -> Option<IndexFile> {
    let href = attributes.get("href")?;
    let (address, fragment) = href.split_once('#').unwrap_or((href, ""));
    let named = unescape(text.trim());
    let last = address.split('?').next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
    let file_name = if named.is_empty() { last.to_owned() } else { named };
    Some(IndexFile {
        url: join_url(page, address)?,
        sha256: fragment.split('&').find_map(|f| f.strip_prefix("sha256=")?.parse().ok()),
        length: None,
        requires_python: attributes.get("data-requires-python").and_then(|text| text.parse().ok()),
        yanked: if attributes.contains_key("data-yanked") { Yanked::Yes } else { Yanked::No },
        file_name,
    })
}

/// The attributes of a tag from behind its name on, and what follows the tag.
fn read_attributes(mut rest: &str) -> (BTreeMap<String, String>, &str) {
    let mut attributes = BTreeMap::new();
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == '/');
        if let Some(after) = rest.strip_prefix('>') {
            return (attributes, after);
        }
        let end = rest.find(|c: char| c.is_whitespace() || c == '=' || c == '>').unwrap_or(rest.len());
        if rest.is_empty() {
            return (attributes, rest);
        }
        let name = rest[..end].to_ascii_lowercase();
        // A stray `=` is skipped, so that every turn moves on.
        rest = rest.get(end.max(1)..).unwrap_or_default();
        let mut value = "";
        let assigned = if end == 0 { None } else { rest.trim_start().strip_prefix('=') };
        if let Some(after) = assigned {
            let after = after.trim_start();
            match after.chars().next() {
                Some(quote @ ('"' | '\'')) => {
                    let close = after[1..].find(quote).map_or(after.len(), |at| at + 1);
                    value = &after[1..close];
                    rest = after.get(close + 1..).unwrap_or_default();
                }
                _ => {
                    let close = after.find(|c: char| c.is_whitespace() || c == '>').unwrap_or(after.len());
                    value = &after[..close];
                    rest = &after[close..];
                }
            }
        }
        attributes.insert(name, unescape(value));
    }
}

/// Text with the character references that indexes use resolved.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let reference = rest.find(';').filter(|end| *end <= 10).map(|end| &rest[1..end]);
        let character = match reference {
            Some("amp") => Some('&'),
            Some("lt") => Some('<'),
            Some("gt") => Some('>'),
            Some("quot") => Some('"'),
            Some("apos") => Some('\''),
            Some(other) => other.strip_prefix('#').and_then(|number| {
                let code = match number.strip_prefix(['x', 'X']) {
                    Some(hex) => u32::from_str_radix(hex, 16).ok()?,
                    None => number.parse().ok()?,
                };
                char::from_u32(code)
            }),
            None => None,
        };
        match (character, reference) {
            (Some(character), Some(reference)) => {
                out.push(character);
                rest = &rest[reference.len() + 2..];
            }
            _ => {
                out.push('&');
                rest = &rest[1..];
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn both_forms_give_the_same_files() {
        let html = format!(
            "<!DOCTYPE html><html><body><h1>Links</h1>\n<A class=x\n href='../../f/a-1-py3-none-any.whl#sha256={HASH}' \
             data-requires-python=\"&gt;=3.7,&lt;4\">a-1-py3-none-any.whl</A><br/>\n\
             <a href=\"https://files.test/a-2-py3-none-any.whl\" data-yanked>a-2-py3-none-any.whl</a></body>"
        );
        let json = format!(
            "{{\"files\":[{{\"filename\":\"a-1-py3-none-any.whl\",\"url\":\"/f/a-1-py3-none-any.whl\",\
             \"hashes\":{{\"sha256\":\"{HASH}\"}},\"requires-python\":\">=3.7,<4\",\"yanked\":false}},\
             {{\"filename\":\"a-2-py3-none-any.whl\",\"url\":\"https://files.test/a-2-py3-none-any.whl\",\
             \"hashes\":{{}},\"requires-python\":null,\"yanked\":\"broken\"}}],\"meta\":{{}}}}"
        );
        let page = "https://index.test/simple/a/";
        let from_html = read_page(page, "text/html; charset=utf-8", html.as_bytes()).unwrap();
        let from_json = read_page(page, "application/vnd.pypi.simple.v1+json", json.as_bytes()).unwrap();
        assert_eq!(from_html, from_json);
        assert_eq!(from_html[0].url, "https://index.test/f/a-1-py3-none-any.whl");
        assert_eq!(from_html[0].sha256, HASH.parse().ok());
        assert!(!from_html[0].requires_python.as_ref().unwrap().admits(&"4.0".parse().unwrap()));
        assert_eq!(from_html[1].yanked, Yanked::Yes);
    }

    #[test]
    fn broken_html_ends() {
        for html in ["<a ", "<a href", "<a href=", "<a href='x", "<a ==>", "<a =", "&#x;&amp", "<a é='ü'>"]
        {
            read_html("https://x/", html);
        }
        assert_eq!(unescape("a&amp;b&#39;&#x27;&nope;&"), "a&b''&nope;&");
    }
}
