//! Logical lines to stages of instructions.

use super::DockerfileError;
use super::instruction::{
    CopyInstruction, CopySourceText, Form, Heredoc, Instruction, MountFlag, Numbered, RunInstruction, Stage,
};
use super::lines::{Line, logical_lines};
use super::words::raw_words;

/// Stages of one file at most.
const STAGES_MAX: usize = 128;
/// Instructions of one file at most.
const INSTRUCTIONS_MAX: usize = 10_000;

/// A Dockerfile as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dockerfile {
    /// The escape character.
    pub escape: char,
    /// ARGs before the first FROM.
    pub global_args: Vec<(String, Option<String>)>,
    /// At least one.
    pub stages: Vec<Stage>,
}

/// Reads a Dockerfile.
pub fn parse(text: &str) -> Result<Dockerfile, DockerfileError> {
    let (escape, lines) = logical_lines(text)?;
    if lines.len() > INSTRUCTIONS_MAX {
        return Err(DockerfileError {
            line: lines[INSTRUCTIONS_MAX].number,
            message: format!("more than {INSTRUCTIONS_MAX} instructions"),
            text: lines[INSTRUCTIONS_MAX].text.clone(),
        });
    }
    let mut file = Dockerfile { escape, global_args: Vec::new(), stages: Vec::new() };
    for line in lines {
        let reader = Reader { line: &line, escape };
        let (keyword, rest) = reader.split_keyword();
        if keyword == "FROM" {
            if file.stages.len() == STAGES_MAX {
                return Err(reader.error(format!("more than {STAGES_MAX} stages")));
            }
            let stage = reader.from(rest)?;
            file.stages.push(stage);
            continue;
        }
        let instruction = reader.instruction(&keyword, rest)?;
        match (file.stages.last_mut(), instruction) {
            (Some(stage), instruction) => {
                stage.instructions.push(Numbered { line: line.number, text: line.text.clone(), instruction });
            }
            (None, Instruction::Arg(args)) => file.global_args.extend(args),
            (None, _) => return Err(reader.error("only ARG may stand before the first FROM")),
        }
    }
    if file.stages.is_empty() {
        return Err(DockerfileError { line: 1, message: "there is no FROM".into(), text: String::new() });
    }
    Ok(file)
}

struct Reader<'a> {
    line: &'a Line,
    escape: char,
}

/// `--key=value` and `--key` flags in front of an instruction's words.
type Flags = Vec<(String, String)>;

