//! `evoke up` for real: its processes, what survives which death, and what is left afterwards. Needs root.
#![allow(clippy::unwrap_used)] // A test that cannot go on says so by its panic.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Bound on anything that these tests wait for.
const WAIT_MAX: Duration = Duration::from_secs(60);

struct Up {
    child: Child,
    ready: String,
    folder: tempfile::TempDir,
}

impl Up {
    fn start() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("not run: `evoke up` needs root");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut child = command(&folder)
            .args(["up", "--listen", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut ready).unwrap();
        Some(Self { child, ready, folder })
    }

    fn evoke(&self, words: &[&str]) -> Output {
        command(&self.folder).args(words).output().unwrap()
    }

    fn status(&self) -> serde_json::Value {
        let output = self.evoke(&["status", "--json"]);
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn pid(&self, whose: &str) -> u32 {
        u32::try_from(self.status()[whose].as_u64().unwrap()).unwrap()
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Waits for the holder's end and gives its exit code and what it said.
    fn end(mut self) -> (Option<i32>, String) {
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (self.child.wait().unwrap().code(), said)
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.child.kill().unwrap();
            self.child.wait().unwrap();
        }
    }
}

fn command(folder: &tempfile::TempDir) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_evoke"));
    command.env("EVOKE_DATA", folder.path().join("data")).env_remove("SUDO_UID");
    command
}

fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

/// Waits until the process is gone; ends of processes that are not our children are seen by their pidfd.
fn gone(pid: u32) {
    let raw = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    let Ok(process) = rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty()) else { return };
    let mut fds = [rustix::event::PollFd::new(&process, rustix::event::PollFlags::IN)];
    let bound = rustix::event::Timespec { tv_sec: WAIT_MAX.as_secs() as i64, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut fds, Some(&bound)).unwrap(), 1, "process {pid} lives on");
}

fn uid_of(pid: u32) -> u32 {
    std::fs::metadata(format!("/proc/{pid}/stat")).unwrap().uid()
}

fn field(pid: u32, name: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|l| l.strip_prefix(name)).unwrap().trim_start_matches(':').trim().to_owned()
}

#[test]
fn one_line_when_ready_and_nobody_but_the_helper_is_root() {
    let Some(up) = Up::start() else { return };
    assert!(up.ready.starts_with("evoke is ready at http://127.0.0.1:"), "{}", up.ready);
    assert!(up.ready.contains(&format!("(data folder {})", up.data().display())), "{}", up.ready);
    for whose in ["holder_pid", "server_pid"] {
        let pid = up.pid(whose);
        assert_ne!(field(pid, "Uid").split_whitespace().next(), Some("0"), "{whose}");
        assert_eq!(field(pid, "Groups"), "", "{whose}");
        for set in ["CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb"] {
            assert_eq!(u64::from_str_radix(&field(pid, set), 16).unwrap(), 0, "{whose} {set}");
        }
        assert_eq!(field(pid, "NoNewPrivs"), "1", "{whose}");
    }
    assert_eq!(field(up.pid("holder_pid"), "Threads"), "1");
    let inside = std::fs::metadata(up.data().join("db")).unwrap();
    assert_eq!(inside.permissions().mode() & 0o777, 0o700);
    assert_ne!(inside.uid(), 0);
    assert_eq!(uid_of(up.pid("server_pid")), 0, "the server's /proc is closed to others of its user");
}

#[test]
fn env_prints_lines_that_a_shell_takes() {
    let Some(up) = Up::start() else { return };
    let lines = String::from_utf8(up.evoke(&["env"]).stdout).unwrap();
    let script = format!(
        "{lines}\nprintf '%s|%s|%s' \"$MODAL_SERVER_URL\" \"$MODAL_TOKEN_ID\" \"$MODAL_TOKEN_SECRET\""
    );
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let parts: Vec<&str> = said.split('|').collect();
    assert!(parts[0].starts_with("http://127.0.0.1:"), "{said}");
    assert!(parts[1].starts_with("ak-") && parts[2].starts_with("as-"), "{said}");
}

