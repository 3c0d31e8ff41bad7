//! The little of URL handling that links and redirects need: joining a reference to the page it stands on,
//! credentials in the address, and an address fit for messages.

/// The parts of an address that is followed: scheme, authority and the rest from the first slash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Parts<'a> {
    pub scheme: &'a str,
    /// `user:password`, still percent-encoded.
    pub credentials: Option<&'a str>,
    /// Host and port.
    pub host: &'a str,
    /// Path and query, beginning with `/` unless empty.
    pub rest: &'a str,
}

/// Takes `url` apart where it is one of http or https.
pub(super) fn split_url(url: &str) -> Option<Parts<'_>> {
    let (scheme, after) = url.split_once("://")?;
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return None;
    }
    let end = after.find(['/', '?', '#']).unwrap_or(after.len());
    let (authority, rest) = after.split_at(end);
    let (credentials, host) = match authority.rsplit_once('@') {
        Some((credentials, host)) => (Some(credentials), host),
        None => (None, authority),
    };
    let rest = rest.split('#').next().unwrap_or_default();
    (!host.is_empty()).then_some(Parts { scheme, credentials, host, rest })
}

/// `url` without user name and password, for messages and logs.
pub fn redact_url(url: &str) -> String {
    match split_url(url) {
        Some(parts) if parts.credentials.is_some() => {
            format!("{}://***@{}{}", parts.scheme, parts.host, parts.rest)
        }
        _ => url.to_owned(),
    }
}

/// What `reference`, found on the page `base`, points to. Credentials of `base` go along where the host
/// stays the same, as browsers and pip do; fragments are dropped.
pub fn join_url(base: &str, reference: &str) -> Option<String> {
    let reference = reference.split('#').next().unwrap_or_default();
    let page = split_url(base)?;
    let credentials = page.credentials.map(|c| format!("{c}@")).unwrap_or_default();
    if let Some(target) = split_url(reference) {
        let own_or_elsewhere = target.credentials.is_some() || target.host != page.host;
        if own_or_elsewhere || target.scheme != page.scheme {
            return Some(reference.to_owned());
        }
        return Some(format!("{}://{credentials}{}{}", target.scheme, target.host, target.rest));
    }
    if let Some(authority) = reference.strip_prefix("//") {
        return join_url(base, &format!("{}://{authority}", page.scheme));
    }
    let scheme_like = reference.split(['/', '?']).next().is_some_and(|first| first.contains(':'));
    if scheme_like {
        return None;
    }
    let root = format!("{}://{credentials}{}", page.scheme, page.host);
    let page_path = page.rest.split('?').next().unwrap_or_default();
    if reference.is_empty() {
        return Some(format!("{root}{}", page.rest));
    }
    if reference.starts_with('?') {
        return Some(format!("{root}{page_path}{reference}"));
    }
    let (path, query) = match reference.split_once('?') {
        Some((path, query)) => (path, format!("?{query}")),
        None => (reference, String::new()),
    };
    let full = if path.starts_with('/') {
        path.to_owned()
    } else {
        let folder = page_path.rfind('/').map_or("/", |slash| &page_path[..=slash]);
        format!("{folder}{path}")
    };
    Some(format!("{root}{}{query}", without_dots(&full)))
}

/// `path` with `.` and `..` resolved; it never climbs above the root.
fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    let last = parts.len().saturating_sub(1);
    for (i, part) in parts.iter().enumerate() {
        match *part {
            "." | ".." => {
                if *part == ".." {
                    kept.pop();
                }
                if i == last {
                    kept.push("");
                }
            }
            other => kept.push(other),
        }
    }
    format!("/{}", kept.join("/"))
}

/// Percent-decoded text, as credentials in an address are written.
pub(super) fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let pair = bytes.get(i + 1..i + 3).and_then(|p| std::str::from_utf8(p).ok());
        match pair.and_then(|p| u8::from_str_radix(p, 16).ok()) {
            Some(byte) if bytes[i] == b'%' => {
                out.push(byte);
                i += 3;
            }
            _ => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_joined() {
        let base = "https://u:p@h.test:8443/simple/modal/?x=1";
        let cases = [
            ("https://files.test/a.whl#sha256=1", "https://files.test/a.whl"),
            ("https://h.test:8443/a.whl", "https://u:p@h.test:8443/a.whl"),
            ("//other.test/a", "https://other.test/a"),
            ("/packages/a.whl", "https://u:p@h.test:8443/packages/a.whl"),
            ("a.whl?y=2", "https://u:p@h.test:8443/simple/modal/a.whl?y=2"),
            ("../../packages/a.whl#f", "https://u:p@h.test:8443/packages/a.whl"),
            ("../../../../a", "https://u:p@h.test:8443/a"),
            (".", "https://u:p@h.test:8443/simple/modal/"),
            ("?z", "https://u:p@h.test:8443/simple/modal/?z"),
        ];
        for (reference, wanted) in cases {
            assert_eq!(join_url(base, reference).as_deref(), Some(wanted), "{reference}");
        }
        assert_eq!(join_url(base, "mailto:x@y"), None);
        assert_eq!(join_url("ftp://h/", "a"), None);
    }

    #[test]
    fn credentials_are_kept_out_of_messages() {
        assert_eq!(redact_url("https://u:p%40@h/x?y"), "https://***@h/x?y");
        assert_eq!(redact_url("https://h/x@y"), "https://h/x@y");
        assert_eq!(percent_decode("a%40b%zz%"), "a@b%zz%");
    }
}
