//! Asking the host's indexes for a project, choosing its wheel, and fetching it.

use super::{
    IndexConfig, IndexFile, Requirement, Target, Version, WheelName, Yanked,
    simple_page::{ACCEPT, read_page},
};
use crate::{
    IoFailure,
    content_hash::ContentHash,
    fetch::{Download, FetchError, Fetcher, Progress, redact_url},
    io_failure::IoContext,
};
use evoke_core::{Error, ErrorCode};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

/// The longest page of a project that is read, in bytes.
const PAGE_BYTES_MAX: u64 = 64 << 20;

/// What an index could not give.
#[derive(Debug, thiserror::Error)]
pub enum PypiError {
    /// No index could be asked.
    #[error("{name}: {source}")]
    Index {
        /// The project.
        name: String,
        /// What the network said.
        source: FetchError,
    },
    /// An index answered with something that is not a project's page.
    #[error("{name}: {url} is not a package index: {reason}")]
    Page {
        /// The project.
        name: String,
        /// The page, without credentials.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No index has the project.
    #[error("no package index has the project {name} (asked: {asked})")]
    NoProject {
        /// The project.
        name: String,
        /// The indexes, without credentials.
        asked: String,
    },
    /// The project has no wheel that fits.
    #[error("no wheel of {name} {wanted} fits CPython 3.{python_minor} on {platform}; the index has {has}")]
    NoWheel {
        /// The project.
        name: String,
        /// The versions that would do.
        wanted: String,
        /// The interpreter's minor version.
        python_minor: u8,
        /// The platform's tag.
        platform: String,
        /// The versions that the index has for this interpreter.
        has: String,
    },
    /// The wheel could not be brought here.
    #[error("{file_name}: {source}")]
    Download {
        /// The wheel.
        file_name: String,
        /// What went wrong.
        source: FetchError,
    },
    /// The disk failed.
    #[error(transparent)]
    Io(#[from] IoFailure),
}

impl PypiError {
    /// What the person can do about it.
    pub fn hint(&self) -> Option<String> {
        let network = match self {
            PypiError::Index { source, .. } | PypiError::Download { source, .. } => source.hint(),
            PypiError::NoProject { .. } | PypiError::NoWheel { .. } | PypiError::Page { .. } => None,
            PypiError::Io(_) => return None,
        };
        let index = "Set PIP_INDEX_URL to a package index that has it and that this machine can reach.";
        Some(network.map_or_else(|| index.to_owned(), |network| format!("{index} {network}")))
    }
}

impl From<PypiError> for Error {
    fn from(error: PypiError) -> Error {
        let hint = error.hint();
        let message = error.to_string();
        let code = match error {
            PypiError::Io(failure) => return failure.into(),
            PypiError::Index { source, .. } | PypiError::Download { source, .. } => Error::from(source).code,
            PypiError::Page { .. } => ErrorCode::FailedPrecondition,
            PypiError::NoProject { .. } | PypiError::NoWheel { .. } => ErrorCode::NotFound,
        };
        Error { code, message, hint }
    }
}

/// A wheel that was chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The project, in its normal form.
    pub name: String,
    /// The version of the wheel.
    pub version: Version,
    /// The file to fetch.
    pub file: IndexFile,
}

/// The host's package indexes.
#[derive(Debug, Clone)]
pub struct PackageIndex {
    fetcher: Fetcher,
    config: IndexConfig,
}

impl PackageIndex {
    /// The indexes of `config`, reached through `fetcher`.
    pub fn new(fetcher: Fetcher, config: IndexConfig) -> Self {
        Self { fetcher, config }
    }

    /// Which indexes are asked.
    pub fn config(&self) -> &IndexConfig {
        &self.config
    }

