//! The verbs as a person meets them: the real binary, its output and its exit codes. No server is started.
#![allow(clippy::unwrap_used)] // A test that cannot go on says so by its panic.

use std::path::Path;
use std::process::{Command, Output};

fn evoke(folder: &Path, words: &[&str]) -> Output {
    // A verb that should have been refused must not hang the tests.
    let mut command = Command::new("timeout");
    command
        .arg("60")
        .arg(env!("CARGO_BIN_EXE_evoke"))
        .args(words)
        .current_dir(folder)
        .env("EVOKE_DATA", folder.join("data"))
        .env("HOME", folder);
    for name in ["VIRTUAL_ENV", "MODAL_SERVER_URL", "MODAL_CONFIG_PATH", "XDG_CONFIG_HOME", "PYTHONPATH"] {
        command.env_remove(name);
    }
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// An interpreter that says it is Python 3.11 with this client, and tells how it is run as one.
fn stand_in(folder: &Path, client: &str, origin: &str) {
    use std::os::unix::fs::PermissionsExt;
    let bin = folder.join(".venv/bin");
    std::fs::create_dir_all(&bin).unwrap();
    let script = format!(
        "#!/bin/sh\ncase \"$2\" in *find_spec*) echo '{{\"executable\": \"{0}\", \"major\": 3, \"minor\": 11, \
         \"origin\": {origin}, \"client\": {client}, \"glibc\": true}}'; exit 0;; esac\nshift 2\necho \"ran $*\"\n\
         echo \"url=$MODAL_SERVER_URL oauth=$MODAL_OAUTH_CLIENT_ID config=$MODAL_CONFIG_PATH\"\nexit 7\n",
        bin.join("python").display()
    );
    std::fs::write(bin.join("python"), script).unwrap();
    std::fs::set_permissions(bin.join("python"), std::fs::Permissions::from_mode(0o755)).unwrap();
}

const PACKAGE: &str = "\"/site/modal/__init__.py\"";

#[test]
fn help_teaches_with_examples() {
    let folder = folder();
    let output = evoke(folder.path(), &["--help"]);
    let out = text(&output.stdout);
    assert!(output.status.success());
    for wanted in ["evoke run app.py", "eval \"$(evoke env)\"", "evoke doctor", "official CLI"] {
        assert!(out.contains(wanted), "{wanted} is missing in:\n{out}");
    }
    assert!(!out.contains("__server"), "{out}");
    let up = text(&evoke(folder.path(), &["help", "up"]).stdout);
    assert!(up.contains("evoke up") && up.contains("--listen"), "{up}");
}

#[test]
fn nothing_at_all_shows_the_help_and_is_wrong_use() {
    let output = evoke(folder().path(), &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("First steps"));
}

#[test]
fn without_a_server_each_verb_says_how_to_start_one() {
    let folder = folder();
    for verb in [&["status"] as &[&str], &["env"], &["explain", "fc-1"]] {
        let output = evoke(folder.path(), verb);
        let err = text(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{verb:?}: {err}");
        assert!(err.contains("no server is up on") && err.contains("evoke up --data"), "{verb:?}: {err}");
        assert!(output.stdout.is_empty(), "{verb:?}");
    }
    let json = evoke(folder.path(), &["status", "--json"]);
    let value: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((value["up"].as_bool(), json.status.code()), (Some(false), Some(3)));
}

#[test]
fn a_wrong_id_is_refused_before_anything_is_asked() {
    let output = evoke(folder().path(), &["explain", "banana"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("fc-…"));
}

#[test]
fn a_mistyped_verb_is_not_handed_on() {
    let output = evoke(folder().path(), &["deplyo", "app.py"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("did you mean `evoke deploy`?"));
}

#[test]
fn an_official_verb_runs_in_the_local_environment_with_its_words_and_exit_code() {
    let folder = folder();
    stand_in(folder.path(), "\"1.6.4\"", PACKAGE);
    let output = evoke(folder.path(), &["config", "show", "--json", "--", "a b"]);
    let out = text(&output.stdout);
    assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
    assert!(out.contains("ran config show --json -- a b"), "{out}");
    assert!(out.contains(".config/evoke/modal.toml"), "{out}");
}

#[test]
fn a_verb_that_only_shows_help_starts_nothing() {
    let folder = folder();
    stand_in(folder.path(), "\"1.6.4\"", PACKAGE);
    let output = evoke(folder.path(), &["run", "--help"]);
    assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("ran run --help\nurl= "));
    assert!(!folder.path().join("data").exists());
}

#[test]
fn a_file_that_hides_the_client_is_named() {
    let folder = folder();
    stand_in(folder.path(), "null", "\"/home/someone/modal.py\"");
    let output = evoke(folder.path(), &["config", "show"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("/home/someone/modal.py"), "{}", text(&output.stderr));
}

#[test]
fn a_wrong_configuration_names_file_and_key() {
    if !is_root() {
        return eprintln!("not run: `evoke up` needs root");
    }
    let folder = folder();
    let data = open_folder(folder.path());
    std::fs::write(data.join("evoke.toml"), "lisen = 'x'\n").unwrap();
    let output = evoke(folder.path(), &["up"]);
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{err}");
    assert!(err.contains("evoke.toml") && err.contains("did you mean `listen`?"), "{err}");
}

#[test]
fn a_data_folder_that_the_service_user_cannot_reach_is_refused_with_the_mend() {
    if !is_root() {
        return eprintln!("not run: `evoke up` needs root");
    }
    let folder = folder();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let output = evoke(folder.path(), &["up"]);
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(err.contains("is closed to other users") && err.contains("chmod o+x"), "{err}");
}

/// Makes `folder` passable and the data folder in it.
fn open_folder(folder: &Path) -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    let data = folder.join("data");
    std::fs::create_dir_all(&data).unwrap();
    data
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
