//! Physical lines to logical ones: directives, comments, blank lines, continuations, here-documents.

use super::DockerfileError;
use super::instruction::Heredoc;
use super::words::raw_words;

/// Bytes of Dockerfile text that we read at most.
const TEXT_MAX: usize = 4 * 1024 * 1024;
/// Here-documents of one instruction at most.
const HEREDOCS_MAX: usize = 64;

/// A logical line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// Number of its first physical line, from 1.
    pub number: usize,
    /// Continuations joined.
    pub text: String,
    /// Here-documents that it opens.
    pub heredocs: Vec<Heredoc>,
}

/// The text's escape character and its logical lines.
pub(super) fn logical_lines(text: &str) -> Result<(char, Vec<Line>), DockerfileError> {
    if text.len() > TEXT_MAX {
        return Err(error(1, "", format!("longer than {TEXT_MAX} bytes")));
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let physical: Vec<&str> = text.split('\n').map(|l| l.strip_suffix('\r').unwrap_or(l)).collect();
    let escape = escape_directive(&physical)?;
    let mut lines = Vec::new();
    let mut at = 0;
    while at < physical.len() {
        let first = physical[at].trim_start();
        if first.is_empty() || first.starts_with('#') {
            at += 1;
            continue;
        }
        let number = at + 1;
        let (joined, next) = join(&physical, at, escape);
        at = next;
        let mut line = Line { number, text: joined, heredocs: Vec::new() };
        at = read_heredocs(&mut line, &physical, at, escape)?;
        lines.push(line);
    }
    Ok((escape, lines))
}

fn error(line: usize, text: &str, message: impl Into<String>) -> DockerfileError {
    DockerfileError { line, message: message.into(), text: text.to_owned() }
}

/// `# escape=` before anything else.
fn escape_directive(physical: &[&str]) -> Result<char, DockerfileError> {
    for (index, line) in physical.iter().enumerate() {
        let Some(comment) = line.trim().strip_prefix('#') else { break };
        let Some((key, value)) = comment.split_once('=') else { break };
        let key = key.trim();
        if key.is_empty() || !key.chars().all(|c| c.is_ascii_alphanumeric()) {
            break;
        }
        if key.eq_ignore_ascii_case("escape") {
            return match value.trim() {
                "\\" => Ok('\\'),
                "`" => Ok('`'),
                other => Err(error(
                    index + 1,
                    line,
                    format!("the escape character must be \\ or `, not {other:?}"),
                )),
            };
        }
    }
    Ok('\\')
}

/// Joins continuations from `at`; comments and blank lines between them are dropped.
fn join(physical: &[&str], mut at: usize, escape: char) -> (String, usize) {
    let mut text = String::new();
    let mut first = true;
    while at < physical.len() {
        let line = if first { physical[at].trim_start() } else { physical[at] };
        if !first && (line.trim().is_empty() || line.trim_start().starts_with('#')) {
            at += 1;
            continue;
        }
        first = false;
        at += 1;
        match continued(line, escape) {
            Some(part) => text.push_str(part),
            None => {
                text.push_str(line.trim_end());
                return (text, at);
            }
        }
    }
    (text, at)
}

/// The line without its continuation mark, if it has one.
fn continued(line: &str, escape: char) -> Option<&str> {
    let body = line.trim_end_matches([' ', '\t']).strip_suffix(escape)?;
    // An escaped escape character is itself, not a continuation.
    if body.ends_with(escape) { None } else { Some(body) }
}

/// Reads the here-documents that RUN, COPY and ADD open.
fn read_heredocs(
    line: &mut Line,
    physical: &[&str],
    mut at: usize,
    escape: char,
) -> Result<usize, DockerfileError> {
    let keyword = line.text.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
    if !matches!(keyword.as_str(), "RUN" | "COPY" | "ADD") {
        return Ok(at);
    }
    for word in raw_words(&line.text, escape) {
        let Some(mut heredoc) = opening(&word) else { continue };
        if line.heredocs.len() == HEREDOCS_MAX {
            return Err(error(line.number, &line.text, format!("more than {HEREDOCS_MAX} here-documents")));
        }
        let mut closed = false;
        while at < physical.len() {
            let raw = physical[at];
            at += 1;
            let candidate = if heredoc.strip_tabs { raw.trim_start_matches('\t') } else { raw };
            if candidate == heredoc.delimiter {
                closed = true;
                break;
            }
            heredoc.content.push_str(candidate);
            heredoc.content.push('\n');
        }
        if !closed {
            let message = format!("the here-document {} is never closed", heredoc.delimiter);
            return Err(error(line.number, &line.text, message));
        }
        line.heredocs.push(heredoc);
    }
    Ok(at)
}

/// `[n]<<[-]WORD`, as a whole word.
fn opening(word: &str) -> Option<Heredoc> {
    let rest = word.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix("<<")?;
    let (strip_tabs, rest) = match rest.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    if rest.is_empty() || rest.contains('<') {
        return None;
    }
    let bare: String = rest.chars().filter(|c| !matches!(c, '"' | '\'' | '\\')).collect();
    if bare.is_empty()
        || !bare.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/'))
    {
        return None;
    }
    Some(Heredoc { expand: bare == rest, delimiter: bare, strip_tabs, content: String::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str) -> Vec<String> {
        logical_lines(text).unwrap().1.into_iter().map(|l| l.text).collect()
    }

    #[test]
    fn joins_continuations_and_drops_comments_between() {
        assert_eq!(
            texts("RUN a \\\n# note\n\n  b \\ \n  && c\nENV x=1"),
            ["RUN a   b   && c", "ENV x=1"].map(str::to_owned)
        );
        assert_eq!(texts("RUN echo a\\\\\nRUN b"), ["RUN echo a\\\\", "RUN b"].map(str::to_owned));
        assert_eq!(texts("RUN a \\"), ["RUN a "].map(str::to_owned));
        assert_eq!(texts("\r\n  FROM x\r\n"), ["FROM x"].map(str::to_owned));
    }

    #[test]
    fn reads_the_escape_directive() {
        let (escape, lines) = logical_lines("# syntax=docker/dockerfile:1\n# escape=`\nRUN a `\nb").unwrap();
        assert_eq!((escape, lines[0].text.as_str()), ('`', "RUN a b"));
        assert_eq!(logical_lines("# note\n# escape=`\nRUN a").unwrap().0, '\\');
        assert!(logical_lines("# escape=x\n").is_err());
    }

    #[test]
    fn reads_heredocs() {
        let (_, lines) = logical_lines("RUN cat <<A >x 3<<-'B'\n1\nA\n\t$2\n\tB\nENV a=<<C\n").unwrap();
        let docs = &lines[0].heredocs;
        assert_eq!((docs[0].content.as_str(), docs[0].expand), ("1\n", true));
        assert_eq!((docs[1].content.as_str(), docs[1].expand, docs[1].strip_tabs), ("$2\n", false, true));
        assert!(lines[1].heredocs.is_empty());
        assert!(logical_lines("RUN cat <<<word").unwrap().1[0].heredocs.is_empty());
        assert_eq!(logical_lines("X\nRUN cat <<E\nno end").unwrap_err().line, 2);
    }
}
