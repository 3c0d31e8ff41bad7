//! The state of a stage while it is planned: the image so far and the arguments in force.

use super::{Action, PlanInput, Step};
use crate::digest::Hasher;
use crate::dockerfile::{Form, Instruction, Numbered, expand};
use crate::error::{ImageError, Result};
use crate::spec::{ImageSpec, LayerOwner, LayerRef};
use crate::steps::Root;
use std::collections::BTreeMap;

/// Layers of one image at most: what a container takes, less what is attached to it when it runs.
const LAYERS_MAX: usize = evoke_runtime::LAYERS_MAX - 16;

/// Arguments that every build has.
pub(super) fn builtin_args() -> BTreeMap<String, String> {
    let arch = crate::base::architecture();
    [
        ("TARGETPLATFORM", format!("linux/{arch}")),
        ("TARGETOS", "linux".to_owned()),
        ("TARGETARCH", arch.to_owned()),
        ("BUILDPLATFORM", format!("linux/{arch}")),
        ("BUILDOS", "linux".to_owned()),
        ("BUILDARCH", arch.to_owned()),
    ]
    .map(|(k, v)| (k.to_owned(), v))
    .into()
}

pub(super) struct State<'a> {
    pub input: &'a PlanInput<'a>,
    /// Values of the ARGs before the first FROM.
    pub globals: &'a BTreeMap<String, String>,
    pub image: ImageSpec,
    /// ARGs declared in this stage.
    pub args: BTreeMap<String, String>,
    /// This stage has said CMD itself.
    cmd_set: bool,
}

impl<'a> State<'a> {
    pub(super) fn new(
        input: &'a PlanInput<'a>,
        globals: &'a BTreeMap<String, String>,
        image: ImageSpec,
    ) -> Self {
        Self { input, globals, image, args: BTreeMap::new(), cmd_set: false }
    }

    /// The value of a variable: the environment first, then arguments.
    fn lookup(&self, name: &str) -> Option<String> {
        self.image.env(name).map(str::to_owned).or_else(|| self.args.get(name).cloned())
    }

    pub(super) fn expand(&self, at: &Numbered, word: &str) -> Result<String> {
        expand(word, self.input.dockerfile.escape, &|name| self.lookup(name)).map_err(|e| fail(at, e))
    }

    pub(super) fn expand_text(&self, at: &Numbered, text: &str) -> Result<String> {
        crate::dockerfile::expand_text(text, self.input.dockerfile.escape, &|name| self.lookup(name))
            .map_err(|e| fail(at, e))
    }

    /// An absolute path, relative ones being below the working folder.
    pub(super) fn absolute(&self, path: &str) -> String {
        let joined =
            if path.starts_with('/') { path.to_owned() } else { format!("{}/{path}", self.image.workdir) };
        let clean = crate::context::clean(&joined);
        let folder = path.ends_with('/') || path == "." || path.ends_with("/.");
        if folder && !clean.is_empty() { format!("/{clean}/") } else { format!("/{clean}") }
    }

    /// Applies an instruction that changes configuration only.
    pub(super) fn configure(&mut self, at: &Numbered) -> Result<()> {
        match &at.instruction {
            Instruction::Env(pairs) => {
                // All values see the environment as it was before this line.
                let values = pairs
                    .iter()
                    .map(|(key, value)| Ok((self.expand(at, key)?, self.expand(at, value)?)))
                    .collect::<Result<Vec<_>>>()?;
                for (key, value) in values {
                    self.image.set_env(&key, &value);
                }
            }
            Instruction::Arg(args) => self.declare(at, args)?,
            Instruction::Workdir(path) => {
                let path = self.expand(at, path)?;
                let path = self.absolute(&path);
                self.image.workdir = if path == "/" { path } else { path.trim_end_matches('/').to_owned() };
            }
            Instruction::Shell(words) => self.image.shell.clone_from(words),
            Instruction::Cmd(form) => {
                self.image.cmd = self.command(form);
                self.cmd_set = true;
            }
            Instruction::Entrypoint(form) => {
                self.image.entrypoint = self.command(form);
                if !self.cmd_set {
                    self.image.cmd.clear();
                }
            }
            Instruction::User(user) => self.image.user = self.expand(at, user)?,
            // Nothing that we run reads these; they are checked by the parser and kept out of the image.
            Instruction::Label(_)
            | Instruction::Expose(_)
            | Instruction::Volume(_)
            | Instruction::StopSignal(_)
            | Instruction::Healthcheck(_)
            | Instruction::Maintainer(_) => {}
            Instruction::Run(_) | Instruction::Copy(_) => {
                return Err(fail(at, "it makes a layer, and was taken for configuration"));
            }
        }
        Ok(())
    }

    fn declare(&mut self, at: &Numbered, args: &[(String, Option<String>)]) -> Result<()> {
        for (name, default) in args {
            let given = self.input.recipe.build_args.get(name).cloned();
            let value = match (given, default) {
                (Some(value), _) => Some(value),
                (None, Some(default)) => Some(self.expand(at, default)?),
                (None, None) => self.globals.get(name).cloned(),
            };
            if let Some(value) = value {
                self.args.insert(name.clone(), value);
            }
        }
        Ok(())
    }

    fn command(&self, form: &Form) -> Vec<String> {
        match form {
            Form::Exec(words) => words.clone(),
            Form::Shell(text) if text.is_empty() => Vec::new(),
            Form::Shell(text) => self.image.shell.iter().cloned().chain([text.clone()]).collect(),
        }
    }

    /// Starts the digest of a layer on what is there so far.
    pub(super) fn layer_digest(&self, kind: &str) -> Hasher {
        let mut hasher = Hasher::new("evoke-layer-1");
        hasher.text(&self.image.root_digest()).text(kind);
        hasher.text(self.input.salt.as_deref().unwrap_or_default());
        hasher
    }

    /// Refuses a layer more than a container takes.
    pub(super) fn check_room(&self, at: &Numbered) -> Result<()> {
        if self.image.layers.len() < LAYERS_MAX {
            return Ok(());
        }
        Err(fail(at, format!("the image has more than {LAYERS_MAX} layers: join some of its steps")))
    }

    /// A step that adds a layer. Its stage is filled in by who puts stages together.
    pub(super) fn add_layer(&mut self, at: &Numbered, action: Action, digest: String) -> Result<Step> {
        self.check_room(at)?;
        let onto = Root::of(&self.image);
        let layer = LayerRef { path: self.input.layer_path(&digest), digest, owner: LayerOwner::Canonical };
        self.image.layers.push(layer.clone());
        Ok(Step { stage: 0, line: at.line, text: at.text.clone(), action, onto, layer: Some(layer) })
    }

    /// A step that adds none.
    pub(super) fn plain(&self, at: &Numbered, action: Action) -> Step {
        Step {
            stage: 0,
            line: at.line,
            text: at.text.clone(),
            action,
            onto: Root::of(&self.image),
            layer: None,
        }
    }
}

/// An error at an instruction.
pub(super) fn fail(at: &Numbered, message: impl ToString) -> ImageError {
    ImageError::Instruction { line: at.line, text: at.text.clone(), message: message.to_string() }
}
