//! `evoke diff`: what two versions of an app differ in.

use crate::args::DiffOptions;
use crate::local::{AppQuestion, Request};
use crate::own_verbs::{self, text};
use anyhow::Result;
use serde_json::Value;
use std::path::Path;
use std::process::ExitCode;

/// Runs the verb.
pub(crate) fn run(data: Option<&Path>, options: DiffOptions) -> Result<ExitCode> {
    let DiffOptions { app, from, to, env, json } = options;
    let request = Request::App { environment: env, app, question: AppQuestion::Diff { from, to } };
    own_verbs::answered(data, &request, json, shown)
}

/// `v3` or `3`.
pub(crate) fn version(text: &str) -> Result<u32, String> {
    let number = text.strip_prefix('v').unwrap_or(text);
    let number = number.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| format!("'{text}' is no version such as v3. `evoke app history APP` lists them"))
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// The answer for people.
fn shown(answer: &Value) -> String {
    let mut lines = vec![version_line("-", &answer["from"]), version_line("+", &answer["to"])];
    let head = lines.len();
    lines.extend(settings(list(answer, "app")));
    let added = list(answer, "functions_added").iter().map(|name| ("+", name));
    let removed = list(answer, "functions_removed").iter().map(|name| ("-", name));
    let names =
        removed.chain(added).map(|(sign, name)| format!("{sign} {}", name.as_str().unwrap_or_default()));
    section(&mut lines, "functions", names.collect());
    for change in list(answer, "functions_changed") {
        let title = format!("function {}", text(change, "function"));
        section(&mut lines, &title, settings(list(change, "settings")));
    }
    for image in list(answer, "images") {
        lines.extend(image_lines(image));
    }
    section(&mut lines, "files", files(list(answer, "files")));
    if lines.len() == head {
        lines.push("they do not differ".to_owned());
    }
    lines.join("\n") + "\n"
}

fn section(lines: &mut Vec<String>, title: &str, inside: Vec<String>) {
    if !inside.is_empty() {
        lines.push(format!("\n{title}"));
        lines.extend(inside);
    }
}

fn version_line(sign: &str, version: &Value) -> String {
    let mut line = format!(
        "{sign} v{}  {}  by {}",
        version["version"].as_u64().unwrap_or_default(),
        text(version, "deployed"),
        text(version, "deployed_by")
    );
    if !text(version, "commit").is_empty() {
        let commit: String = text(version, "commit").chars().take(12).collect();
        let dirty = if version["dirty"] == true { ", with changes" } else { "" };
        line += &format!("  commit {commit} ({}{dirty})", text(version, "branch"));
    }
    if !text(version, "tag").is_empty() {
        line += &format!("  tag {}", text(version, "tag"));
    }
    line
}

fn settings(changes: &[Value]) -> Vec<String> {
    let line = |change: &Value| {
        let name = text(change, "setting");
        match (change["before"].as_str(), change["after"].as_str()) {
            (Some(before), Some(after)) => format!("~ {name}: {before} -> {after}"),
            (Some(before), None) => format!("- {name}: {before}"),
            (None, after) => format!("+ {name}: {}", after.unwrap_or_default()),
        }
    };
    changes.iter().map(line).collect()
}

fn image_lines(image: &Value) -> Vec<String> {
    let functions: Vec<&str> = list(image, "functions").iter().filter_map(Value::as_str).collect();
    let ids = format!("{} -> {}", text(image, "before"), text(image, "after"));
    let mut lines = vec![format!("\nimage of {}  ({ids})", functions.join(", "))];
    let steps = list(image, "steps").iter().filter_map(Value::as_str);
    lines.extend(steps.filter(|step| !step.starts_with(' ')).map(|step| format!("  {step}")));
    for package in list(image, "packages") {
        let name = format!("{} {}", text(package, "kind"), text(package, "name"));
        lines.push(match (package["before"].as_str(), package["after"].as_str()) {
            (Some(before), Some(after)) => format!("  ~ {name} {before} -> {after}"),
            (Some(before), None) => format!("  - {name} {before}"),
            (None, after) => format!("  + {name} {}", after.unwrap_or_default()),
        });
    }
    lines.extend(files(list(image, "files")));
    lines
}

/// A line for each file, then the difference of its text.
fn files(changes: &[Value]) -> Vec<String> {
    let line = |file: &Value| {
        let sign = match (file["before"].is_string(), file["after"].is_string()) {
            (false, _) => "+",
            (_, false) => "-",
            _ => "~",
        };
        let note = file["note"].as_str().map(|note| format!("  ({note})")).unwrap_or_default();
        [format!("{sign} {}{note}", text(file, "path")), text(file, "text").trim_end_matches('\n').to_owned()]
    };
    changes.iter().flat_map(line).filter(|line| !line.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn versions_are_numbers_with_or_without_their_letter() {
        assert_eq!((version("v3"), version("12")), (Ok(3), Ok(12)));
        for bad in ["", "v", "v0", "-1", "three", "vv3"] {
            assert!(version(bad).unwrap_err().contains("evoke app history"), "{bad}");
        }
    }

    #[test]
    fn a_difference_reads_from_the_whole_to_the_lines_of_files() {
        let answer = json!({
            "from": { "version": 1, "deployed": "2026-01-01 00:00:00", "deployed_by": "main", "commit": "abcdef0123456789",
                      "branch": "main", "dirty": true, "tag": "" },
            "to": { "version": 2, "deployed": "2026-01-02 00:00:00", "deployed_by": "main", "commit": "", "tag": "t" },
            "app": [], "functions_added": ["new"], "functions_removed": ["old"],
            "functions_changed": [{ "function": "f", "settings": [
                { "setting": "timeout", "before": "300 s", "after": "60 s" },
                { "setting": "schedule", "before": null, "after": "Cron('* * * * *')" } ] }],
            "images": [{ "functions": ["f"], "before": "im-1", "after": "im-2", "steps": [" FROM x", "+RUN y"],
                "packages": [{ "kind": "python", "name": "six", "before": "1", "after": "2" }], "files": [] }],
            "files": [{ "path": "/root/a.py", "before": "1", "after": "2", "text": "@@ -1 +1 @@\n-a\n+b\n", "note": null },
                      { "path": "/root/b", "before": null, "after": "2", "text": null, "note": "not text" }],
        });
        let expected = "\
- v1  2026-01-01 00:00:00  by main  commit abcdef012345 (main, with changes)
+ v2  2026-01-02 00:00:00  by main  tag t

functions
- old
+ new

function f
~ timeout: 300 s -> 60 s
+ schedule: Cron('* * * * *')

image of f  (im-1 -> im-2)
  +RUN y
  ~ python six 1 -> 2

files
~ /root/a.py
@@ -1 +1 @@
-a
+b
+ /root/b  (not text)
";
        assert_eq!(shown(&answer), expected);
        let same = json!({ "from": answer["from"], "to": answer["to"] });
        assert!(shown(&same).ends_with("they do not differ\n"));
    }
}
