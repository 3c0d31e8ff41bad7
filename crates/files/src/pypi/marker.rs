//! Environment markers of PEP 508: `python_version < "3.11" and sys_platform == "linux"`.

use super::{Specifiers, Version};

/// How deep parentheses may go.
const DEPTH_MAX: usize = 32;

/// What the markers ask about: a CPython on Linux.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarkerEnv {
    /// The minor version of the interpreter, the 11 of 3.11.
    pub python_minor: u8,
    /// `x86_64` or `aarch64`.
    pub machine: String,
}

/// A marker that was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Marker {
    /// Both must hold.
    And(Box<Marker>, Box<Marker>),
    /// One must hold.
    Or(Box<Marker>, Box<Marker>),
    /// A comparison of two values.
    Compare {
        /// A variable's name or a literal.
        left: Value,
        /// `==`, `<`, `in`, …
        operator: String,
        /// A variable's name or a literal.
        right: Value,
    },
}

/// One side of a comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A name like `python_version`.
    Variable(String),
    /// A quoted text.
    Literal(String),
}

impl Marker {
    /// Reads a marker; the error says what was not understood.
    pub fn parse(text: &str) -> Result<Self, String> {
        let tokens = tokens_of(text)?;
        let mut parser = Parser { tokens: &tokens, at: 0 };
        let marker = parser.either(0)?;
        match parser.tokens.get(parser.at) {
            None => Ok(marker),
            Some(rest) => Err(format!("unexpected '{}' in the marker '{text}'", rest.text)),
        }
    }

    /// Whether the marker holds for this interpreter, with no extra asked for.
    pub fn holds(&self, env: &MarkerEnv) -> bool {
        match self {
            Marker::And(a, b) => a.holds(env) && b.holds(env),
            Marker::Or(a, b) => a.holds(env) || b.holds(env),
            Marker::Compare { left, operator, right } => compare(left, operator, right, env),
        }
    }
}

fn compare(left: &Value, operator: &str, right: &Value, env: &MarkerEnv) -> bool {
    let is_version = |v: &Value| {
        matches!(v, Value::Variable(name) if matches!(name.as_str(),
            "python_version" | "python_full_version" | "implementation_version"))
    };
    let versions = is_version(left) || is_version(right);
    let (left, right) = (left.get(env), right.get(env));
    if versions && !matches!(operator, "in" | "not in") {
        let condition = format!("{operator}{right}").parse::<Specifiers>();
        if let (Ok(version), Ok(condition)) = (left.parse::<Version>(), condition) {
            return condition.admits(&version);
        }
    }
    match operator {
        "==" | "===" => left == right,
        "!=" => left != right,
        "<" => left < right,
        "<=" => left <= right,
        ">" => left > right,
        ">=" => left >= right,
        "in" => right.contains(&left),
        "not in" => !right.contains(&left),
        _ => false,
    }
}

impl Value {
    fn get(&self, env: &MarkerEnv) -> String {
        let name = match self {
            Value::Literal(text) => return text.clone(),
            Value::Variable(name) => name.as_str(),
        };
        match name {
            "python_version" => format!("3.{}", env.python_minor),
            // The last number is not known; the pins of the client never ask for it.
            "python_full_version" | "implementation_version" => format!("3.{}.0", env.python_minor),
            "os_name" => "posix".into(),
            "sys_platform" => "linux".into(),
            "platform_system" => "Linux".into(),
            "platform_machine" => env.machine.clone(),
            "platform_python_implementation" => "CPython".into(),
            "implementation_name" => "cpython".into(),
            // No extra is asked for, and the rest describes a kernel that is not known here.
            _ => String::new(),
        }
    }
}

struct Token {
    text: String,
    quoted: bool,
}

