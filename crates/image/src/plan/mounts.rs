//! `RUN --mount=`: what a command sees that no layer keeps.

use super::state::{State, fail};
use crate::context::{clean, select};
use crate::dockerfile::{MountFlag, Numbered};
use crate::error::Result;
use crate::spec::ImageSpec;
use crate::steps::Root;
use std::collections::BTreeMap;

/// A mount as it will be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountPlan {
    /// Files of the context or of another image; what is written there is gone with the command.
    Bind {
        /// Absolute.
        target: String,
        /// Which files.
        from: BindOrigin,
        /// Whether the command may write there.
        writable: bool,
    },
    /// A folder that is kept from build to build.
    Cache {
        /// Absolute.
        target: String,
        /// Its name.
        id: String,
        /// Whether several commands may use it at once.
        sharing: Sharing,
        /// Whether the command may not write there.
        read_only: bool,
        /// Permission bits of the folder.
        mode: u32,
    },
    /// A folder in memory.
    Tmpfs {
        /// Absolute.
        target: String,
        /// Bytes that fit into it.
        bytes_max: Option<u64>,
    },
    /// A secret of the build.
    Secret {
        /// Its name.
        id: String,
        /// The file that holds it, absolute.
        target: Option<String>,
        /// The variable that holds it.
        env: Option<String>,
        /// Without it the command is not run.
        required: bool,
        /// Permission bits of the file.
        mode: u32,
        /// Its user and group.
        owner: (u32, u32),
    },
}

/// Where a bind takes its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BindOrigin {
    /// These files of the context, which lie below `source` or are it.
    Context {
        /// Path in the context.
        source: String,
        /// Paths of the files in the context.
        files: Vec<String>,
    },
    /// What is at a path of another stage or image.
    Image {
        /// Its root.
        root: Root,
        /// Path below it; all of it if empty.
        source: String,
    },
}

/// Whether a cache may be used by several commands at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// By any number.
    Shared,
    /// By one; another one has a new folder.
    Private,
    /// By one; others wait.
    Locked,
}

/// The fields of one flag, expanded, each taken once.
struct Fields<'a> {
    at: &'a Numbered,
    kind: &'a str,
    fields: BTreeMap<String, String>,
}

impl Fields<'_> {
    fn take(&mut self, names: &[&str]) -> Option<String> {
        names.iter().filter_map(|name| self.fields.remove(*name)).next_back()
    }

    fn flag(&mut self, names: &[&str]) -> Result<bool> {
        match self.take(names).as_deref() {
            None | Some("false" | "0") => Ok(false),
            Some("true" | "1" | "") => Ok(true),
            Some(other) => Err(self.fail(format!("{other:?} is neither true nor false"))),
        }
    }

    fn number(&mut self, name: &str, radix: u32) -> Result<Option<u32>> {
        let Some(text) = self.take(&[name]) else { return Ok(None) };
        let number = u32::from_str_radix(&text, radix);
        number.map(Some).map_err(|_| self.fail(format!("{name}={text} is not a number")))
    }

    fn fail(&self, message: impl std::fmt::Display) -> crate::error::ImageError {
        fail(self.at, format!("--mount=type={}: {message}", self.kind))
    }

    /// Refuses what is left.
    fn end(self) -> Result<()> {
        match self.fields.keys().next() {
            None => Ok(()),
            Some(name) => Err(self.fail(format!("there is no field {name}"))),
        }
    }
}

