//! What a Dockerfile says, as values. Variables are not expanded here: that needs the state of the build.

/// One stage: from one FROM to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// Line of the FROM.
    pub line: usize,
    /// The base as written (variables of ARGs before the first FROM are expanded when planned).
    pub base: String,
    /// `--platform=`, as written.
    pub platform: Option<String>,
    /// `AS name`, in lower case.
    pub name: Option<String>,
    /// What follows, in order.
    pub instructions: Vec<Numbered>,
}

/// An instruction with the place it stands at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Numbered {
    /// Line number, from 1.
    pub line: usize,
    /// The text as written, continuations joined, for logs and errors.
    pub text: String,
    /// What it says.
    pub instruction: Instruction,
}

/// One instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Instruction {
    /// Run a command and keep what it changed.
    Run(RunInstruction),
    /// COPY and ADD.
    Copy(CopyInstruction),
    /// Environment variables; values are raw words.
    Env(Vec<(String, String)>),
    /// Build arguments with their defaults; values are raw words.
    Arg(Vec<(String, Option<String>)>),
    /// The folder that follows run in.
    Workdir(String),
    /// The shell of shell forms.
    Shell(Vec<String>),
    /// The default command.
    Cmd(Form),
    /// The program that is always run.
    Entrypoint(Form),
    /// The user, as written.
    User(String),
    /// Labels; kept out of layers.
    Label(Vec<(String, String)>),
    /// Ports, as written.
    Expose(Vec<String>),
    /// Mount points, as written.
    Volume(Vec<String>),
    /// The signal that stops it.
    StopSignal(String),
    /// The text of a health check; read and otherwise ignored.
    Healthcheck(String),
    /// The text of a MAINTAINER; read and otherwise ignored.
    Maintainer(String),
}

/// How a command is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form {
    /// One text for the shell.
    Shell(String),
    /// A JSON list: no shell.
    Exec(Vec<String>),
}

/// A here-document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heredoc {
    /// The word that ends it.
    pub delimiter: String,
    /// Whether variables are expanded (the delimiter was not quoted).
    pub expand: bool,
    /// Whether leading tabs were dropped (`<<-`).
    pub strip_tabs: bool,
    /// The lines, each with its newline.
    pub content: String,
}

/// RUN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunInstruction {
    /// The command.
    pub form: Form,
    /// Here-documents that the command refers to.
    pub heredocs: Vec<Heredoc>,
    /// `--mount=` flags.
    pub mounts: Vec<MountFlag>,
    /// `--network=none` was asked for.
    pub network_none: bool,
}

/// One `--mount=` of a RUN, as key and value pairs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountFlag {
    /// `type=`; `bind` where not said.
    pub kind: String,
    /// The other fields.
    pub fields: Vec<(String, String)>,
}

/// A source of COPY or ADD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopySourceText {
    /// A path, pattern or address, as a raw word.
    Path(String),
    /// A here-document: a file named by its delimiter.
    Heredoc(Heredoc),
}

/// COPY and ADD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyInstruction {
    /// ADD: addresses are fetched and local archives are unpacked.
    pub add: bool,
    /// What to copy.
    pub sources: Vec<CopySourceText>,
    /// Where to, as a raw word.
    pub destination: String,
    /// `--from=`: a stage or an image.
    pub from: Option<String>,
    /// `--chown=user[:group]`.
    pub chown: Option<String>,
    /// `--chmod=`: octal.
    pub chmod: Option<String>,
    /// `--exclude=` patterns.
    pub exclude: Vec<String>,
    /// `--parents`: keep the folders of the source.
    pub parents: bool,
    /// `--checksum=` of ADD from an address.
    pub checksum: Option<String>,
    /// The words came from a JSON list and are taken literally (no quotes to remove).
    pub json: bool,
}
