//! Buckets of object stores in containers: for each a program (rclone) on this machine serves the mount that the
//! container sees, without any privilege.
//!
//! Credentials are in its environment alone, which nobody but its user and root can read: not in its arguments,
//! and not in the container. It ends by itself when the container's mount is gone, whoever took that away, and
//! lives on when the server does not.

use crate::config::WorkerConfig;
use evoke_core::Error;
use evoke_proto::worker::{BucketCredentials, BucketMount};
use evoke_runtime::{fds, fuse};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio::io::Interest;

/// The program.
const CLIENT: &str = "rclone";
/// What installs it.
const MEND: &str = "Install it where `evoke up` runs: apt install rclone";
/// Its name for the store.
const REMOTE: &str = "bucket";
/// A store that has not refused by then is taken to be fine: a large bucket takes long to list.
const CHECK_MAX: Duration = Duration::from_secs(5);
/// A program that lives on for so long after its container is killed.
const END_MAX: Duration = Duration::from_secs(10);
/// In a program's folder: its number, and the place where it would mount by itself.
const PID: &str = "pid";
const MOUNT: &str = "mount";
/// The last bytes of its log that are shown.
const LOG_TAIL: usize = 2_000;
/// The exit code of a listing of what is not there. A prefix without objects is no error: it may get some.
const NOT_THERE: i32 = 3;

/// Looks whether the buckets can be reached, so that a container does not start with what it can't use.
pub(crate) async fn check(config: &WorkerConfig, buckets: &[BucketMount]) -> Result<(), Error> {
    for bucket in buckets {
        let client = client()?;
        let mut command = tokio::process::Command::from(command(&client, &config.network_env, bucket));
        command.args(["lsf", "--max-depth", "1", "--retries", "1", "--low-level-retries", "1"]);
        command.arg(remote(bucket)).current_dir("/").kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let listed = command.spawn().map_err(|error| failed(bucket, &error.to_string()))?;
        let Ok(ended) = tokio::time::timeout(CHECK_MAX, listed.wait_with_output()).await else { continue };
        let ended = ended.map_err(|error| failed(bucket, &error.to_string()))?;
        let unseen = !bucket.prefix.is_empty() && ended.status.code() == Some(NOT_THERE);
        if !ended.status.success() && !unseen {
            return Err(failed(bucket, &said(&String::from_utf8_lossy(&ended.stderr))));
        }
    }
    Ok(())
}

/// Starts the program that serves a bucket by the descriptor `served`, its files as those of host user `root`.
/// What it needs on disk is in `folder`.
pub(crate) fn serve(
    config: &WorkerConfig,
    bucket: &BucketMount,
    folder: &Path,
    root: u32,
    served: OwnedFd,
) -> Result<(), Error> {
    let client = client()?;
    let inner = |error: io::Error| failed(bucket, &error.to_string());
    let (programs, empty, log) = (folder.join("bin"), folder.join(MOUNT), folder.join("log"));
    std::fs::create_dir_all(&programs).and_then(|()| std::fs::create_dir_all(&empty)).map_err(inner)?;
    for name in fuse::FUSERMOUNT {
        match symlink(&config.fusermount, programs.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(inner(error)),
            _ => {}
        }
    }
    let mut command = command(&client, &config.network_env, bucket);
    command.arg("mount").args([remote(bucket), empty.into_os_string()]);
    // A written file is in the store when it is closed, as the platform's own mounts have it.
    command.args(["--vfs-cache-mode", "off", "--use-server-modtime", "--no-checksum"]);
    // What others change is seen within a second.
    command.args(["--dir-cache-time", "1s", "--attr-timeout", "1s", "--poll-interval", "0"]);
    command.args(["--umask", "0", "--file-perms", "0666", "--dir-perms", "0777"]);
    command.args(["--uid", &root.to_string(), "--gid", &root.to_string()]);
    if bucket.read_only {
        command.arg("--read-only");
    }
    let file = File::create(&log).map_err(inner)?;
    command.env("PATH", &programs).current_dir(folder);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::from(file));
    fuse::give(&mut command, served);
    let mut child = tokio::process::Command::from(command).spawn().map_err(inner)?;
    if let Some(pid) = child.id() {
        std::fs::write(folder.join(PID), pid.to_string()).map_err(inner)?;
    }
    let name = bucket.bucket.clone();
    tokio::spawn(async move {
        let status = child.wait().await;
        // It is gone with its container's mount; only then its folder goes.
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        if !text.trim().is_empty() {
            tracing::warn!(bucket = name, ?status, said = said(&text), "what serves a bucket had to say");
        }
    });
    Ok(())
}

/// Waits until the programs that served a container's buckets have ended, which they do by themselves once the
/// container is gone. One that does not, whatever it still waits for, is killed.
pub(crate) async fn end(task_folder: &Path) {
    let Ok(entries) = std::fs::read_dir(task_folder) else { return };
    for folder in entries.flatten().map(|entry| entry.path()) {
        let Some(process) = process_of(&folder) else { continue };
        let Ok(process) = fds::watch(process, Interest::READABLE) else { continue };
        if tokio::time::timeout(END_MAX, process.readable()).await.is_err() {
            tracing::warn!(folder = %folder.display(), "what served a bucket did not end and is killed");
            // One that has just ended is fine.
            let _ = pidfd_send_signal(process.get_ref(), Signal::KILL);
        }
    }
}