impl Reader<'_> {
    fn error(&self, message: impl Into<String>) -> DockerfileError {
        DockerfileError { line: self.line.number, message: message.into(), text: self.line.text.clone() }
    }

    fn split_keyword(&self) -> (String, &str) {
        let text = self.line.text.trim();
        let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        (word.to_ascii_uppercase(), rest.trim())
    }

    fn instruction(&self, keyword: &str, rest: &str) -> Result<Instruction, DockerfileError> {
        let known = [
            "RUN",
            "COPY",
            "ADD",
            "ENV",
            "ARG",
            "WORKDIR",
            "SHELL",
            "CMD",
            "ENTRYPOINT",
            "USER",
            "LABEL",
            "EXPOSE",
            "VOLUME",
            "STOPSIGNAL",
            "HEALTHCHECK",
            "MAINTAINER",
            "ONBUILD",
        ];
        if !known.contains(&keyword) {
            let all = known.join(", ");
            return Err(self.error(format!("unknown instruction {keyword}: there are FROM, {all}")));
        }
        if rest.is_empty() && !matches!(keyword, "CMD" | "ENTRYPOINT") {
            return Err(self.error(format!("{keyword} needs an argument")));
        }
        Ok(match keyword {
            "RUN" => self.run(rest)?,
            "COPY" | "ADD" => self.copy(rest, keyword == "ADD")?,
            "ENV" => Instruction::Env(self.pairs(rest, keyword)?),
            "LABEL" => Instruction::Label(self.pairs(rest, keyword)?),
            "ARG" => self.arg(rest)?,
            "WORKDIR" => Instruction::Workdir(rest.to_owned()),
            "SHELL" => match exec_form(rest) {
                Some(words) if !words.is_empty() => Instruction::Shell(words),
                _ => return Err(self.error("SHELL needs a JSON list, as in SHELL [\"/bin/sh\", \"-c\"]")),
            },
            "CMD" => Instruction::Cmd(form(rest)),
            "ENTRYPOINT" => Instruction::Entrypoint(form(rest)),
            "USER" => Instruction::User(rest.to_owned()),
            "EXPOSE" => Instruction::Expose(raw_words(rest, self.escape)),
            "VOLUME" => Instruction::Volume(exec_form(rest).unwrap_or_else(|| raw_words(rest, self.escape))),
            "STOPSIGNAL" => Instruction::StopSignal(rest.to_owned()),
            "HEALTHCHECK" => Instruction::Healthcheck(rest.to_owned()),
            "MAINTAINER" => Instruction::Maintainer(rest.to_owned()),
            // ONBUILD stores a trigger for images built on this one, which are not built from files here.
            _ => return Err(self.error("ONBUILD is not supported: write the instruction where it is needed")),
        })
    }

    fn from(&self, rest: &str) -> Result<Stage, DockerfileError> {
        let (flags, rest) = self.flags(rest);
        let mut platform = None;
        for (key, value) in flags {
            match key.as_str() {
                "platform" => platform = Some(value),
                _ => return Err(self.error(format!("FROM has no flag --{key}"))),
            }
        }
        let words: Vec<&str> = rest.split_whitespace().collect();
        let (base, name) = match words.as_slice() {
            [base] => (*base, None),
            [base, r#as, name] if r#as.eq_ignore_ascii_case("as") => (*base, Some(name.to_ascii_lowercase())),
            _ => return Err(self.error("FROM needs an image, and may have AS and a name")),
        };
        if let Some(name) = &name {
            let fine = name.starts_with(|c: char| c.is_ascii_lowercase())
                && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
            if !fine {
                return Err(self.error(format!("{name:?} is not a name for a stage")));
            }
        }
        Ok(Stage { line: self.line.number, base: base.to_owned(), platform, name, instructions: Vec::new() })
    }

    /// The leading flags, and what follows them.
    fn flags<'t>(&self, mut rest: &'t str) -> (Flags, &'t str) {
        let mut flags = Vec::new();
        while let Some(tail) = rest.strip_prefix("--") {
            let (word, after) = tail.split_once(char::is_whitespace).unwrap_or((tail, ""));
            if word.is_empty() {
                break;
            }
            let (key, value) = word.split_once('=').unwrap_or((word, "true"));
            flags.push((key.to_ascii_lowercase(), unquote(value)));
            rest = after.trim_start();
        }
        (flags, rest)
    }

    fn run(&self, rest: &str) -> Result<Instruction, DockerfileError> {
        let (flags, rest) = self.flags(rest);
        let mut run = RunInstruction {
            form: Form::Shell(rest.to_owned()),
            heredocs: self.line.heredocs.clone(),
            mounts: Vec::new(),
            network_none: false,
        };
        for (key, value) in flags {
            match key.as_str() {
                "mount" => run.mounts.push(mount_flag(&value)),
                "network" => run.network_none = value == "none",
                "security" => {}
                _ => return Err(self.error(format!("RUN has no flag --{key}"))),
            }
        }
        if rest.is_empty() {
            return Err(self.error("RUN needs a command"));
        }
        if run.heredocs.is_empty() {
            run.form = form(rest);
        }
        Ok(Instruction::Run(run))
    }

    fn copy(&self, rest: &str, add: bool) -> Result<Instruction, DockerfileError> {
        let keyword = if add { "ADD" } else { "COPY" };
        let (flags, rest) = self.flags(rest);
        let (mut words, json) = match exec_form(rest) {
            Some(words) => (words, true),
            None => (raw_words(rest, self.escape), false),
        };
        let Some(destination) = words.pop().filter(|_| !words.is_empty()) else {
            return Err(self.error(format!("{keyword} needs at least one source and a destination")));
        };
        let mut documents = self.line.heredocs.iter();
        let sources = words
            .into_iter()
            .map(|word| match documents.clone().next() {
                Some(document) if opens(&word, document) => {
                    documents.next();
                    CopySourceText::Heredoc(document.clone())
                }
                _ => CopySourceText::Path(word),
            })
            .collect();
        let mut copy = CopyInstruction {
            add,
            sources,
            destination,
            from: None,
            chown: None,
            chmod: None,
            exclude: Vec::new(),
            parents: false,
            checksum: None,
            json,
        };
        for (key, value) in flags {
            match key.as_str() {
                "from" if !add => copy.from = Some(value),
                "chown" => copy.chown = Some(value),
                "chmod" => copy.chmod = Some(value),
                "exclude" => copy.exclude.push(value),
                "parents" => copy.parents = value != "false",
                "checksum" if add => copy.checksum = Some(value),
                // A hint for another builder's cache; the result is the same.
                "link" | "keep-git-dir" => {}
                _ => return Err(self.error(format!("{keyword} has no flag --{key}"))),
            }
        }
        Ok(Instruction::Copy(copy))
    }

    /// `K=V K2="V 2"`, or the old form `K the rest`.
    fn pairs(&self, rest: &str, keyword: &str) -> Result<Vec<(String, String)>, DockerfileError> {
        let words = raw_words(rest, self.escape);
        let first = words.first().map(String::as_str).unwrap_or_default();
        if !first.contains('=') {
            let (key, value) = rest
                .split_once(char::is_whitespace)
                .ok_or_else(|| self.error(format!("{keyword} needs a name and a value")))?;
            return Ok(vec![(key.to_owned(), value.trim().to_owned())]);
        }
        words
            .iter()
            .map(|word| match word.split_once('=') {
                Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
                _ => Err(self.error(format!("{word:?} is not of the form NAME=value"))),
            })
            .collect()
    }

    fn arg(&self, rest: &str) -> Result<Instruction, DockerfileError> {
        let mut args = Vec::new();
        for word in raw_words(rest, self.escape) {
            let (key, value) = match word.split_once('=') {
                Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                None => (word, None),
            };
            if key.is_empty() {
                return Err(self.error("ARG needs a name"));
            }
            args.push((key, value));
        }
        Ok(Instruction::Arg(args))
    }
}

