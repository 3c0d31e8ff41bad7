//! RUN: what is executed, with which environment, and the digest of what it makes.

use super::state::{State, fail};
use super::{Action, RunPlan, Step};
use crate::dockerfile::{Form, Heredoc, Numbered, RunInstruction};
use crate::error::Result;
use crate::spec::ImageSpec;

impl State<'_> {
    /// `from` finds the image that a mount's `from=` names.
    pub(super) fn run(
        &mut self,
        at: &Numbered,
        run: &RunInstruction,
        from: &dyn Fn(&str) -> Result<ImageSpec>,
    ) -> Result<Step> {
        if self.image.host {
            if let Some(why) = host_skip(run) {
                return Ok(self.plain(at, Action::Skip(why)));
            }
        }
        let mut notes = Vec::new();
        let mut mounts = Vec::new();
        for flag in &run.mounts {
            mounts.push(self.mount(at, flag, from, &mut notes)?);
        }
        let argv = match &run.form {
            Form::Exec(words) if words.is_empty() => return Err(fail(at, "RUN needs a command")),
            Form::Exec(words) => words.clone(),
            Form::Shell(text) => {
                let script = script(text, &run.heredocs);
                self.image.shell.iter().cloned().chain([script]).collect()
            }
        };
        // Arguments are visible to commands, and the environment wins over them.
        let mut env = self.image.env.clone();
        for (name, value) in &self.args {
            if self.image.env(name).is_none() {
                env.push((name.clone(), value.clone()));
            }
        }
        let plan = RunPlan {
            argv,
            env,
            cwd: self.image.workdir.clone(),
            user: self.image.user.clone(),
            network: !run.network_none,
            mounts,
            notes,
        };
        let digest = self.run_digest(&plan);
        self.add_layer(at, Action::Run(plan), digest)
    }

    fn run_digest(&self, plan: &RunPlan) -> String {
        let mut hasher = self.layer_digest("run");
        hasher.texts(&plan.argv).text(&plan.cwd).text(&plan.user).number(u64::from(plan.network));
        let mut env: Vec<_> = plan.env.iter().collect();
        env.sort();
        hasher.pairs(env.into_iter().map(|(k, v)| (k, v)));
        for mount in &plan.mounts {
            hasher.text(&mount.digest(self));
        }
        let mut secrets: Vec<_> = self.input.recipe.secrets.iter().collect();
        secrets.sort();
        for secret in secrets {
            hasher.text(&secret.id).number(secret.version);
        }
        self.input.recipe.volumes.iter().for_each(|volume| volume.hash(&mut hasher));
        hasher.finish()
    }
}

/// Marks the end of a script that brings its own interpreter.
const SCRIPT_END: &str = "__EVOKE_END_OF_SCRIPT__";

/// The text that the shell gets.
fn script(text: &str, heredocs: &[Heredoc]) -> String {
    match heredocs {
        [] => text.to_owned(),
        [only] if opens_alone(text) && only.content.starts_with("#!") => format!(
            "script=$(mktemp) && cat >\"$script\" <<'{SCRIPT_END}' && chmod 0700 \"$script\" && \"$script\"\n\
             {}{SCRIPT_END}\ncode=$?; rm -f \"$script\"; exit $code",
            only.content
        ),
        [only] if opens_alone(text) => only.content.clone(),
        many => {
            let mut script = format!("{text}\n");
            for document in many {
                script.push_str(&document.content);
                script.push_str(&document.delimiter);
                script.push('\n');
            }
            script
        }
    }
}

/// The command is nothing but a here-document.
fn opens_alone(text: &str) -> bool {
    text.starts_with("<<") && !text.contains(char::is_whitespace)
}

/// The client's set-up steps for a fresh Debian mean nothing on a view of this machine's own programs.
fn host_skip(run: &RunInstruction) -> Option<String> {
    let Form::Shell(text) = &run.form else { return None };
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let set_up = text == "apt-get update"
        || text == "apt-get install -y gcc gfortran build-essential"
        || text == "pip install --upgrade pip"
        || text == "pip install --upgrade pip wheel uv"
        || (text.starts_with("echo 'debconf ") && text.ends_with("| debconf-set-selections"));
    set_up.then(|| "the image is this machine's own environment, which is used as it is".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doc(content: &str) -> Heredoc {
        Heredoc { delimiter: "EOF".into(), expand: true, strip_tabs: false, content: content.into() }
    }

    #[test]
    fn writes_scripts() {
        assert_eq!(script("<<EOF", &[doc("a\nb\n")]), "a\nb\n");
        assert_eq!(script("python3 - <<EOF", &[doc("print(1)\n")]), "python3 - <<EOF\nprint(1)\nEOF\n");
        assert!(script("<<EOF", &[doc("#!/usr/bin/env python3\nprint(1)\n")]).contains("mktemp"));
    }
}
