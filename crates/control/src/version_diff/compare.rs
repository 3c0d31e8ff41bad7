//! What two versions of an app differ in, out of what is known of each. Pure.

use serde::Serialize;
use similar::TextDiff;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Most time that one file's comparison looks for the smallest difference; a larger one is shown then.
const SEARCH_MAX: Duration = Duration::from_secs(1);
/// Unchanged lines around a change.
const CONTEXT_LINES: usize = 3;

/// Files of a version: the digests of what is at each path. More than one where functions see different files there.
pub(super) type Files = BTreeMap<String, BTreeSet<String>>;
/// Packages by kind and name.
pub(super) type Packages = BTreeMap<(&'static str, String), String>;

/// What is known of one version.
#[derive(Debug, Clone, Default)]
pub(super) struct Snapshot {
    /// Settings of functions, by tag.
    pub functions: BTreeMap<String, BTreeMap<String, String>>,
    /// The image of each function, by tag.
    pub image_of: BTreeMap<String, String>,
    /// Images by id.
    pub images: BTreeMap<String, ImageFacts>,
    /// Mounted files.
    pub files: Files,
    /// What belongs to the app as a whole.
    pub app: BTreeMap<String, String>,
}

/// What is known of an image.
#[derive(Debug, Clone, Default)]
pub(super) struct ImageFacts {
    /// What makes it, from the base up.
    pub steps: Vec<String>,
    /// What is in it.
    pub packages: Packages,
    /// Files that its steps copy.
    pub files: Files,
}

/// What two versions differ in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VersionDiff {
    /// Mounted files: the app's own code, mostly.
    pub files: Vec<FileChange>,
    /// Functions that are new.
    pub functions_added: Vec<String>,
    /// Functions that are gone.
    pub functions_removed: Vec<String>,
    /// Functions whose settings changed.
    pub functions_changed: Vec<FunctionChange>,
    /// Images that changed.
    pub images: Vec<ImageChange>,
    /// What changed of the app as a whole.
    pub app: Vec<SettingChange>,
}

/// A file that changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileChange {
    /// Where it is.
    pub path: String,
    /// Digest of what was there; none where it is new.
    pub before: Option<String>,
    /// Digest of what is there; none where it is gone.
    pub after: Option<String>,
    /// The difference line by line.
    pub text: Option<String>,
    /// Why there is no such difference.
    pub note: Option<&'static str>,
}

/// A function whose settings changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FunctionChange {
    /// Its name.
    pub function: String,
    /// What changed.
    pub settings: Vec<SettingChange>,
}

/// A setting that changed; none where it is not set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SettingChange {
    /// Its name.
    pub setting: String,
    /// What it was.
    pub before: Option<String>,
    /// What it is.
    pub after: Option<String>,
}

/// An image that changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageChange {
    /// The functions that have it.
    pub functions: Vec<String>,
    /// Id of the image that they had.
    pub before: String,
    /// Id of the image that they have.
    pub after: String,
    /// Steps that are not there any more and new ones, as lines that begin with `-`, `+` or a space.
    pub steps: Vec<String>,
    /// Packages that differ.
    pub packages: Vec<PackageChange>,
    /// Files that its steps copy.
    pub files: Vec<FileChange>,
}

/// A package that differs; none where it is not in the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PackageChange {
    /// `python` or `debian`.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// The version that was there.
    pub before: Option<String>,
    /// The version that is there.
    pub after: Option<String>,
}

impl VersionDiff {
    /// All files that changed, those that images copy too.
    pub(super) fn files_mut(&mut self) -> impl Iterator<Item = &mut FileChange> {
        self.files.iter_mut().chain(self.images.iter_mut().flat_map(|image| image.files.iter_mut()))
    }
}

