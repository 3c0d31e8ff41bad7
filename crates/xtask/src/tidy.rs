//! `cargo xtask tidy`: the house rules that a compiler does not know.
//!
//! Lengths of files and functions, a first comment that says what a file is for, words that must not be
//! committed, where `unsafe` may live and that it says why it is sound, and which crates must stay free of
//! clocks, randomness and input/output.

use crate::Finding;
use crate::scan::Source;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Lines of a source file.
const FILE_LINES_MAX: usize = 600;
/// Lines of a file that holds only tests.
const TEST_FILE_LINES_MAX: usize = 1_000;
/// Lines of a function.
const FUNCTION_LINES_MAX: usize = 70;
/// Lines of a function in tests.
const TEST_FUNCTION_LINES_MAX: usize = 120;
/// How far above an `unsafe` its `SAFETY:` line may begin.
const SAFETY_LINES_ABOVE: usize = 12;
/// Bytes of any tracked file: nothing generated or downloaded belongs in the repository.
const TRACKED_BYTES_MAX: u64 = 1024 * 1024;

/// Folders whose crates may hold `unsafe`.
const UNSAFE_ALLOWED: [&str; 3] = ["crates/runtime/", "crates/guest/", "crates/files/src/fuse"];
/// Words that are never committed in Rust code, and what to do instead.
const FORBIDDEN: [(&str, &str); 6] = [
    ("todo!", "finish it, or return an error that says it is not served"),
    ("unimplemented!", "finish it, or return an error that says it is not served"),
    ("dbg!", "use tracing"),
    ("std::thread::sleep", "wait for an event with a bound instead"),
    ("thread_rng", "take an Entropy from the caller"),
    ("static mut", "use a OnceLock, an atomic or a parameter"),
];
/// Crates that decide and never act, and what they must not name.
const PURE: [&str; 3] = ["crates/core/src/", "crates/sched/src/", "crates/engine/src/"];
const IMPURE_WORDS: [&str; 7] =
    ["SystemTime::now", "Instant::now", "tokio::", "std::fs", "std::net", "std::env", "std::process"];
/// The one home of the real clock.
const CLOCK_HOME: &str = "crates/core/src/clock.rs";
/// Folders and endings that are never tracked.
const UNTRACKED: [&str; 9] =
    ["target/", ".venv", "__pycache__/", ".pyc", ".whl", ".so", ".sqlite", ".db", "node_modules/"];

/// Looks at every tracked or new file of the repository.
pub(crate) fn check(root: &Path) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for path in repository_files(root)? {
        let place = path.to_string_lossy().replace('\\', "/");
        check_path(root, &place, &mut findings);
        let kind = Path::new(&place).extension().and_then(|e| e.to_str()).unwrap_or_default();
        if !matches!(kind, "rs" | "py") && !is_shell(&place) {
            continue;
        }
        let Ok(text) = std::fs::read_to_string(root.join(&path)) else {
            findings.push(Finding::new(&place, "is not UTF-8 text"));
            continue;
        };
        check_text(&place, &text, &mut findings);
        if kind == "rs" {
            check_rust(&place, &Source::new(&text), &mut findings);
        }
    }
    Ok(findings)
}

