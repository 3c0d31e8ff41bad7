//! What a version becomes, case by case.

use super::*;

const NOW: UnixMs = UnixMs(1000);

fn file(path: &str, content: &str) -> VolumeFile {
    let kind = VolumeFileKind::File;
    VolumeFile { path: path.into(), kind, mode: 0o644, mtime: NOW, size: 1, content: content.into() }
}

fn link(path: &str, target: &str) -> VolumeFile {
    VolumeFile { kind: VolumeFileKind::Link, ..file(path, target) }
}

/// A version with these files and the folders that they need.
fn version(files: &[(&str, &str)]) -> Everything {
    let nothing = Everything::of(Vec::new());
    let mut draft = Draft::new(&nothing, NOW);
    for (path, content) in files {
        draft.upload(file(path, content), true).unwrap();
    }
    Everything::of(draft.finish().unwrap().0)
}

/// What a draft over `before` comes to, as "path=content" of files and "path/" of folders.
fn after(
    before: &Everything,
    change: impl FnOnce(&mut Draft<'_, Everything>) -> Result<(), Error>,
) -> Vec<String> {
    let mut draft = Draft::new(before, NOW);
    change(&mut draft).unwrap();
    let (puts, removes) = draft.finish().unwrap();
    let mut all = Everything(before.0.clone());
    for path in removes {
        assert!(all.0.remove(&path).is_some(), "{path} was not there");
    }
    for file in puts {
        all.0.insert(file.path.clone(), file);
    }
    for path in all.0.keys() {
        let folder = parent(path);
        assert!(
            folder.is_empty() || all.0.get(folder).is_some_and(|f| f.kind == VolumeFileKind::Folder),
            "{path}"
        );
    }
    let shown = all.0.values().map(|file| match file.kind {
        VolumeFileKind::Folder => format!("{}/", file.path),
        _ => format!("{}={}", file.path, file.content),
    });
    shown.collect()
}

fn change(path: &str, kind: VolumeChangeKind) -> (VolumeChange, Option<Stored>) {
    (VolumeChange { path: path.into(), mode: 0o644, mtime: NOW, kind }, None)
}

fn written(path: &str, content: &str) -> (VolumeChange, Option<Stored>) {
    let (change, _) = change(path, VolumeChangeKind::File { staged: "0".into() });
    (change, Some((content.into(), 1)))
}

#[test]
fn paths_are_made_plain_or_refused() {
    for (path, plain) in [("/", ""), ("a//b/", "a/b"), ("/./a/.", "a"), ("ü b/…", "ü b/…")] {
        assert_eq!(clean(path).unwrap(), plain);
    }
    for bad in ["../a", "a/../b", "a\0b", &"x".repeat(256), &"x/".repeat(3000)] {
        assert_eq!(clean(bad).unwrap_err().code, ErrorCode::InvalidArgument, "{bad:?}");
    }
}

#[test]
fn links_are_followed_inside_only() {
    let mut all = version(&[("d/x", "1"), ("e/f/y", "2")]);
    for l in [
        link("in", "d"),
        link("d/up", "../e/f"),
        link("out", "../x"),
        link("abs", "/etc"),
        link("loop", "loop"),
    ] {
        all.0.insert(l.path.clone(), l);
    }
    for (path, found) in [("in/x", "d/x"), ("in/up/y", "e/f/y"), ("", ""), ("d/up", "e/f")] {
        assert_eq!(resolve(&all, path).unwrap().0, found, "{path}");
    }
    for bad in ["out", "abs", "loop", "no", "d/x/z"] {
        assert_eq!(resolve(&all, bad).unwrap_err().code, ErrorCode::NotFound, "{bad}");
    }
}

#[test]
fn uploads_make_folders_and_mind_what_is_there() {
    let all = version(&[("a/x", "1")]);
    assert_eq!(
        after(&all, |d| d.upload(file("b/c/y", "2"), false)),
        ["a/", "a/x=1", "b/", "b/c/", "b/c/y=2"]
    );
    assert_eq!(after(&all, |d| d.upload(file("a/x", "2"), true)), ["a/", "a/x=2"]);
    for (path, overwrite, code) in [
        ("a/x", false, ErrorCode::AlreadyExists),
        ("a", true, ErrorCode::FailedPrecondition),
        ("a/x/y", true, ErrorCode::FailedPrecondition),
        ("", true, ErrorCode::FailedPrecondition),
    ] {
        let error = Draft::new(&all, NOW).upload(file(path, "3"), overwrite).unwrap_err();
        assert_eq!(error.code, code, "{path}");
    }
}

#[test]
fn removes_what_is_named_and_folders_only_on_request() {
    let all = version(&[("a/x", "1"), ("a/b/y", "2"), ("ab", "3")]);
    assert_eq!(after(&all, |d| d.remove("a", true)), ["ab=3"]);
    assert_eq!(after(&all, |d| d.remove("", true)), [""; 0]);
    assert_eq!(after(&all, |d| d.remove("ab", false)), ["a/", "a/b/", "a/b/y=2", "a/x=1"]);
    assert_eq!(Draft::new(&all, NOW).remove("a", false).unwrap_err().code, ErrorCode::InvalidArgument);
    assert_eq!(Draft::new(&all, NOW).remove("nope", true).unwrap_err().code, ErrorCode::NotFound);
}

#[test]
fn copies_as_cp_does() {
    let all = version(&[("a/x", "1"), ("b/y", "2"), ("z", "3")]);
    let copy = |sources: &[&str], to: &str, recursive| {
        let sources: Vec<String> = sources.iter().map(|s| (*s).to_owned()).collect();
        after(&all, |d| d.copy(&sources, to, recursive))
            .into_iter()
            .filter(|s| s.contains('='))
            .collect::<Vec<_>>()
    };
    assert_eq!(copy(&["z"], "b", false), ["a/x=1", "b/y=2", "b/z=3", "z=3"]);
    assert_eq!(copy(&["z"], "new/w", false), ["a/x=1", "b/y=2", "new/w=3", "z=3"]);
    assert_eq!(copy(&["z", "a/x"], "b", false), ["a/x=1", "b/x=1", "b/y=2", "b/z=3", "z=3"]);
    assert_eq!(copy(&["a"], "b", true), ["a/x=1", "b/a/x=1", "b/y=2", "z=3"]);
    assert_eq!(copy(&["a"], "c", true), ["a/x=1", "b/y=2", "c/x=1", "z=3"]);
    for (sources, to, recursive) in [
        (vec!["a"], "c", false),
        (vec!["z", "a/x"], "nope", false),
        (vec!["a"], "a/b", true),
        (vec!["no"], "c", true),
    ] {
        let sources: Vec<String> = sources.into_iter().map(str::to_owned).collect();
        assert!(Draft::new(&all, NOW).copy(&sources, to, recursive).is_err(), "{sources:?} {to}");
    }
}

#[test]
fn of_two_writers_the_last_one_wins_per_file() {
    let base = version(&[("same", "0"), ("d/old", "0")]);
    let head = version(&[("same", "1"), ("d/old", "0"), ("d/theirs", "1")]);
    let merged = after(&head, |d| d.merge(&base, vec![written("same", "2"), written("mine", "2")]));
    assert_eq!(merged, ["d/", "d/old=0", "d/theirs=1", "mine=2", "same=2"]);
    let removed = after(&head, |d| d.merge(&base, vec![change("d", VolumeChangeKind::Remove)]));
    assert_eq!(removed, ["d/", "d/theirs=1", "same=1"], "what the container never saw stays");
    let alone = after(&base, |d| d.merge(&base, vec![change("d", VolumeChangeKind::Remove)]));
    assert_eq!(alone, ["same=0"]);
}

#[test]
fn a_folder_that_was_made_anew_or_moved() {
    let base = version(&[("d/old", "0"), ("d/sub/x", "0")]);
    let anew = vec![
        change("d", VolumeChangeKind::Folder),
        change("d", VolumeChangeKind::Empty),
        written("d/new", "1"),
    ];
    assert_eq!(after(&base, |d| d.merge(&base, anew)), ["d/", "d/new=1"]);
    let moved = vec![
        change("d", VolumeChangeKind::Remove),
        change("e", VolumeChangeKind::Folder),
        change("e", VolumeChangeKind::Moved { from: "d".into() }),
        change("e/old", VolumeChangeKind::Remove),
        written("e/new", "1"),
    ];
    assert_eq!(after(&base, |d| d.merge(&base, moved)), ["e/", "e/new=1", "e/sub/", "e/sub/x=0"]);
}

#[test]
fn a_file_takes_the_place_of_a_folder_and_the_reverse() {
    let base = version(&[("d/x", "0"), ("f", "0")]);
    assert_eq!(
        after(&base, |d| d.merge(&base, vec![written("d", "1"), written("f/y", "1")])),
        ["d=1", "f/", "f/y=1"]
    );
}

#[test]
fn what_stays_the_same_is_no_change() {
    let all = version(&[("a/x", "1")]);
    let mut draft = Draft::new(&all, UnixMs(5));
    draft.upload(VolumeFile { mtime: UnixMs(5), ..file("a/x", "1") }, true).unwrap();
    draft.restore(&all).unwrap();
    assert_eq!(draft.finish().unwrap(), (vec![], vec![]));
}
