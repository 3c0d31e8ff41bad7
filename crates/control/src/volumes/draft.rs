//! The next version of a volume while it is being decided: what is there, and what is to change. Pure; the
//! store's snapshot comes in as [`Files`].

use evoke_core::{Error, ErrorCode, UnixMs};
use evoke_proto::worker::{VolumeChange, VolumeChangeKind};
use evoke_store::{StoreError, VolumeFile, VolumeFileKind, VolumeSnapshot};
use std::collections::BTreeMap;

/// The longest path, and the longest name in one (bytes), as Linux has them.
const PATH_BYTES_MAX: usize = 4095;
const NAME_BYTES_MAX: usize = 255;
/// Links that are followed one after the other, as in Linux.
const LINKS_MAX: usize = 40;
/// Permission bits of a folder that nobody gave any.
const FOLDER_MODE: u32 = 0o755;
/// The bits that are kept of a file, and of a folder. Set-id bits are not.
const FILE_BITS: u32 = 0o777;
const FOLDER_BITS: u32 = 0o1777;

/// What is there in one version.
pub(crate) trait Files {
    /// The entry at a path.
    fn get(&self, path: &str) -> Result<Option<VolumeFile>, StoreError>;
    /// Everything below a folder.
    fn under(&self, path: &str) -> Result<Vec<VolumeFile>, StoreError>;
}

impl Files for VolumeSnapshot<'_> {
    fn get(&self, path: &str) -> Result<Option<VolumeFile>, StoreError> {
        self.get(path)
    }
    fn under(&self, path: &str) -> Result<Vec<VolumeFile>, StoreError> {
        self.under(path)
    }
}

/// All of a version in memory: for changes so large that asking for each path would take longer.
pub(crate) struct Everything(BTreeMap<String, VolumeFile>);

impl Everything {
    pub(crate) fn of(files: Vec<VolumeFile>) -> Self {
        Self(files.into_iter().map(|file| (file.path.clone(), file)).collect())
    }
}

impl Files for Everything {
    fn get(&self, path: &str) -> Result<Option<VolumeFile>, StoreError> {
        Ok(self.0.get(path).cloned())
    }
    fn under(&self, path: &str) -> Result<Vec<VolumeFile>, StoreError> {
        let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
        let from = self.0.range(prefix.clone()..);
        Ok(from.take_while(|(at, _)| at.starts_with(&prefix)).map(|(_, file)| file.clone()).collect())
    }
}

/// A path of a volume: without slashes at its ends, `.` and empty parts; the root is empty.
pub(crate) fn clean(path: &str) -> Result<String, Error> {
    let shown = || path.chars().take(200).collect::<String>().escape_debug().to_string();
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.contains(&"..") {
        return Err(Error::invalid(format!(
            "The path '{}' has '..' in it; give it from the volume's root on",
            shown()
        )));
    }
    if path.contains('\0') {
        return Err(Error::invalid(format!("The path '{}' has a NUL character in it", shown())));
    }
    if path.len() > PATH_BYTES_MAX || parts.iter().any(|part| part.len() > NAME_BYTES_MAX) {
        return Err(Error::invalid(format!(
            "The path '{}…' is too long: {PATH_BYTES_MAX} bytes in all and {NAME_BYTES_MAX} per name are the most",
            shown()
        )));
    }
    Ok(parts.join("/"))
}

pub(crate) fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

fn name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

fn missing(path: &str) -> Error {
    Error::not_found(format!("There is no file or directory '{path}' in the volume"))
}

