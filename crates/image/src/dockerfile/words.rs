//! Words: splitting with quotes respected, and the expansion of `$VAR`, `${VAR:-x}` and their kin.

use thiserror::Error;

/// Depth of `${a:-${b:-...}}` at most.
const NESTING_MAX: usize = 16;
/// Characters of one expanded word at most.
const EXPANDED_MAX: usize = 1024 * 1024;

/// Why a word cannot be expanded.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ExpandError {
    /// A quote is opened and never closed.
    #[error("a {0} is never closed")]
    Unclosed(char),
    /// `${…` is never closed, or is nested too deep.
    #[error("bad substitution in {0:?}")]
    BadSubstitution(String),
    /// `${VAR:?message}` of a variable that is not set.
    #[error("{name}: {message}")]
    Required {
        /// The variable.
        name: String,
        /// The Dockerfile's own message.
        message: String,
    },
    /// The result is longer than we allow.
    #[error("the value is longer than {EXPANDED_MAX} characters")]
    TooLong,
}

/// Splits at blanks outside of quotes; quotes and escapes stay in the words.
pub(super) fn raw_words(text: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote: Option<char> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c == escape && quote != Some('\'') {
            word.push(c);
            word.extend(chars.next());
        } else if let Some(open) = quote {
            word.push(c);
            if c == open {
                quote = None;
            }
        } else if c == '"' || c == '\'' {
            quote = Some(c);
            word.push(c);
        } else if c.is_whitespace() {
            if !word.is_empty() {
                words.push(std::mem::take(&mut word));
            }
        } else {
            word.push(c);
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// Expands variables of a raw word and removes its quotes.
pub fn expand(
    word: &str,
    escape: char,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> Result<String, ExpandError> {
    let chars: Vec<char> = word.chars().collect();
    let mut reader = Reader { chars: &chars, at: 0, escape, lookup, depth: 0 };
    reader.word(None)
}

/// Expands each of `words`.
pub fn expand_words(
    words: &[String],
    escape: char,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<String>, ExpandError> {
    words.iter().map(|w| expand(w, escape, lookup)).collect()
}

/// Expands variables only, leaving quotes as they are: the content of a here-document.
pub(crate) fn expand_text(
    text: &str,
    escape: char,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> Result<String, ExpandError> {
    let chars: Vec<char> = text.chars().collect();
    let mut reader = Reader { chars: &chars, at: 0, escape, lookup, depth: 0 };
    let mut out = String::new();
    while let Some(c) = reader.next() {
        if c == escape && matches!(reader.peek(), Some(n) if n == '$' || n == escape) {
            out.extend(reader.next());
        } else if c == '$' {
            out.push_str(&reader.dollar()?);
        } else {
            out.push(c);
        }
        if out.len() > EXPANDED_MAX {
            return Err(ExpandError::TooLong);
        }
    }
    Ok(out)
}

struct Reader<'a> {
    chars: &'a [char],
    at: usize,
    escape: char,
    lookup: &'a dyn Fn(&str) -> Option<String>,
    depth: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek();
        self.at += usize::from(c.is_some());
        c
    }

    /// Reads to the end, or to `stop` outside of quotes (which is consumed).
    fn word(&mut self, stop: Option<char>) -> Result<String, ExpandError> {
        let mut out = String::new();
        while let Some(c) = self.next() {
            if Some(c) == stop {
                return Ok(out);
            }
            match c {
                '\'' => self.single_quoted(&mut out)?,
                '"' => self.double_quoted(&mut out)?,
                '$' => out.push_str(&self.dollar()?),
                c if c == self.escape => match self.next() {
                    Some(n) => out.push(n),
                    None => out.push(c),
                },
                c => out.push(c),
            }
            if out.len() > EXPANDED_MAX {
                return Err(ExpandError::TooLong);
            }
        }
        match stop {
            Some(_) => Err(ExpandError::BadSubstitution(self.chars.iter().collect())),
            None => Ok(out),
        }
    }

    fn single_quoted(&mut self, out: &mut String) -> Result<(), ExpandError> {
        loop {
            match self.next() {
                Some('\'') => return Ok(()),
                Some(c) => out.push(c),
                None => return Err(ExpandError::Unclosed('\'')),
            }
        }
    }

    fn double_quoted(&mut self, out: &mut String) -> Result<(), ExpandError> {
        loop {
            match self.next() {
                Some('"') => return Ok(()),
                Some('$') => out.push_str(&self.dollar()?),
                Some(c) if c == self.escape => match self.next() {
                    Some(n) if n == '"' || n == '$' || n == self.escape => out.push(n),
                    Some(n) => out.extend([c, n]),
                    None => return Err(ExpandError::Unclosed('"')),
                },
                Some(c) => out.push(c),
                None => return Err(ExpandError::Unclosed('"')),
            }
        }
    }

    /// After a `$`.
    fn dollar(&mut self) -> Result<String, ExpandError> {
        if self.peek() == Some('{') {
            self.at += 1;
            return self.braced();
        }
        let name = self.name();
        if name.is_empty() {
            return Ok("$".into());
        }
        Ok((self.lookup)(&name).unwrap_or_default())
    }

    fn name(&mut self) -> String {
        let mut name = String::new();
        match self.peek() {
            Some(c) if c.is_ascii_digit() || matches!(c, '@' | '*' | '#') => {
                self.at += 1;
                return c.to_string();
            }
            _ => {}
        }
        while let Some(c) = self.peek().filter(|c| c.is_ascii_alphanumeric() || *c == '_') {
            name.push(c);
            self.at += 1;
        }
        name
    }

    /// After `${`.
    fn braced(&mut self) -> Result<String, ExpandError> {
        let bad = |chars: &[char]| ExpandError::BadSubstitution(chars.iter().collect());
        self.depth += 1;
        if self.depth > NESTING_MAX {
            return Err(bad(self.chars));
        }
        let name = self.name();
        if name.is_empty() {
            return Err(bad(self.chars));
        }
        let value = (self.lookup)(&name);
        let mut operator = self.next();
        let mut colon = false;
        if operator == Some(':') {
            colon = true;
            operator = self.next();
        }
        let set = value.as_ref().is_some_and(|v| !(colon && v.is_empty()));
        let result = match operator {
            Some('}') if !colon => Ok(value.unwrap_or_default()),
            Some('-') => {
                let word = self.word(Some('}'))?;
                Ok(if set { value.unwrap_or_default() } else { word })
            }
            Some('+') => {
                let word = self.word(Some('}'))?;
                Ok(if set { word } else { String::new() })
            }
            Some('?') => {
                let message = self.word(Some('}'))?;
                if set { Ok(value.unwrap_or_default()) } else { Err(ExpandError::Required { name, message }) }
            }
            Some(side @ ('#' | '%')) if !colon => {
                let longest = self.peek() == Some(side);
                self.at += usize::from(longest);
                let pattern = self.word(Some('}'))?;
                Ok(trim(&value.unwrap_or_default(), &pattern, side == '#', longest))
            }
            _ => Err(bad(self.chars)),
        };
        self.depth -= 1;
        result
    }
}

/// `${v#pattern}` and its kin.
fn trim(value: &str, pattern: &str, prefix: bool, longest: bool) -> String {
    let ends = value.char_indices().map(|(i, _)| i).chain([value.len()]);
    let mut cuts: Vec<usize> = ends
        .filter(|&cut| {
            let part = if prefix { &value[..cut] } else { &value[cut..] };
            crate::glob::matches_text(pattern, part)
        })
        .collect();
    // The longest match is the last cut of a prefix, and the first of a suffix.
    if prefix == longest {
        cuts.reverse();
    }
    match cuts.first() {
        Some(&cut) if prefix => value[cut..].to_owned(),
        Some(&cut) => value[..cut].to_owned(),
        None => value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(name: &str) -> Option<String> {
        match name {
            "A" => Some("one".into()),
            "EMPTY" => Some(String::new()),
            "FILE" => Some("a.tar.gz".into()),
            _ => None,
        }
    }

    #[test]
    fn expands() {
        let table = [
            ("plain", "plain"),
            ("$A", "one"),
            ("${A}x", "onex"),
            ("$A$A-$B", "oneone-"),
            ("'$A'", "$A"),
            ("\"$A b\"", "one b"),
            ("\\$A", "$A"),
            ("\"\\$A \\x\"", "$A \\x"),
            ("${B:-two}", "two"),
            ("${B:-${A}}", "one"),
            ("${EMPTY:-x}", "x"),
            ("${EMPTY-x}", ""),
            ("${A:+yes}${B:+no}", "yes"),
            ("${FILE%.gz}", "a.tar"),
            ("${FILE%%.*}", "a"),
            ("${FILE#*.}", "tar.gz"),
            ("${FILE##*.}", "gz"),
            ("a\\ b", "a b"),
            ("$", "$"),
            ("$.", "$."),
            ("/x:$A", "/x:one"),
        ];
        for (word, want) in table {
            assert_eq!(expand(word, '\\', &lookup).as_deref(), Ok(want), "{word}");
        }
        for bad in ["'a", "\"a", "${", "${A", "${}", "${A:}", "${B:?needed}", "${A^}"] {
            assert!(expand(bad, '\\', &lookup).is_err(), "{bad}");
        }
    }

    #[test]
    fn splits() {
        assert_eq!(raw_words("a 'b c'  d\\ e \"f \\\" g\"", '\\'), ["a", "'b c'", "d\\ e", "\"f \\\" g\""]);
    }

    #[test]
    fn expands_text_without_touching_quotes() {
        assert_eq!(expand_text("'$A' \\$A \"x\"\n", '\\', &lookup).as_deref(), Ok("'one' $A \"x\"\n"));
    }
}
