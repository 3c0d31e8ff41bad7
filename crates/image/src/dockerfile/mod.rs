//! Our reading of the Dockerfile dialect: text to stages of instructions, and the expansion of variables.
//! Pure; whatever the text is, the answer is a value or an error that names the line.

mod instruction;
mod lines;
mod parse;
mod words;

pub use instruction::{
    CopyInstruction, CopySourceText, Form, Heredoc, Instruction, MountFlag, Numbered, RunInstruction, Stage,
};
pub use parse::{Dockerfile, parse};
pub(crate) use words::expand_text;
pub use words::{ExpandError, expand, expand_words};

use thiserror::Error;

/// What is wrong with a Dockerfile, where, and the text of that line.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("Dockerfile line {line}: {message}\n    {text}")]
pub struct DockerfileError {
    /// Line number, from 1.
    pub line: usize,
    /// What is wrong.
    pub message: String,
    /// The line as written (its first line, where it was continued).
    pub text: String,
}