    /// The files that the first index which knows the project has of it.
    pub fn files(&self, name: &str) -> Result<Vec<IndexFile>, PypiError> {
        let mut failure = None;
        for index in self.config.all() {
            match self.files_at(index, name) {
                Ok(Some(files)) => return Ok(files),
                Ok(None) => {}
                // Another index may still have it; the first failure is told if none does.
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        let asked = self.config.all().map(redact_url).collect::<Vec<_>>().join(", ");
        Err(failure.unwrap_or(PypiError::NoProject { name: name.to_owned(), asked }))
    }

    fn files_at(&self, index: &str, name: &str) -> Result<Option<Vec<IndexFile>>, PypiError> {
        let url = format!("{}/{name}/", index.trim_end_matches('/'));
        let failed = |source| PypiError::Index { name: name.to_owned(), source };
        let reply = self.fetcher.get(&url, &[("accept", ACCEPT)]).map_err(failed)?;
        if matches!(reply.status, 404 | 410) {
            return Ok(None);
        }
        let reply = reply.success().map_err(failed)?;
        let media_type = reply.header("content-type").unwrap_or_default().to_owned();
        let page = reply.url.clone();
        let body = reply.bytes(PAGE_BYTES_MAX).map_err(failed)?;
        let files = read_page(&page, &media_type, &body);
        let url = redact_url(&page);
        files.map(Some).map_err(|reason| PypiError::Page { name: name.to_owned(), url, reason })
    }

    /// The newest wheel of the project that meets the requirement and fits the interpreter.
    pub fn choose(&self, wanted: &Requirement, target: &Target) -> Result<Choice, PypiError> {
        let files = self.files(&wanted.name)?;
        choose_among(wanted, &files, target).ok_or_else(|| no_wheel(wanted, &files, target))
    }

    /// Brings the wheel into `folder` under its own name and gives its path. One that is there already is
    /// kept if it has the hash that the index promises.
    pub fn fetch(
        &self,
        choice: &Choice,
        folder: &Path,
        progress: Option<Progress<'_>>,
    ) -> Result<PathBuf, PypiError> {
        fs::create_dir_all(folder).during("create", folder)?;
        // Only names that are those of wheels were chosen, and those hold no slash.
        let path = folder.join(&choice.file.file_name);
        if let (Some(wanted), Ok(file)) = (choice.file.sha256, File::open(&path)) {
            if ContentHash::of_reader(file).during("read", &path)?.0 == wanted {
                return Ok(path);
            }
        }
        let what = Download {
            url: &choice.file.url,
            headers: &[],
            sha256: choice.file.sha256,
            length: choice.file.length,
            progress,
            passing: false,
        };
        let failed = |source| PypiError::Download { file_name: choice.file.file_name.clone(), source };
        self.fetcher.download(&what, &path).map_err(failed)?;
        Ok(path)
    }
}

/// The best wheel for `wanted` among `files`: the newest version, and of it the one that fits best.
pub(crate) fn choose_among(wanted: &Requirement, files: &[IndexFile], target: &Target) -> Option<Choice> {
    let pinned = wanted.specifiers.pin().is_some();
    let candidates = fitting(files, target).filter(|(wheel, file)| {
        wheel.name == wanted.name
            && wanted.specifiers.admits(&wheel.version)
            && (pinned || file.yanked == Yanked::No)
    });
    let candidates: Vec<(WheelName, &IndexFile)> = candidates.collect();
    // Pre-releases count where they are asked for, or where there is nothing else.
    let only_pre = candidates.iter().all(|(wheel, _)| wheel.version.is_prerelease());
    let with_pre = only_pre || wanted.specifiers.names_prerelease();
    let (wheel, file) = candidates
        .into_iter()
        .filter(|(wheel, _)| with_pre || !wheel.version.is_prerelease())
        .max_by(|(a, _), (b, _)| a.version.cmp(&b.version).then_with(|| a.fit(target).cmp(&b.fit(target))))?;
    Some(Choice { name: wheel.name, version: wheel.version, file: file.clone() })
}

/// The wheels that this interpreter can use.
fn fitting<'a>(
    files: &'a [IndexFile],
    target: &'a Target,
) -> impl Iterator<Item = (WheelName, &'a IndexFile)> {
    let python = format!("3.{}.99", target.python_minor).parse::<Version>().ok();
    files.iter().filter_map(move |file| {
        let wheel: WheelName = file.file_name.parse().ok()?;
        wheel.fit(target)?;
        let requires = file.requires_python.as_ref().zip(python.as_ref());
        let is_name = !file.file_name.contains(['/', '\\', '\0']);
        (is_name && requires.is_none_or(|(requires, python)| requires.admits(python)))
            .then_some((wheel, file))
    })
}

fn no_wheel(wanted: &Requirement, files: &[IndexFile], target: &Target) -> PypiError {
    /// Versions named in the message.
    const NAMED_MAX: usize = 5;
    let mut versions: Vec<Version> = fitting(files, target).map(|(wheel, _)| wheel.version).collect();
    versions.sort();
    versions.dedup();
    let newest: Vec<String> = versions.iter().rev().take(NAMED_MAX).map(Version::to_string).collect();
    let has = match newest.as_slice() {
        [] => "none at all for it".to_owned(),
        _ => format!("for it, newest first: {}", newest.join(", ")),
    };
    PypiError::NoWheel {
        name: wanted.name.clone(),
        wanted: wanted.specifiers.to_string(),
        python_minor: target.python_minor,
        platform: format!("{}_{}", target.libc.tag(), target.arch),
        has,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pypi::Libc;

    fn file(name: &str, requires: Option<&str>, yanked: Yanked) -> IndexFile {
        IndexFile {
            file_name: name.into(),
            url: format!("https://files.test/{name}"),
            sha256: None,
            length: None,
            requires_python: requires.map(|r| r.parse().unwrap()),
            yanked,
        }
    }

    #[test]
    fn the_newest_that_is_wanted_and_fits() {
        let target = Target { python_minor: 11, libc: Libc::MANYLINUX_2_17, arch: "x86_64" };
        let files = [
            file("s-0.12.6-py3-none-any.whl", None, Yanked::No),
            file("s-0.12.7-py3-none-any.whl", None, Yanked::No),
            file("s-0.12.8-py3-none-any.whl", None, Yanked::Yes),
            file("s-0.12.9-py3-none-any.whl", Some(">=3.12"), Yanked::No),
            file("s-0.12.10rc1-py3-none-any.whl", None, Yanked::No),
            file("s-0.13.0-py3-none-any.whl", None, Yanked::No),
            file("s-0.14.0.tar.gz", None, Yanked::No),
        ];
        let choose =
            |text: &str| choose_among(&text.parse().unwrap(), &files, &target).map(|c| c.version.to_string());
        assert_eq!(choose("s~=0.12.7").as_deref(), Some("0.12.7"));
        assert_eq!(choose("s").as_deref(), Some("0.13.0"));
        assert_eq!(choose("s==0.12.8").as_deref(), Some("0.12.8"));
        assert_eq!(choose("s>=0.12.10rc1,<0.13").as_deref(), Some("0.12.10rc1"));
        assert_eq!(choose("s==0.12.9"), None);
        let error = no_wheel(&"s==0.12.9".parse().unwrap(), &files, &target).to_string();
        assert!(error.contains("newest first: 0.13.0") && error.contains("manylinux_2_17_x86_64"), "{error}");
    }
}