/// The entry that `path` means once links are followed; the root is a folder without an entry.
pub(crate) fn resolve(files: &impl Files, path: &str) -> Result<(String, Option<VolumeFile>), Error> {
    let mut rest: Vec<String> = path.split('/').rev().filter(|p| !p.is_empty()).map(str::to_owned).collect();
    let mut at = String::new();
    let mut entry = None;
    let mut links = 0;
    while let Some(part) = rest.pop() {
        match part.as_str() {
            "" | "." => continue,
            ".." if at.is_empty() => return Err(leads_out(path)),
            ".." => {
                at = parent(&at).to_owned();
                entry = if at.is_empty() { None } else { files.get(&at)? };
                continue;
            }
            _ => {}
        }
        let next = join(&at, &part);
        let found = files.get(&next)?.ok_or_else(|| missing(path))?;
        if found.kind == VolumeFileKind::Link {
            links += 1;
            if links > LINKS_MAX || found.content.starts_with('/') {
                return Err(leads_out(path));
            }
            rest.extend(found.content.split('/').rev().map(str::to_owned));
            continue;
        }
        at = next;
        entry = Some(found);
    }
    Ok((at, entry))
}

fn leads_out(path: &str) -> Error {
    Error::not_found(format!("'{path}' is a link that leads nowhere in the volume"))
}

/// Name and length of a content that is stored.
pub(crate) type Stored = (String, u64);

/// A version in the making.
pub(crate) struct Draft<'a, F> {
    files: &'a F,
    edits: BTreeMap<String, Option<VolumeFile>>,
    now: UnixMs,
}

impl<'a, F: Files> Draft<'a, F> {
    /// One that changes nothing yet of `files`.
    pub(crate) fn new(files: &'a F, now: UnixMs) -> Self {
        Self { files, edits: BTreeMap::new(), now }
    }

    fn get(&self, path: &str) -> Result<Option<VolumeFile>, Error> {
        match self.edits.get(path) {
            Some(edit) => Ok(edit.clone()),
            None => Ok(self.files.get(path)?),
        }
    }

    fn is_folder(&self, path: &str) -> Result<bool, Error> {
        Ok(path.is_empty() || self.get(path)?.is_some_and(|file| file.kind == VolumeFileKind::Folder))
    }

    /// Everything below a folder as it will be.
    fn under(&self, path: &str) -> Result<Vec<VolumeFile>, Error> {
        let mut all: BTreeMap<String, VolumeFile> =
            self.files.under(path)?.into_iter().map(|file| (file.path.clone(), file)).collect();
        let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
        for (at, edit) in self.edits.range(prefix.clone()..) {
            if !at.starts_with(&prefix) {
                break;
            }
            match edit {
                Some(file) => all.insert(at.clone(), file.clone()),
                None => all.remove(at),
            };
        }
        Ok(all.into_values().collect())
    }

    fn put(&mut self, file: VolumeFile) {
        self.edits.insert(file.path.clone(), Some(file));
    }

    /// Makes the folders that `path` lies in. A file in the way is an error, or gives way.
    fn make_folders(&mut self, path: &str, replace: bool) -> Result<(), Error> {
        let mut at = parent(path);
        let mut wanted = Vec::new();
        while !at.is_empty() {
            match self.get(at)? {
                Some(file) if file.kind == VolumeFileKind::Folder => break,
                Some(_) if !replace => {
                    return Err(Error::precondition(format!(
                        "'{at}' is a file in the volume, not a directory"
                    )));
                }
                _ => wanted.push(at.to_owned()),
            }
            at = parent(at);
        }
        for folder in wanted.into_iter().rev() {
            self.put(folder_at(folder, FOLDER_MODE, self.now));
        }
        Ok(())
    }

    /// Adds a file that a client sent.
    pub(crate) fn upload(&mut self, file: VolumeFile, overwrite: bool) -> Result<(), Error> {
        self.check_upload(&file.path, overwrite)?;
        self.make_folders(&file.path, false)?;
        self.put(VolumeFile { mode: file.mode & FILE_BITS, ..file });
        Ok(())
    }