/// Compares two versions. Files have no text yet.
pub(super) fn compare(before: &Snapshot, after: &Snapshot) -> VersionDiff {
    let both = before.functions.iter().filter_map(|(tag, old)| Some((tag, old, after.functions.get(tag)?)));
    let functions_changed = both.filter_map(|(tag, old, new)| {
        let settings = settings(old, new);
        (!settings.is_empty()).then(|| FunctionChange { function: tag.clone(), settings })
    });
    VersionDiff {
        files: files(&before.files, &after.files),
        functions_added: missing(&after.functions, &before.functions),
        functions_removed: missing(&before.functions, &after.functions),
        functions_changed: functions_changed.collect(),
        images: images(before, after),
        app: settings(&before.app, &after.app),
    }
}

/// What is in one and not in the other.
fn missing<T>(of: &BTreeMap<String, T>, from: &BTreeMap<String, T>) -> Vec<String> {
    of.keys().filter(|key| !from.contains_key(*key)).cloned().collect()
}

fn settings(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> Vec<SettingChange> {
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let change = |name: &String| SettingChange {
        setting: name.clone(),
        before: before.get(name).cloned(),
        after: after.get(name).cloned(),
    };
    names.into_iter().map(change).filter(|change| change.before != change.after).collect()
}

fn files(before: &Files, after: &Files) -> Vec<FileChange> {
    let none = BTreeSet::new();
    let paths: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let mut changes = Vec::new();
    for path in paths {
        let (old, new) = (before.get(path).unwrap_or(&none), after.get(path).unwrap_or(&none));
        let (mut gone, mut came) = (old.difference(new), new.difference(old));
        loop {
            let (before, after) = (gone.next().cloned(), came.next().cloned());
            if before.is_none() && after.is_none() {
                break;
            }
            changes.push(FileChange { path: path.clone(), before, after, text: None, note: None });
        }
    }
    changes
}

fn images(before: &Snapshot, after: &Snapshot) -> Vec<ImageChange> {
    let mut functions: BTreeMap<(&String, &String), Vec<String>> = BTreeMap::new();
    for (tag, old) in &before.image_of {
        if let Some(new) = after.image_of.get(tag).filter(|new| *new != old) {
            functions.entry((old, new)).or_default().push(tag.clone());
        }
    }
    let empty = ImageFacts::default();
    let change = |((old, new), functions): ((&String, &String), Vec<String>)| {
        let (was, is) = (before.images.get(old).unwrap_or(&empty), after.images.get(new).unwrap_or(&empty));
        ImageChange {
            functions,
            before: old.clone(),
            after: new.clone(),
            steps: steps(&was.steps, &is.steps),
            packages: packages(&was.packages, &is.packages),
            files: files(&was.files, &is.files),
        }
    };
    functions.into_iter().map(change).collect()
}

/// The steps with the sign of what became of each; none where all are the same.
fn steps(before: &[String], after: &[String]) -> Vec<String> {
    if before == after {
        return Vec::new();
    }
    let (old, new): (Vec<&str>, Vec<&str>) =
        (before.iter().map(String::as_str).collect(), after.iter().map(String::as_str).collect());
    let diff = TextDiff::configure().timeout(SEARCH_MAX).diff_slices(&old, &new);
    diff.iter_all_changes().map(|change| format!("{}{}", change.tag(), change.value())).collect()
}

fn packages(before: &Packages, after: &Packages) -> Vec<PackageChange> {
    let keys: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let change = |key: &(&'static str, String)| PackageChange {
        kind: key.0,
        name: key.1.clone(),
        before: before.get(key).cloned(),
        after: after.get(key).cloned(),
    };
    keys.into_iter().map(change).filter(|change| change.before != change.after).collect()
}

/// The difference of two contents of a file, line by line; none where one of them is no text.
pub(super) fn unified(
    path: &str,
    names: (&str, &str),
    before: Option<&[u8]>,
    after: Option<&[u8]>,
) -> Option<String> {
    let text = |bytes: Option<&[u8]>| match bytes {
        Some(bytes) if bytes.contains(&0) => None,
        Some(bytes) => std::str::from_utf8(bytes).ok().map(str::to_owned),
        None => Some(String::new()),
    };
    let (old, new) = (text(before)?, text(after)?);
    let path = path.trim_start_matches('/');
    let header =
        |there: bool, name: &str| if there { format!("{name}/{path}") } else { "/dev/null".to_owned() };
    let (old_name, new_name) = (header(before.is_some(), names.0), header(after.is_some(), names.1));
    let diff = TextDiff::configure().timeout(SEARCH_MAX).diff_lines(&old, &new);
    Some(diff.unified_diff().context_radius(CONTEXT_LINES).header(&old_name, &new_name).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn files_of(pairs: &[(&str, &str)]) -> Files {
        pairs.iter().map(|(path, hash)| ((*path).to_owned(), BTreeSet::from([(*hash).to_owned()]))).collect()
    }

    fn snapshot(image: &str) -> Snapshot {
        Snapshot {
            functions: BTreeMap::from([
                ("f".to_owned(), map(&[("timeout", "300 s"), ("gpu", "H100")])),
                ("old".to_owned(), map(&[])),
            ]),
            image_of: map(&[("f", image), ("g", image)]),
            images: BTreeMap::from([(
                image.to_owned(),
                ImageFacts {
                    steps: vec!["FROM base".into(), format!("RUN {image}")],
                    packages: Packages::from([(("python", "six".to_owned()), image.to_owned())]),
                    files: Files::new(),
                },
            )]),
            files: files_of(&[("/root/a.py", "1"), ("/root/gone.py", "2")]),
            app: BTreeMap::new(),
        }
    }

    #[test]
    fn equal_versions_differ_in_nothing() {
        let diff = compare(&snapshot("im-1"), &snapshot("im-1"));
        assert!(diff.files.is_empty() && diff.images.is_empty() && diff.functions_changed.is_empty());
        assert!(diff.functions_added.is_empty() && diff.functions_removed.is_empty() && diff.app.is_empty());
    }

    #[test]
    fn each_kind_of_change_is_told_once() {
        let mut after = snapshot("im-2");
        after.functions = BTreeMap::from([
            ("f".to_owned(), map(&[("timeout", "60 s"), ("schedule", "Cron('* * * * *')")])),
            ("new".to_owned(), map(&[])),
        ]);
        after.files = files_of(&[("/root/a.py", "3"), ("/root/new.py", "4")]);
        let diff = compare(&snapshot("im-1"), &after);
        assert_eq!((diff.functions_added, diff.functions_removed), (vec!["new".into()], vec!["old".into()]));
        let settings: Vec<_> = diff.functions_changed[0]
            .settings
            .iter()
            .map(|s| (s.setting.as_str(), s.before.as_deref(), s.after.as_deref()))
            .collect();
        assert_eq!(
            settings,
            [
                ("gpu", Some("H100"), None),
                ("schedule", None, Some("Cron('* * * * *')")),
                ("timeout", Some("300 s"), Some("60 s")),
            ]
        );
        let files: Vec<_> =
            diff.files.iter().map(|f| (f.path.as_str(), f.before.is_some(), f.after.is_some())).collect();
        assert_eq!(
            files,
            [("/root/a.py", true, true), ("/root/gone.py", true, false), ("/root/new.py", false, true)]
        );
        assert_eq!(diff.images.len(), 1, "two functions have the same image");
        assert_eq!(diff.images[0].functions, ["f", "g"]);
        assert_eq!(diff.images[0].steps, [" FROM base", "-RUN im-1", "+RUN im-2"]);
        assert_eq!(diff.images[0].packages[0].after.as_deref(), Some("im-2"));
    }

    #[test]
    fn text_is_told_line_by_line_and_other_contents_are_not() {
        let text = unified("/root/a.py", ("v1", "v2"), Some(b"a\nb\n"), Some(b"a\nc\n")).unwrap();
        assert_eq!(text, "--- v1/root/a.py\n+++ v2/root/a.py\n@@ -1,2 +1,2 @@\n a\n-b\n+c\n");
        let added = unified("/n", ("v1", "v2"), None, Some(b"x")).unwrap();
        assert!(added.starts_with("--- /dev/null\n+++ v2/n\n@@ -0,0 +1 @@\n+x\n"), "{added}");
        assert_eq!(unified("/b", ("v1", "v2"), Some(b"\0"), Some(b"x")), None);
        assert_eq!(unified("/b", ("v1", "v2"), Some(b"\xff"), None), None);
    }
}
