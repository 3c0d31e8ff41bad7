//! A small scanner for Rust source: blanks comments and literals so that rules can look at code alone, and
//! finds functions with their lengths. It knows the language's lexical rules, not its grammar.

/// A source file seen as lines, once as written and once with comments and literals blanked.
pub(crate) struct Source {
    pub lines: Vec<String>,
    /// Same number of lines and columns; comments, strings and characters are spaces.
    pub code: Vec<String>,
    /// Whether the line lies in a `#[cfg(test)]` module.
    pub in_tests: Vec<bool>,
}

/// A function with a body.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Function {
    pub name: String,
    /// First line, counted from one.
    pub line: usize,
    /// Lines from the one with `fn` to the one with the closing brace.
    pub length: usize,
}

impl Source {
    pub(crate) fn new(text: &str) -> Self {
        let blanked = blank(text);
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let code: Vec<String> = blanked.lines().map(str::to_owned).collect();
        let in_tests = mark_tests(&lines, &code);
        Self { lines, code, in_tests }
    }

    /// All functions with a body, in order.
    pub(crate) fn functions(&self) -> Vec<Function> {
        let mut found = Vec::new();
        for (at, line) in self.code.iter().enumerate() {
            let Some(name) = function_name(line) else { continue };
            if let Some(end) = self.body_end(at) {
                found.push(Function { name, line: at + 1, length: end - at + 1 });
            }
        }
        found
    }

    /// The line of the brace that closes the first body opened at or after line `start`; nothing if a
    /// semicolon comes first, as in a trait.
    fn body_end(&self, start: usize) -> Option<usize> {
        let (mut depth, mut brackets, mut opened) = (0usize, 0usize, false);
        for (at, line) in self.code.iter().enumerate().skip(start) {
            for letter in line.chars() {
                match letter {
                    '(' | '[' => brackets += 1,
                    ')' | ']' => brackets = brackets.saturating_sub(1),
                    '{' => {
                        depth += 1;
                        opened = true;
                    }
                    '}' => {
                        depth = depth.saturating_sub(1);
                        if opened && depth == 0 {
                            return Some(at);
                        }
                    }
                    ';' if !opened && brackets == 0 => return None,
                    _ => {}
                }
            }
        }
        None
    }
}

/// The name after `fn`, if the line starts a function.
fn function_name(code: &str) -> Option<String> {
    let at = code.find("fn ")?;
    let before = code[..at].trim();
    let modifiers = ["pub", "async", "const", "unsafe", "extern", "default"];
    let plain = before
        .split_whitespace()
        .all(|word| modifiers.iter().any(|m| word == *m || word.starts_with("pub(")) || word.ends_with(')'));
    if !plain {
        return None;
    }
    let name: String =
        code[at + 3..].trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (!name.is_empty()).then_some(name)
}

/// For each line, whether it belongs to a module under `#[cfg(test)]`.
fn mark_tests(lines: &[String], code: &[String]) -> Vec<bool> {
    let mut marks = vec![false; lines.len()];
    let mut at = 0;
    while at < code.len() {
        if code[at].trim() != "#[cfg(test)]" {
            at += 1;
            continue;
        }
        let mut depth = 0usize;
        let mut opened = false;
        let first = at;
        while at < code.len() {
            for letter in code[at].chars() {
                match letter {
                    '{' => {
                        depth += 1;
                        opened = true;
                    }
                    '}' => depth = depth.saturating_sub(1),
                    _ => {}
                }
            }
            at += 1;
            let plain_item = !opened && at > first + 1 && code[at - 1].contains(';');
            if (opened && depth == 0) || plain_item {
                break;
            }
        }
        for mark in &mut marks[first..at] {
            *mark = true;
        }
    }
    marks
}