/// What git tracks or would track.
fn repository_files(root: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .context("running git ls-files")?;
    anyhow::ensure!(
        output.status.success(),
        "git ls-files failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let names = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut files: Vec<PathBuf> = names
        .split('\0')
        .filter(|n| !n.is_empty())
        .map(PathBuf::from)
        .filter(|p| root.join(p).is_file())
        .collect();
    files.sort();
    Ok(files)
}

fn is_shell(place: &str) -> bool {
    place.ends_with(".sh") || place.starts_with("scripts/") || place == ".ci/run"
}

fn check_path(root: &Path, place: &str, findings: &mut Vec<Finding>) {
    if let Some(part) =
        UNTRACKED.iter().find(|part| place.ends_with(*part) || (part.ends_with('/') && place.contains(*part)))
    {
        findings.push(Finding::new(place, format!("`{part}` does not belong in the repository")));
    }
    let size = std::fs::metadata(root.join(place)).map_or(0, |m| m.len());
    if size > TRACKED_BYTES_MAX {
        findings.push(Finding::new(place, format!("has {size} bytes, over {TRACKED_BYTES_MAX}")));
    }
}

fn is_test_file(place: &str) -> bool {
    place.contains("/tests/")
        || place.starts_with("tests/")
        || place.ends_with("tests.rs")
        || place.ends_with("_test.rs")
        || place.ends_with("testing.rs")
}

fn check_text(place: &str, text: &str, findings: &mut Vec<Finding>) {
    let lines = text.lines().count();
    let most = if is_test_file(place) { TEST_FILE_LINES_MAX } else { FILE_LINES_MAX };
    if lines > most {
        findings.push(Finding::new(place, format!("{lines} lines, over {most}: split it by concept")));
    }
    if lines > 0 && !has_first_comment(place, text) {
        findings.push(Finding::new(place, "its first comment must say what the file is for"));
    }
}

/// A module comment in Rust, a docstring in Python, a comment after the shebang in shell.
fn has_first_comment(place: &str, text: &str) -> bool {
    let mut lines = text.lines().filter(|l| !l.trim().is_empty());
    if place.ends_with(".rs") {
        return lines.next().is_some_and(|l| l.starts_with("//!") || l.starts_with("// "));
    }
    let first = lines.find(|l| !l.starts_with("#!")).unwrap_or_default();
    if place.ends_with(".py") {
        return first.starts_with("\"\"\"") || first.starts_with("# ") || first.starts_with("r\"\"\"");
    }
    first.starts_with("# ")
}

fn check_rust(place: &str, source: &Source, findings: &mut Vec<Finding>) {
    for function in source.functions() {
        let tests = is_test_file(place) || source.in_tests[function.line - 1];
        let most = if tests { TEST_FUNCTION_LINES_MAX } else { FUNCTION_LINES_MAX };
        if function.length > most {
            let what = format!("fn {} has {} lines, over {most}", function.name, function.length);
            findings.push(Finding::new(format!("{place}:{}", function.line), what));
        }
    }
    let pure = PURE.iter().any(|p| place.starts_with(p)) && place != CLOCK_HOME;
    for (at, code) in source.code.iter().enumerate() {
        let line = format!("{place}:{}", at + 1);
        for (word, instead) in FORBIDDEN {
            // A test that kills a process at a random instant has no event to wait for.
            let random_instant = word == "std::thread::sleep" && is_test_file(place);
            if names(code, word) && !random_instant && !place.starts_with("crates/xtask/") {
                findings.push(Finding::new(&line, format!("`{word}`: {instead}")));
            }
        }
        if pure && !source.in_tests[at] {
            for word in IMPURE_WORDS.iter().filter(|w| names(code, w)) {
                findings.push(Finding::new(
                    &line,
                    format!("`{word}` in a crate that only decides: take it as a parameter"),
                ));
            }
        }
        if names(code, "unsafe") && !code.contains("unsafe_") {
            check_unsafe(place, at, source, findings);
        }
    }
}

fn check_unsafe(place: &str, at: usize, source: &Source, findings: &mut Vec<Finding>) {
    let line = format!("{place}:{}", at + 1);
    if !UNSAFE_ALLOWED.iter().any(|p| place.starts_with(p)) {
        findings.push(Finding::new(line, "`unsafe` lives in runtime, guest and the FUSE code of files only"));
        return;
    }
    let from = at.saturating_sub(SAFETY_LINES_ABOVE);
    let explained = source.lines[from..=at].iter().any(|l| l.contains("SAFETY:") || l.contains("# Safety"));
    if !explained {
        findings.push(Finding::new(line, "`unsafe` without a `// SAFETY:` line above it"));
    }
}

/// Whether `word` stands in `code` as a whole word.
fn names(code: &str, word: &str) -> bool {
    code.match_indices(word).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = code[at + word.len()..].chars().next();
        let joins = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        let open_end = word.ends_with(':') || word.ends_with('!');
        !joins(before) && (open_end || !joins(after))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(place: &str, text: &str) -> Vec<String> {
        let mut findings = Vec::new();
        check_text(place, text, &mut findings);
        check_rust(place, &Source::new(text), &mut findings);
        findings.into_iter().map(|f| f.what).collect()
    }

    #[test]
    fn a_clean_file_has_no_findings() {
        assert!(found("crates/store/src/a.rs", "//! Says what it is.\n\nfn a() {}\n").is_empty());
    }

    #[test]
    fn each_rule_is_seen() {
        let long = format!("//! x\nfn a() {{\n{}}}\n", "    b();\n".repeat(FUNCTION_LINES_MAX));
        let cases = [
            ("crates/store/src/a.rs", "fn a() {}\n".to_owned(), "first comment"),
            ("crates/store/src/a.rs", long, "fn a has 72 lines"),
            ("crates/store/src/a.rs", "//! x\n".repeat(FILE_LINES_MAX + 1), "split it"),
            ("crates/store/src/a.rs", "//! x\nfn a() { todo!() }\n".to_owned(), "`todo!`"),
            ("crates/store/src/a.rs", "//! x\nfn a() { unsafe { b() } }\n".to_owned(), "lives in runtime"),
            ("crates/runtime/src/a.rs", "//! x\nfn a() { unsafe { b() } }\n".to_owned(), "SAFETY"),
            ("crates/sched/src/a.rs", "//! x\nfn a() { Instant::now(); }\n".to_owned(), "only decides"),
        ];
        for (place, text, wanted) in cases {
            let got = found(place, &text);
            assert!(got.iter().any(|w| w.contains(wanted)), "{wanted}: {got:?}");
        }
    }

    #[test]
    fn words_in_strings_comments_and_names_do_not_count() {
        let text =
            "//! x\n// todo! unsafe\nfn not_unsafe() { a(\"dbg!\"); }\n#![deny(unsafe_op_in_unsafe_fn)]\n";
        assert!(found("crates/store/src/a.rs", text).is_empty());
    }
}