/// Whether `word` is what opened `document`.
fn opens(word: &str, document: &Heredoc) -> bool {
    word.contains("<<")
        && word
            .trim_matches(|c| matches!(c, '\'' | '"' | '\\'))
            .replace(['"', '\''], "")
            .ends_with(&document.delimiter)
}

fn unquote(value: &str) -> String {
    for quote in ['"', '\''] {
        if let Some(inner) = value.strip_prefix(quote).and_then(|v| v.strip_suffix(quote)) {
            return inner.to_owned();
        }
    }
    value.to_owned()
}

fn mount_flag(value: &str) -> MountFlag {
    let mut flag = MountFlag { kind: "bind".into(), fields: Vec::new() };
    for field in value.split(',') {
        let (key, value) = field.split_once('=').unwrap_or((field, "true"));
        match key {
            "type" => flag.kind = value.to_owned(),
            key => flag.fields.push((key.to_owned(), value.to_owned())),
        }
    }
    flag
}

/// A JSON list of strings, or nothing.
fn exec_form(rest: &str) -> Option<Vec<String>> {
    if !rest.starts_with('[') {
        return None;
    }
    serde_json::from_str(rest).ok()
}

fn form(rest: &str) -> Form {
    match exec_form(rest) {
        Some(words) => Form::Exec(words),
        None => Form::Shell(rest.to_owned()),
    }
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