/// `text` with comments, strings and character literals replaced by spaces; line breaks stay.
fn blank(text: &str) -> String {
    let letters: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < letters.len() {
        let end = literal_end(&letters, at);
        if end > at {
            out.extend(letters[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            at = end;
        } else {
            out.push(letters[at]);
            at += 1;
        }
    }
    out
}

/// Where the comment or literal that starts at `at` ends; `at` itself if none starts there.
fn literal_end(letters: &[char], at: usize) -> usize {
    let next = letters.get(at + 1).copied();
    let word_before = at > 0 && (letters[at - 1].is_alphanumeric() || letters[at - 1] == '_');
    match letters[at] {
        '/' if next == Some('/') => find_line_end(letters, at),
        '/' if next == Some('*') => block_comment_end(letters, at),
        '"' => string_end(letters, at),
        'r' | 'b' | 'c' if !word_before => prefixed_string_end(letters, at),
        '\'' => char_end(letters, at),
        _ => at,
    }
}

fn find_line_end(letters: &[char], at: usize) -> usize {
    letters[at..].iter().position(|c| *c == '\n').map_or(letters.len(), |n| at + n)
}

fn block_comment_end(letters: &[char], at: usize) -> usize {
    let (mut depth, mut i) = (0usize, at);
    while i < letters.len() {
        match (letters[i], letters.get(i + 1)) {
            ('/', Some('*')) => {
                depth += 1;
                i += 2;
            }
            ('*', Some('/')) => {
                depth -= 1;
                i += 2;
                if depth == 0 {
                    return i;
                }
            }
            _ => i += 1,
        }
    }
    letters.len()
}

fn string_end(letters: &[char], at: usize) -> usize {
    let mut i = at + 1;
    while i < letters.len() {
        match letters[i] {
            '\\' => i += 2,
            '"' => return i + 1,
            _ => i += 1,
        }
    }
    letters.len()
}

/// Ends of `r"…"`, `r#"…"#`, `b"…"`, `br"…"`, `c"…"` and `b'…'`; `at` if it is a plain word.
fn prefixed_string_end(letters: &[char], at: usize) -> usize {
    let mut i = at;
    let mut raw = false;
    while i < letters.len() && i < at + 2 && matches!(letters[i], 'r' | 'b' | 'c') {
        raw |= letters[i] == 'r';
        i += 1;
    }
    let hashes = letters[i.min(letters.len())..].iter().take_while(|c| **c == '#').count();
    let quote = i + hashes;
    match letters.get(quote) {
        Some('"') if raw => {
            let closing: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
            let rest = &letters[quote + 1..];
            rest.windows(closing.len())
                .position(|w| w == closing.as_slice())
                .map_or(letters.len(), |n| quote + 1 + n + closing.len())
        }
        Some('"') if hashes == 0 => string_end(letters, quote),
        Some('\'') if hashes == 0 && letters[at] == 'b' => char_end(letters, quote),
        _ => at,
    }
}

/// The end of a character literal; `at` if it is a lifetime.
fn char_end(letters: &[char], at: usize) -> usize {
    match (letters.get(at + 1), letters.get(at + 2)) {
        (Some('\\'), Some(_)) => {
            let rest = &letters[at + 3..];
            rest.iter().position(|c| *c == '\'').map_or(letters.len(), |n| at + 4 + n)
        }
        (Some(_), Some('\'')) => at + 3,
        _ => at,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blanked() {
        let cases = [
            ("let a = \"todo!()\"; b", "let a =          ; b"),
            ("x // unsafe\ny", "x          \ny"),
            ("/* a /* b */ c */ d", "                  d"),
            ("r#\"a\"b\"# e", "           e"),
            ("'{' f", "    f"),
            ("'\\'' g", "     g"),
            ("fn x<'a>(b: &'a str)", "fn x<'a>(b: &'a str)"),
        ];
        for (given, wanted) in cases {
            let blanked = blank(given);
            assert_eq!(
                blanked.split_whitespace().collect::<Vec<_>>(),
                wanted.split_whitespace().collect::<Vec<_>>()
            );
            assert_eq!(blanked.matches('\n').count(), given.matches('\n').count());
        }
    }

    #[test]
    fn functions_are_found_with_their_lengths() {
        let text = "trait T {\n    fn a(&self) -> [u8; 4];\n    fn b(&self) {\n        c()\n    }\n}\npub(crate) async fn d<'a>(\n    x: &'a str,\n) -> u8 {\n    let s = \"}\";\n    1\n}\n";
        let found = Source::new(text).functions();
        assert_eq!(
            found,
            vec![
                Function { name: "b".into(), line: 3, length: 3 },
                Function { name: "d".into(), line: 7, length: 6 },
            ]
        );
    }

    #[test]
    fn test_modules_are_marked() {
        let source = Source::new("fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\nfn c() {}\n");
        assert_eq!(source.in_tests, vec![false, true, true, true, true, false]);
    }
}