#[test]
fn a_second_server_on_the_folder_is_refused_and_names_the_first() {
    let Some(up) = Up::start() else { return };
    let output = up.evoke(&["up", "--listen", "127.0.0.1:0"]);
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(err.contains("already up") && err.contains(&up.pid("holder_pid").to_string()), "{err}");
    assert!(err.contains("http://127.0.0.1:"), "{err}");
}

#[test]
fn a_killed_server_is_replaced_at_once_and_nobody_is_refused() {
    let Some(up) = Up::start() else { return };
    let address = up.status()["address"].as_str().unwrap().trim_start_matches("http://").to_owned();
    let holder = up.pid("holder_pid");
    for _ in 0..3 {
        let before = up.pid("server_pid");
        signal(before, rustix::process::Signal::KILL);
        std::net::TcpStream::connect(&address).unwrap();
        gone(before);
        let began = Instant::now();
        let after = up.pid("server_pid");
        assert_ne!(before, after);
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    }
    assert_eq!(up.pid("holder_pid"), holder);
}

#[test]
fn signals_and_down_end_everything_with_success() {
    for how in ["TERM", "INT", "down"] {
        let Some(up) = Up::start() else { return };
        let (holder, server) = (up.pid("holder_pid"), up.pid("server_pid"));
        let socket = up.data().join("evoke.sock");
        match how {
            "TERM" => signal(holder, rustix::process::Signal::TERM),
            "INT" => signal(holder, rustix::process::Signal::INT),
            _ => assert!(up.evoke(&["down"]).status.success()),
        }
        let (code, said) = up.end();
        assert_eq!(code, Some(0), "{how}: {said}");
        gone(server);
        assert!(!socket.exists(), "{how}");
    }
}

#[test]
fn a_killed_holder_takes_its_server_along_and_the_next_start_works() {
    let Some(mut up) = Up::start() else { return };
    let server = up.pid("server_pid");
    up.child.kill().unwrap();
    up.child.wait().unwrap();
    gone(server);
    let output = up.evoke(&["status"]);
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
    let detached = up.evoke(&["up", "--detach", "--listen", "127.0.0.1:0"]);
    assert!(String::from_utf8_lossy(&detached.stdout).starts_with("evoke is ready at"), "{detached:?}");
    let token = |output: &Output| String::from_utf8_lossy(&output.stdout).lines().nth(1).map(str::to_owned);
    assert!(token(&up.evoke(&["env"])).is_some());
    assert!(up.evoke(&["down"]).status.success());
}

#[test]
fn a_new_folder_gets_a_server_in_the_background_and_two_starts_at_once_are_one() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("not run: `evoke up` needs root");
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let bin = folder.path().join(".venv/bin");
    std::fs::create_dir_all(&bin).unwrap();
    let script = "#!/bin/sh\ncase \"$2\" in *find_spec*) echo '{\"executable\": \"EXE\", \"major\": 3, \"minor\": 11, \
                  \"origin\": \"/s/modal/__init__.py\", \"client\": \"1.6.4\", \"glibc\": true}';; \
                  *) echo \"url=$MODAL_SERVER_URL id=$MODAL_TOKEN_ID\";; esac\n";
    let python = bin.join("python");
    std::fs::write(&python, script.replace("EXE", &python.display().to_string())).unwrap();
    std::fs::set_permissions(&python, std::fs::Permissions::from_mode(0o755)).unwrap();
    let run = || {
        let mut command = command(&folder);
        command
            .args(["app", "list"])
            .current_dir(folder.path())
            .env("HOME", folder.path())
            .env_remove("VIRTUAL_ENV");
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let outputs = [run(), run()].map(|child| child.wait_with_output().unwrap());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said: String = outputs.iter().map(|output| text(&output.stderr)).collect();
    let out: Vec<String> = outputs.iter().map(|output| text(&output.stdout)).collect();
    let ended = command(&folder).arg("down").output().unwrap();
    assert_eq!(said.matches("in the background").count(), 1, "{said}");
    assert!(out[0].starts_with("url=http://127.0.0.1:") && out[0].contains("id=ak-"), "{out:?} {said}");
    assert_eq!(out[0], out[1]);
    assert!(ended.status.success(), "{}", text(&ended.stderr));
}
