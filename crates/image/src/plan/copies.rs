//! COPY and ADD: which files, from where, and the digest of what they make.

use super::state::{State, fail};
use super::{Action, CopyOrigin, CopyPlan, StagedFile, Step};
use crate::context::{self, clean};
use crate::dockerfile::{CopyInstruction, CopySourceText, Heredoc, Numbered};
use crate::error::Result;
use crate::glob;
use crate::spec::ImageSpec;
use crate::steps::Root;

impl State<'_> {
    /// `from` is the image that `--from` names, if it does.
    pub(super) fn copy(
        &mut self,
        at: &Numbered,
        copy: &CopyInstruction,
        from: Option<&ImageSpec>,
    ) -> Result<Step> {
        let word = |w: &str| if copy.json { Ok(w.to_owned()) } else { self.expand(at, w) };
        let destination = self.absolute(&word(&copy.destination)?);
        let chmod = match &copy.chmod {
            Some(text) => Some(
                octal(&self.expand(at, text)?)
                    .ok_or_else(|| fail(at, format!("--chmod={text} is not an octal mode, as 755 is")))?,
            ),
            None => None,
        };
        let chown = match &copy.chown {
            Some(text) => Some(self.expand(at, text)?),
            None => None,
        };
        let mut paths = Vec::new();
        let mut documents = Vec::new();
        for source in &copy.sources {
            match source {
                CopySourceText::Path(path) => paths.push(word(path)?),
                CopySourceText::Heredoc(document) => documents.push(document),
            }
        }
        if paths.len() + documents.len() > 1 && !destination.ends_with('/') && destination != "/" {
            return Err(fail(at, "with several sources the destination must end with /"));
        }
        if let Some(image) = from {
            let whole = paths.iter().all(|p| clean(p).is_empty()) && documents.is_empty();
            if whole && destination == "/" && chown.is_none() && chmod.is_none() && image.binds.is_empty() {
                // All of an image onto the root is its layers stacked: nothing to copy.
                return self.stack(at, image);
            }
        }
        let mut hasher = self.layer_digest("copy");
        hasher.text(&destination).text(chown.as_deref().unwrap_or_default());
        hasher.number(u64::from(chmod.map_or(u32::MAX, |m| m)));
        let (origin, content) = match from {
            Some(image) => {
                if !documents.is_empty() || !copy.exclude.is_empty() || copy.parents {
                    return Err(fail(at, "--from takes plain paths, without --exclude and --parents"));
                }
                from_image(image, &paths)
            }
            None => self.copy_from_context(at, copy, &paths, &documents)?,
        };
        hasher.text(&content);
        let digest = hasher.finish();
        let plan = CopyPlan { from: origin, destination, chown, chmod };
        self.add_layer(at, Action::Copy(plan), digest)
    }

    fn stack(&mut self, at: &Numbered, image: &ImageSpec) -> Result<Step> {
        for layer in &image.layers {
            if !self.image.layers.contains(layer) {
                self.check_room(at)?;
                self.image.layers.push(layer.clone());
            }
        }
        Ok(self.plain(at, Action::Config))
    }

    fn copy_from_context(
        &self,
        at: &Numbered,
        copy: &CopyInstruction,
        paths: &[String],
        documents: &[&Heredoc],
    ) -> Result<(CopyOrigin, String)> {
        let (urls, paths): (Vec<_>, Vec<_>) = paths.iter().cloned().partition(|p| copy.add && is_url(p));
        let files = self.input.recipe.context();
        let matched =
            context::select(&files, &paths, &copy.exclude, copy.parents).map_err(|e| fail(at, e))?;
        let mut hasher = crate::digest::Hasher::new("evoke-copy-sources-1");
        hasher.text(&matched.digest);
        let mut staged: Vec<(String, StagedFile)> = Vec::new();
        let mut sources = matched.sources.clone();
        for document in documents {
            let text = if document.expand {
                self.expand_text(at, &document.content)?
            } else {
                document.content.clone()
            };
            let name = clean(&document.delimiter);
            hasher.text("text").text(&name).text(&text);
            sources.push(name.clone());
            staged.push((name, StagedFile::Text(text)));
        }
        for url in urls {
            let name = url_name(&url).ok_or_else(|| fail(at, format!("{url} ends with no file name")))?;
            hasher.text("url").text(&url).text(copy.checksum.as_deref().unwrap_or_default());
            sources.push(name.clone());
            staged.push((name, StagedFile::Url(url, copy.checksum.clone())));
        }
        let content = hasher.finish();
        if copy.add && staged.is_empty() {
            if let [name] = matched.files.as_slice() {
                if matched.sources == [name.clone()] && is_archive(name) {
                    let file = StagedFile::Context(name.clone());
                    return Ok((CopyOrigin::Archive { file, name: name.clone() }, content));
                }
            }
        }
        let inline = matched.files.iter().any(|path| self.input.recipe.inline(path).is_some());
        let shadowed =
            matched.sources.iter().any(|s| s.is_empty()) && !self.input.recipe.context_files.is_empty();
        if staged.is_empty() && !inline && !shadowed && !matched.partial && !copy.parents {
            return Ok((CopyOrigin::Mount { sources }, content));
        }
        staged.extend(matched.files.iter().map(|path| (path.clone(), StagedFile::Context(path.clone()))));
        if copy.parents {
            // The staged folder holds just what is to be copied, below its own folders.
            sources = vec![String::new()];
        }
        Ok((CopyOrigin::Staged { files: staged, sources }, content))
    }
}

fn from_image(image: &ImageSpec, paths: &[String]) -> (CopyOrigin, String) {
    let sources: Vec<String> = paths.iter().map(|p| clean(p)).collect();
    let mut hasher = crate::digest::Hasher::new("evoke-copy-from-1");
    hasher.text(&image.root_digest()).texts(&sources);
    (CopyOrigin::Image { root: Root::of(image), sources }, hasher.finish())
}

fn octal(text: &str) -> Option<u32> {
    u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777)
}

fn is_url(path: &str) -> bool {
    path.starts_with("http://") || path.starts_with("https://")
}

/// The last segment of an address.
fn url_name(url: &str) -> Option<String> {
    let path = url.split(['?', '#']).next()?;
    let (_, path) = path.split_once("://")?;
    let (_, path) = path.split_once('/')?;
    let name = clean(path.rsplit('/').next()?);
    (!name.is_empty() && !glob::is_pattern(&name)).then_some(name)
}

/// Whether ADD unpacks a file of that name.
fn is_archive(name: &str) -> bool {
    [".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.zst"].iter().any(|end| name.ends_with(end))
}