/// The process that serves in this folder, if it still runs: its number may be another's by now, its arguments
/// name the folder.
fn process_of(folder: &Path) -> Option<OwnedFd> {
    let number: i32 = std::fs::read_to_string(folder.join(PID)).ok()?.parse().ok()?;
    let process = pidfd_open(Pid::from_raw(number)?, PidfdFlags::empty()).ok()?;
    let arguments = std::fs::read(format!("/proc/{number}/cmdline")).ok()?;
    let own = folder.join(MOUNT);
    arguments
        .split(|byte| *byte == 0)
        .any(|argument| argument == own.as_os_str().as_bytes())
        .then_some(process)
}

/// Whether what serves buckets is on this machine.
pub fn has_bucket_client() -> bool {
    client().is_ok()
}

/// Where the program is.
fn client() -> Result<PathBuf, Error> {
    // Where the server's own programs are found; a container's environment has no say.
    let places = ["/usr/local/bin", "/usr/bin", "/bin"];
    let found = places.iter().map(|place| Path::new(place).join(CLIENT)).find(|path| path.is_file());
    found.ok_or_else(|| {
        Error::precondition(format!("CloudBucketMount needs {CLIENT}, which is not on this machine"))
            .with_hint(MEND)
    })
}

fn remote(bucket: &BucketMount) -> std::ffi::OsString {
    format!("{REMOTE}:{}/{}", bucket.bucket, bucket.prefix).into()
}

/// The program with an environment that says all about the store, and nothing of the server's own.
fn command(client: &Path, network_env: &[(String, String)], bucket: &BucketMount) -> Command {
    let mut command = Command::new(client);
    command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", "/nonexistent");
    command.envs(network_env.iter().map(|(name, value)| (name, value)));
    command.args(["--config", "", "--log-level", "ERROR"]);
    for (name, value) in settings(bucket) {
        command.env(format!("RCLONE_CONFIG_{}_{name}", REMOTE.to_uppercase()), value);
    }
    command
}

fn settings(bucket: &BucketMount) -> Vec<(&'static str, String)> {
    let provider = if bucket.endpoint.is_some() { "Other" } else { "AWS" };
    let path_style = bucket.path_style || bucket.endpoint.is_some();
    let mut settings = vec![
        ("TYPE", "s3".to_owned()),
        ("PROVIDER", provider.to_owned()),
        ("ENV_AUTH", "false".to_owned()),
        ("NO_CHECK_BUCKET", "true".to_owned()),
        ("FORCE_PATH_STYLE", path_style.to_string()),
        ("REQUESTER_PAYS", bucket.requester_pays.to_string()),
    ];
    settings.extend(bucket.endpoint.clone().map(|endpoint| ("ENDPOINT", endpoint)));
    if let Some(BucketCredentials { key_id, secret, session, region }) = bucket.credentials.clone() {
        settings.push(("ACCESS_KEY_ID", key_id));
        settings.push(("SECRET_ACCESS_KEY", secret));
        settings.extend(session.map(|session| ("SESSION_TOKEN", session)));
        settings.extend(region.map(|region| ("REGION", region)));
    }
    settings
}

/// The end of what the program wrote, on one line.
fn said(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let joined = lines.join("; ");
    let from = joined.char_indices().rev().nth(LOG_TAIL).map_or(0, |(at, _)| at);
    joined[from..].to_owned()
}

fn failed(bucket: &BucketMount, why: &str) -> Error {
    Error::precondition(format!(
        "the bucket '{}' cannot be mounted at {}: {why}",
        bucket.bucket, bucket.target
    ))
    .with_hint("Look at its name, its endpoint and the secret's AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket() -> BucketMount {
        BucketMount {
            target: "/b".into(),
            bucket: "data".into(),
            prefix: "a/".into(),
            endpoint: Some("http://localhost:9".into()),
            read_only: false,
            requester_pays: true,
            path_style: false,
            credentials: Some(BucketCredentials {
                key_id: "id".into(),
                secret: "hush".into(),
                session: None,
                region: Some("eu".into()),
            }),
        }
    }

    #[test]
    fn credentials_are_in_the_environment_alone() {
        let command = command(Path::new("/usr/bin/rclone"), &[], &bucket());
        assert!(!command.get_args().any(|argument| argument.to_string_lossy().contains("hush")));
        let env: Vec<_> = command.get_envs().map(|(name, _)| name.to_string_lossy().into_owned()).collect();
        assert!(env.contains(&"RCLONE_CONFIG_BUCKET_SECRET_ACCESS_KEY".to_owned()), "{env:?}");
        assert!(!format!("{:?}", bucket()).contains("hush"));
        assert!(!failed(&bucket(), "why").to_string().contains("hush"));
    }

    #[test]
    fn a_store_of_ones_own_is_reached_by_path() {
        let value = |bucket: &BucketMount, name| {
            settings(bucket).into_iter().find(|(key, _)| *key == name).map(|(_, v)| v)
        };
        assert_eq!(value(&bucket(), "FORCE_PATH_STYLE").as_deref(), Some("true"));
        let of_the_provider = BucketMount { endpoint: None, credentials: None, ..bucket() };
        assert_eq!(value(&of_the_provider, "FORCE_PATH_STYLE").as_deref(), Some("false"));
        assert_eq!(value(&of_the_provider, "PROVIDER").as_deref(), Some("AWS"));
        assert_eq!(value(&of_the_provider, "ACCESS_KEY_ID"), None);
    }

    #[test]
    fn the_end_of_a_log_is_told_on_one_line() {
        assert_eq!(said("a\n\n b \n"), "a; b");
        assert_eq!(said(&"é".repeat(5_000)).chars().count(), LOG_TAIL + 1);
    }
}