    /// Whether a client may put a file there.
    pub(crate) fn check_upload(&self, path: &str, overwrite: bool) -> Result<(), Error> {
        if self.is_folder(path)? {
            return Err(Error::precondition(format!("'/{path}' is a directory in the volume")));
        }
        if !overwrite && self.get(path)?.is_some() {
            return Err(Error::new(
                ErrorCode::AlreadyExists,
                format!(
                    "'/{path}' already exists in the volume; pass force=True (or --force) to overwrite it"
                ),
            ));
        }
        Ok(())
    }

    /// Removes what is at `path`.
    pub(crate) fn remove(&mut self, path: &str, recursive: bool) -> Result<(), Error> {
        if !path.is_empty() && self.get(path)?.is_none() {
            return Err(missing(path));
        }
        if !recursive && self.is_folder(path)? {
            return Err(Error::invalid(format!(
                "'{path}' is a directory; pass recursive=True (or -r) to remove it with all that is in it"
            )));
        }
        self.remove_all(path)
    }

    fn remove_all(&mut self, path: &str) -> Result<(), Error> {
        for file in self.under(path)? {
            self.edits.insert(file.path, None);
        }
        if !path.is_empty() {
            self.edits.insert(path.to_owned(), None);
        }
        Ok(())
    }

    /// Copies as `cp` does.
    pub(crate) fn copy(&mut self, sources: &[String], target: &str, recursive: bool) -> Result<(), Error> {
        let into = self.is_folder(target)?;
        if sources.len() > 1 && !into {
            return Err(Error::invalid(format!(
                "'{target}' is not a directory; several files can only be copied into one"
            )));
        }
        for source in sources {
            let found = if source.is_empty() {
                None
            } else {
                Some(self.get(source)?.ok_or_else(|| missing(source))?)
            };
            let to = if into { join(target, name(source)) } else { target.to_owned() };
            match found {
                Some(file) if file.kind != VolumeFileKind::Folder => {
                    if to == *source {
                        return Err(Error::invalid(format!("'{source}' and '{to}' are the same file")));
                    }
                    if self.is_folder(&to)? {
                        return Err(Error::precondition(format!("'{to}' is a directory in the volume")));
                    }
                    self.make_folders(&to, false)?;
                    self.put(VolumeFile { path: to, mtime: self.now, ..file });
                }
                folder => self.copy_folder(source, folder, &to, recursive)?,
            }
        }
        Ok(())
    }

    fn copy_folder(
        &mut self,
        source: &str,
        folder: Option<VolumeFile>,
        to: &str,
        recursive: bool,
    ) -> Result<(), Error> {
        if !recursive {
            return Err(Error::invalid(format!(
                "'{source}' is a directory; pass recursive=True (or -r) to copy it"
            )));
        }
        if to == source || to.starts_with(&format!("{source}/")) || source.is_empty() {
            return Err(Error::invalid(format!("'{source}' cannot be copied into itself, '{to}'")));
        }
        if !self.is_folder(to)? {
            if self.get(to)?.is_some() {
                return Err(Error::precondition(format!("'{to}' is a file in the volume, not a directory")));
            }
            self.make_folders(to, false)?;
            self.put(folder_at(to.to_owned(), folder.map_or(FOLDER_MODE, |f| f.mode), self.now));
        }
        for file in self.under(source)? {
            let path = join(to, file.path.trim_start_matches(source).trim_start_matches('/'));
            let there = self.get(&path)?;
            if there
                .is_some_and(|t| (t.kind == VolumeFileKind::Folder) != (file.kind == VolumeFileKind::Folder))
            {
                return Err(Error::precondition(format!("'{path}' exists as something else in the volume")));
            }
            self.put(VolumeFile { path, mtime: self.now, ..file });
        }
        Ok(())
    }

