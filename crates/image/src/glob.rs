//! Shell patterns (`*`, `?`, `[a-z]`, `**`) for COPY sources and `${v%pattern}`.

/// Whether `text` matches `pattern`, where `*` also matches `/`.
pub(crate) fn matches_text(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    matches_chars(&pattern, &text)
}

/// Whether `path` matches `pattern`, segment by segment; `**` is any number of segments.
pub(crate) fn matches_path(pattern: &str, path: &str) -> bool {
    let pattern: Vec<&str> = pattern.split('/').filter(|s| !s.is_empty()).collect();
    let path: Vec<&str> = path.split('/').filter(|s| !s.is_empty()).collect();
    // One row per pattern segment: which prefixes of the path it can have consumed.
    let mut reach = vec![false; path.len() + 1];
    reach[0] = true;
    for segment in pattern {
        let mut next = vec![false; path.len() + 1];
        if segment == "**" {
            let first = reach.iter().position(|r| *r).unwrap_or(path.len() + 1);
            for slot in next.iter_mut().skip(first) {
                *slot = true;
            }
        } else {
            for at in 0..path.len() {
                next[at + 1] = reach[at] && matches_text(segment, path[at]);
            }
        }
        reach = next;
    }
    reach[path.len()]
}

/// Whether the text has a character that makes it a pattern.
pub(crate) fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

/// Greedy matching with one point to come back to: linear in practice, never exponential.
fn matches_chars(pattern: &[char], text: &[char]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        let step = match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
                continue;
            }
            Some('?') => Some(1),
            Some('[') => class(&pattern[p..], text[t]),
            Some('\\') if p + 1 < pattern.len() => (pattern[p + 1] == text[t]).then_some(2),
            Some(c) => (*c == text[t]).then_some(1),
            None => None,
        };
        match (step, star) {
            (Some(width), _) => {
                p += width;
                t += 1;
            }
            (None, Some((star_p, star_t))) => {
                star = Some((star_p, star_t + 1));
                p = star_p + 1;
                t = star_t + 1;
            }
            (None, None) => return false,
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// `[...]` at the start of `pattern`: its width if `c` is in it.
fn class(pattern: &[char], c: char) -> Option<usize> {
    let mut at = 1;
    let negated = matches!(pattern.get(at), Some('!' | '^'));
    at += usize::from(negated);
    let start = at;
    let mut found = false;
    loop {
        let low = *pattern.get(at)?;
        if low == ']' && at > start {
            return (found != negated).then_some(at + 1);
        }
        if pattern.get(at + 1) == Some(&'-') && pattern.get(at + 2).is_some_and(|h| *h != ']') {
            found |= (low..=pattern[at + 2]).contains(&c);
            at += 3;
        } else {
            found |= low == c;
            at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches() {
        let table = [
            ("*", "abc", true),
            ("a*c", "abbc", true),
            ("a*c", "abbd", false),
            ("?b", "ab", true),
            ("[a-c]x", "bx", true),
            ("[!a-c]x", "bx", false),
            ("[", "[", false),
            ("**a", "bba", true),
            ("", "", true),
            ("", "a", false),
        ];
        for (pattern, text, want) in table {
            assert_eq!(matches_text(pattern, text), want, "{pattern} {text}");
        }
        let paths = [
            ("*.py", "a.py", true),
            ("*.py", "d/a.py", false),
            ("**/*.py", "d/e/a.py", true),
            ("**/*.py", "a.py", true),
            ("d/*", "d/a", true),
            ("d/**", "d/a/b", true),
            ("d/**", "e/a", false),
        ];
        for (pattern, path, want) in paths {
            assert_eq!(matches_path(pattern, path), want, "{pattern} {path}");
        }
    }
}