fn tokens_of(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let (length, skip, quoted) = match first {
            '"' | '\'' => {
                let end =
                    rest[1..].find(first).ok_or_else(|| format!("an open quote in the marker '{text}'"))?;
                (end, 1, true)
            }
            '(' | ')' => (1, 0, false),
            '<' | '>' | '=' | '!' | '~' => {
                (rest.find(|c| !"<>=!~".contains(c)).unwrap_or(rest.len()), 0, false)
            }
            c if c.is_ascii_alphabetic() || c == '_' => {
                let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '.');
                (end.unwrap_or(rest.len()), 0, false)
            }
            other => return Err(format!("unexpected '{other}' in the marker '{text}'")),
        };
        tokens.push(Token { text: rest[skip..skip + length].to_owned(), quoted });
        rest = rest[length + 2 * skip..].trim_start();
    }
    Ok(tokens)
}

struct Parser<'a> {
    tokens: &'a [Token],
    at: usize,
}

impl Parser<'_> {
    fn take(&mut self, word: &str) -> bool {
        let found = self.tokens.get(self.at).is_some_and(|t| !t.quoted && t.text == word);
        self.at += usize::from(found);
        found
    }

    fn next(&mut self) -> Result<&Token, String> {
        let token = self.tokens.get(self.at).ok_or("the marker ends early")?;
        self.at += 1;
        Ok(token)
    }

    fn either(&mut self, depth: usize) -> Result<Marker, String> {
        let mut left = self.both(depth)?;
        while self.take("or") {
            left = Marker::Or(Box::new(left), Box::new(self.both(depth)?));
        }
        Ok(left)
    }

    fn both(&mut self, depth: usize) -> Result<Marker, String> {
        let mut left = self.single(depth)?;
        while self.take("and") {
            left = Marker::And(Box::new(left), Box::new(self.single(depth)?));
        }
        Ok(left)
    }

    fn single(&mut self, depth: usize) -> Result<Marker, String> {
        if depth > DEPTH_MAX {
            return Err("the marker is nested too deeply".into());
        }
        if self.take("(") {
            let inner = self.either(depth + 1)?;
            return if self.take(")") { Ok(inner) } else { Err("a parenthesis is not closed".into()) };
        }
        let left = self.value()?;
        let mut operator = self.next()?.text.clone();
        if operator == "not" {
            operator = format!("not {}", self.next()?.text);
        }
        let known = ["==", "===", "!=", "<", "<=", ">", ">=", "~=", "in", "not in"];
        if !known.contains(&operator.as_str()) {
            return Err(format!("'{operator}' is not a comparison"));
        }
        Ok(Marker::Compare { left, operator, right: self.value()? })
    }

    fn value(&mut self) -> Result<Value, String> {
        let token = self.next()?;
        let text = token.text.clone();
        if token.quoted {
            return Ok(Value::Literal(text));
        }
        let is_name = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if is_name { Ok(Value::Variable(text)) } else { Err(format!("'{text}' is not a value")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_hold_or_not() {
        let env = MarkerEnv { python_minor: 11, machine: "x86_64".into() };
        for (text, wanted) in [
            ("python_version < \"3.11\"", false),
            ("python_version<'3.9'", false),
            ("python_version >= '3.9'", true),
            ("python_version == \"3.14\"", false),
            ("\"3.10\" <= python_version", true),
            ("python_version ~= '3.8'", true),
            ("sys_platform == 'linux' and python_version > '3.10'", true),
            ("sys_platform == 'win32' or (os_name == 'posix' and platform_machine in 'x86_64 arm64')", true),
            ("extra == 'oauth'", false),
            ("sys_platform not in 'win32 darwin'", true),
            ("python_version < '3' or python_version < '3' and os_name == 'posix'", false),
        ] {
            assert_eq!(Marker::parse(text).unwrap().holds(&env), wanted, "{text}");
        }
        for bad in ["", "python_version", "a ==", "(a == 'b'", "a == 'b' c", "a = 'b'", "a == 'b", "1 == a"] {
            assert!(Marker::parse(bad).is_err(), "{bad}");
        }
        assert!(Marker::parse(&"(".repeat(1000)).is_err());
    }
}