    /// Takes in what a container changed since `base`, in the order of its changes: for each file the last
    /// writer wins, and what others added since stays.
    pub(crate) fn merge(
        &mut self,
        base: &impl Files,
        changes: Vec<(VolumeChange, Option<Stored>)>,
    ) -> Result<(), Error> {
        for (change, stored) in changes {
            let path = clean(&change.path)?;
            if path.is_empty() {
                continue;
            }
            match change.kind {
                VolumeChangeKind::Remove => self.remove_known(base, &path, true)?,
                VolumeChangeKind::Empty => self.remove_known(base, &path, false)?,
                VolumeChangeKind::Moved { from } => {
                    let from = clean(&from)?;
                    for file in base.under(&from)? {
                        let rest = file.path[from.len()..].trim_start_matches('/').to_owned();
                        self.put(VolumeFile { path: join(&path, &rest), ..file });
                    }
                }
                VolumeChangeKind::Folder => {
                    self.make_folders(&path, true)?;
                    self.put(VolumeFile {
                        mtime: change.mtime,
                        ..folder_at(path, change.mode & FOLDER_BITS, self.now)
                    });
                }
                VolumeChangeKind::File { .. } => {
                    let Some((content, size)) = stored else { continue };
                    self.replace(&path)?;
                    let mode = change.mode & FILE_BITS;
                    let kind = VolumeFileKind::File;
                    self.put(VolumeFile { path, kind, mode, mtime: change.mtime, size, content });
                }
                VolumeChangeKind::Link { target } => {
                    self.replace(&path)?;
                    let (kind, size) = (VolumeFileKind::Link, target.len() as u64);
                    self.put(VolumeFile {
                        path,
                        kind,
                        mode: 0o777,
                        mtime: change.mtime,
                        size,
                        content: target,
                    });
                }
            }
        }
        Ok(())
    }

    /// Makes room for a file: what is there goes, and so does a file in the way of its folders.
    fn replace(&mut self, path: &str) -> Result<(), Error> {
        if self.is_folder(path)? {
            self.remove_all(path)?;
        }
        self.make_folders(path, true)
    }

    /// Removes what a container knew of: what others added meanwhile, and the folders that it needs, stay.
    fn remove_known(&mut self, base: &impl Files, path: &str, with_itself: bool) -> Result<(), Error> {
        let mut known: Vec<String> = base.under(path)?.into_iter().map(|file| file.path).collect();
        let own: Vec<String> = self
            .edits
            .iter()
            .filter(|(at, edit)| edit.is_some() && is_below(at, path))
            .map(|(at, _)| at.clone())
            .collect();
        known.extend(own);
        if with_itself {
            known.push(path.to_owned());
        }
        // Deepest first, so that a folder is looked at once what was in it is gone.
        known.sort_by_key(|at| std::cmp::Reverse(at.matches('/').count()));
        for at in known {
            let keep = self.is_folder(&at)? && !self.under(&at)?.is_empty();
            if !keep && self.get(&at)?.is_some() {
                self.edits.insert(at, None);
            }
        }
        Ok(())
    }

    /// Makes the volume hold what `wanted` holds.
    pub(crate) fn restore(&mut self, wanted: &impl Files) -> Result<(), Error> {
        self.remove_all("")?;
        for file in wanted.under("")? {
            self.put(file);
        }
        Ok(())
    }

    /// What the version changes: entries that are new or other, and paths that are there no more.
    pub(crate) fn finish(self) -> Result<(Vec<VolumeFile>, Vec<String>), Error> {
        let (mut puts, mut removes) = (Vec::new(), Vec::new());
        for (path, edit) in self.edits {
            match (self.files.get(&path)?, edit) {
                (Some(before), Some(file)) if before.same(&file) => {}
                (_, Some(file)) => puts.push(file),
                (Some(_), None) => removes.push(path),
                (None, None) => {}
            }
        }
        Ok((puts, removes))
    }
}

fn is_below(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
}

fn folder_at(path: String, mode: u32, mtime: UnixMs) -> VolumeFile {
    VolumeFile { path, kind: VolumeFileKind::Folder, mode, mtime, size: 0, content: String::new() }
}

#[cfg(test)]
#[path = "draft_tests.rs"]
mod tests;
