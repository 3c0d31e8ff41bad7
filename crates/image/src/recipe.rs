//! What an image is made from. Its digest is the key under which a finished build is found again: the same
//! recipe on the same bases is the same image.

use crate::context::ContextEntry;
use crate::digest::{Hasher, sha256};
use crate::spec::ImageSpec;
use std::collections::BTreeMap;

/// The files of a context mount.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContextMount {
    /// The mount's id, for `Context::tree`.
    pub id: String,
    /// Its files.
    pub entries: Vec<ContextEntry>,
}

/// A secret by name of its version; its values are never part of a recipe.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SecretRef {
    /// The secret's id.
    pub id: String,
    /// Which of its versions.
    pub version: u64,
}

/// A volume that the commands of a recipe see. What is in it decides nothing: it is no part of the image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct VolumeRef {
    /// The volume's id.
    pub id: String,
    /// Where it is mounted.
    pub target: String,
    /// Whether it can only be read.
    pub read_only: bool,
    /// The folder of it that is seen; empty for all.
    pub sub_path: String,
}

impl VolumeRef {
    pub(crate) fn hash(&self, hasher: &mut Hasher) {
        hasher.text(&self.id).text(&self.target).text(&self.sub_path).number(u64::from(self.read_only));
    }
}

/// An image as the client describes it.
#[derive(Debug, Clone, Default)]
pub struct Recipe {
    /// Lines of the Dockerfile dialect; empty where a function makes the image.
    pub lines: Vec<String>,
    /// Images built before, by the name that FROM uses for them.
    pub bases: BTreeMap<String, ImageSpec>,
    /// Small files sent along, by path.
    pub context_files: BTreeMap<String, Vec<u8>>,
    /// The context mount, if there is one.
    pub context_mount: Option<ContextMount>,
    /// Values of ARGs.
    pub build_args: BTreeMap<String, String>,
    /// Secrets that RUNs see as environment.
    pub secrets: Vec<SecretRef>,
    /// Volumes that RUNs see.
    pub volumes: Vec<VolumeRef>,
    /// The client's image builder version.
    pub builder_version: String,
    /// Digest of the function that makes the image, if one does.
    pub run_function: Option<String>,
}

impl Recipe {
    /// Hex digest of all that decides what the image will be.
    pub fn digest(&self) -> String {
        let mut hasher = Hasher::new("evoke-recipe-1");
        hasher.texts(&self.lines);
        hasher.number(self.bases.len() as u64);
        for (name, image) in &self.bases {
            hasher.text(name).text(&image.root_digest()).pairs(image.env.iter().map(|(k, v)| (k, v)));
            hasher.text(&image.workdir).text(&image.user).texts(&image.shell);
            hasher.texts(&image.entrypoint).texts(&image.cmd);
        }
        for (path, entry) in self.context() {
            hasher.text(&path).text(&entry.sha256).number(u64::from(entry.mode.unwrap_or(u32::MAX)));
        }
        hasher.text("end of context").pairs(&self.build_args);
        let mut secrets: Vec<_> = self.secrets.iter().collect();
        secrets.sort();
        for secret in secrets {
            hasher.text(&secret.id).number(secret.version);
        }
        hasher.text("end of secrets").text(&self.builder_version);
        self.volumes.iter().for_each(|volume| volume.hash(&mut hasher));
        hasher.text("end of volumes");
        hasher.text(self.run_function.as_deref().unwrap_or_default());
        hasher.finish()
    }

    /// All files that a COPY may take, by path without a leading slash. Inline files win.
    pub fn context(&self) -> BTreeMap<String, ContextEntry> {
        let mounted = self.context_mount.iter().flat_map(|mount| mount.entries.iter().cloned());
        let inline = self.context_files.iter().map(|(path, data)| ContextEntry {
            path: path.clone(),
            sha256: sha256(data),
            mode: None,
        });
        mounted
            .chain(inline)
            .map(|entry| (crate::context::clean(&entry.path), entry))
            .filter(|(path, _)| !path.is_empty())
            .collect()
    }

    /// The inline file at a path of [`Recipe::context`].
    pub(crate) fn inline(&self, path: &str) -> Option<&[u8]> {
        self.context_files
            .iter()
            .find(|(name, _)| crate::context::clean(name) == path)
            .map(|(_, data)| data.as_slice())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_changes_the_digest() {
        let base = Recipe { lines: vec!["FROM base".into(), "RUN a".into()], ..Recipe::default() };
        let mut digests = std::collections::BTreeSet::from([base.digest()]);
        let mut other = |change: &dyn Fn(&mut Recipe)| {
            let mut recipe = base.clone();
            change(&mut recipe);
            assert!(digests.insert(recipe.digest()));
        };
        other(&|r| r.lines = vec!["FROM base\nRUN a".into()]);
        other(&|r| r.lines.push("RUN b".into()));
        other(&|r| drop(r.bases.insert("base".into(), ImageSpec::default())));
        other(&|r| {
            let image = ImageSpec { workdir: "/x".into(), ..ImageSpec::default() };
            r.bases.insert("base".into(), image);
        });
        other(&|r| drop(r.context_files.insert("/.r.txt".into(), b"x".to_vec())));
        other(&|r| drop(r.context_files.insert("/.r.txt".into(), b"y".to_vec())));
        other(&|r| drop(r.build_args.insert("A".into(), "1".into())));
        other(&|r| r.secrets.push(SecretRef { id: "st-1".into(), version: 1 }));
        other(&|r| r.secrets.push(SecretRef { id: "st-1".into(), version: 2 }));
        other(&|r| r.builder_version = "2025.06".into());
        let volume = |target: &str, read_only| VolumeRef {
            id: "vo-1".into(),
            target: target.into(),
            read_only,
            sub_path: String::new(),
        };
        other(&|r| r.volumes.push(volume("/a", false)));
        other(&|r| r.volumes.push(volume("/b", false)));
        other(&|r| r.volumes.push(volume("/a", true)));
        other(&|r| r.run_function = Some("d".into()));
        assert_eq!(base.digest(), base.clone().digest());
    }

    #[test]
    fn the_order_of_secrets_does_not_matter() {
        let of = |ids: [&str; 2]| {
            let secrets = ids.iter().map(|id| SecretRef { id: (*id).into(), version: 1 }).collect();
            Recipe { secrets, ..Recipe::default() }.digest()
        };
        assert_eq!(of(["a", "b"]), of(["b", "a"]));
    }
}