impl State<'_> {
    /// Plans one mount; `from` finds the image that a `from=` names.
    pub(super) fn mount(
        &self,
        at: &Numbered,
        flag: &MountFlag,
        from: &dyn Fn(&str) -> Result<ImageSpec>,
        notes: &mut Vec<String>,
    ) -> Result<MountPlan> {
        let mut fields = BTreeMap::new();
        for (name, value) in &flag.fields {
            fields.insert(name.to_ascii_lowercase(), self.expand(at, value)?);
        }
        let mut fields = Fields { at, kind: &flag.kind, fields };
        let plan = match flag.kind.as_str() {
            "bind" => self.bind(&mut fields, from)?,
            "cache" => self.cache(&mut fields, notes)?,
            "tmpfs" => self.tmpfs(&mut fields)?,
            "secret" => self.secret(&mut fields)?,
            "ssh" => {
                return Err(fields.fail(
                    "it is not supported, as no agent of the client is in reach: give a key or token with \
                     secrets= instead",
                ));
            }
            kind => return Err(fail(at, format!("there is no --mount=type={kind}"))),
        };
        fields.end()?;
        Ok(plan)
    }

    fn target(&self, fields: &mut Fields<'_>) -> Option<String> {
        let target = fields.take(&["target", "dst", "destination"]);
        target
            .map(|path| self.absolute(&path).trim_end_matches('/').to_owned())
            .filter(|path| !path.is_empty())
    }

    fn needed_target(&self, fields: &mut Fields<'_>) -> Result<String> {
        self.target(fields).ok_or_else(|| fields.fail("it needs a target"))
    }

    fn bind(&self, fields: &mut Fields<'_>, from: &dyn Fn(&str) -> Result<ImageSpec>) -> Result<MountPlan> {
        let target = self.needed_target(fields)?;
        let source = clean(&fields.take(&["source", "src"]).unwrap_or_default());
        let writable = fields.flag(&["rw", "readwrite"])?;
        let _ = fields.flag(&["ro", "readonly"])?;
        let from = match fields.take(&["from"]) {
            Some(name) => BindOrigin::Image { root: Root::of(&from(&name)?), source },
            None => self.of_context(fields, source)?,
        };
        Ok(MountPlan::Bind { target, from, writable })
    }

    fn cache(&self, fields: &mut Fields<'_>, notes: &mut Vec<String>) -> Result<MountPlan> {
        let target = self.needed_target(fields)?;
        let sharing = match fields.take(&["sharing"]).as_deref() {
            None | Some("shared") => Sharing::Shared,
            Some("private") => Sharing::Private,
            Some("locked") => Sharing::Locked,
            Some(other) => return Err(fields.fail(format!("there is no sharing={other}"))),
        };
        if fields.take(&["from"]).is_some() | fields.take(&["source", "src"]).is_some() {
            return Err(fields.fail("a cache begins empty here: from= and source= are not supported"));
        }
        let owner = [fields.number("uid", 10)?, fields.number("gid", 10)?];
        let mode = fields.number("mode", 8)?.unwrap_or(0o755);
        let id = fields.take(&["id"]).unwrap_or_else(|| target.clone());
        let read_only = fields.flag(&["ro", "readonly"])?;
        let _ = fields.flag(&["rw", "readwrite"])?;
        if !is_root(&self.image.user) || owner.iter().flatten().any(|id| *id != 0) {
            let note = "caches are kept for root alone: another user's is empty, and gone with the command";
            notes.push(note.to_owned());
            return Ok(MountPlan::Tmpfs { target, bytes_max: None });
        }
        Ok(MountPlan::Cache { target, id, sharing, read_only, mode })
    }

    fn tmpfs(&self, fields: &mut Fields<'_>) -> Result<MountPlan> {
        let target = self.needed_target(fields)?;
        let text = fields.take(&["size"]);
        let bytes_max = text.map(|text| {
            size(&text).ok_or_else(|| fields.fail(format!("size={text} is not a size, as 64m is")))
        });
        Ok(MountPlan::Tmpfs { target, bytes_max: bytes_max.transpose()? })
    }

    fn secret(&self, fields: &mut Fields<'_>) -> Result<MountPlan> {
        let (target, env) = (self.target(fields), fields.take(&["env"]));
        let named = target.as_deref().and_then(|path| path.rsplit('/').next()).map(str::to_owned);
        let id = fields.take(&["id", "source", "src"]).or(named).or_else(|| env.clone());
        let id = id.ok_or_else(|| fields.fail("it needs an id"))?;
        let target = match (&target, &env) {
            (None, None) => Some(format!("/run/secrets/{}", clean(&id).replace('/', "_"))),
            _ => target,
        };
        let required = fields.flag(&["required"])?;
        let mode = fields.number("mode", 8)?.unwrap_or(0o400);
        let owner =
            (fields.number("uid", 10)?.unwrap_or_default(), fields.number("gid", 10)?.unwrap_or_default());
        Ok(MountPlan::Secret { id, target, env, required, mode, owner })
    }

    fn of_context(&self, fields: &Fields<'_>, source: String) -> Result<BindOrigin> {
        let files = self.input.recipe.context();
        if source.is_empty() {
            return Ok(BindOrigin::Context { source, files: files.keys().cloned().collect() });
        }
        let matched = select(&files, std::slice::from_ref(&source), &[], false).map_err(|error| {
            fields.fail(format!("{error}: the client sends what COPY and ADD name, so copy it in some stage"))
        })?;
        Ok(BindOrigin::Context { source, files: matched.files })
    }
}

impl MountPlan {
    /// All that decides what a command sees of it.
    pub(super) fn digest(&self, state: &State<'_>) -> String {
        let mut hasher = crate::digest::Hasher::new("evoke-mount-1");
        match self {
            Self::Bind { target, from: BindOrigin::Context { source, files }, writable } => {
                hasher.text("context").text(target).text(source).number(u64::from(*writable));
                let context = state.input.recipe.context();
                for entry in files.iter().filter_map(|path| context.get(path)) {
                    hasher.text(&entry.path).text(&entry.sha256);
                    hasher.number(u64::from(entry.mode.unwrap_or(u32::MAX)));
                }
            }
            Self::Bind { target, from: BindOrigin::Image { root, source }, writable } => {
                hasher.text("image").text(target).text(source).number(u64::from(*writable));
                for layer in &root.layers {
                    hasher.text(&layer.digest);
                }
            }
            // What a cache holds changes nothing of what a command is to make.
            Self::Cache { target, .. } => drop(hasher.text("cache").text(target)),
            Self::Tmpfs { target, .. } => drop(hasher.text("tmpfs").text(target)),
            Self::Secret { id, target, env, .. } => {
                hasher.text("secret").text(id).text(target.as_deref().unwrap_or_default());
                hasher.text(env.as_deref().unwrap_or_default());
            }
        }
        hasher.finish()
    }
}

fn is_root(user: &str) -> bool {
    matches!(user.split(':').next().unwrap_or_default(), "" | "0" | "root")
}

/// Bytes, with a unit as `k`, `mb` and `GiB` are.
fn size(text: &str) -> Option<u64> {
    let text = text.to_ascii_lowercase();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let shift = match text[digits..].trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        _ => return None,
    };
    text[..digits].parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let all = ["7", "1k", "64m", "2GiB", "1gb", "x", "", "1x", "-1"].map(size);
        let mib = 1024 * 1024;
        let want = [7, 1024, 64 * mib, 2048 * mib, 1024 * mib].map(Some);
        assert_eq!(all[..5], want);
        assert_eq!(all[5..], [None; 4]);
    }
}
