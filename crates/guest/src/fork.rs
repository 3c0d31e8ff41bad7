//! Takes over a program that a template forks for this container: waits for it, checks that it is where it should be
//! and has no more than it should have, leads it into the control groups, and only then tells it what it is to run.
//!
//! The template runs the image's code, so nothing that it says is believed. What is checked here is the kernel's word;
//! the environment with its secrets leaves for a process that passed.

use crate::packet;
use crate::privileges;
use crate::process;
use crate::seccomp;
use crate::wire::{ForkProgram, ForkRules, FromFork, Program, Spawn};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long a template may take. A fork is a matter of milliseconds; a machine under load is given more.
const PATIENCE: Duration = Duration::from_secs(2);
/// Messages that are read at most: each kind comes once.
const MESSAGES_MAX: usize = 4;
/// Characters of a complaint that are kept.
const WHY_MAX: usize = 200;
/// The namespaces that the program must share with its guest.
const NAMESPACES: [&str; 7] = ["user", "mnt", "pid", "ipc", "uts", "net", "cgroup"];

/// Waits for the process at the other end of `line` and makes it `spawn`'s program; its pid, as a child of ours.
/// On failure it is no child of ours any more, and why is said.
pub(crate) fn adopt(
    spawn: &Spawn,
    line: OwnedFd,
    groups: &[OwnedFd],
    stdio: &[OwnedFd; 3],
) -> Result<i32, String> {
    let Program::Exec { argv } = &spawn.program else { return Err("not a program of the image".to_owned()) };
    if !spawn.user.is_empty() {
        return Err("it runs as another user".to_owned());
    }
    let rules = ForkRules { capabilities: privileges::kept(), filter: seccomp::refuse_joining() };
    say(&line, &rules, &[])?;
    let pid = wait_for(&line)?;
    let led = check(pid).and_then(|()| lead_in(pid, groups)).and_then(|()| {
        let program = ForkProgram { argv: argv.clone(), env: spawn.env.clone(), cwd: spawn.cwd.clone() };
        say(&line, &program, stdio)
    });
    if let Err(why) = led {
        // SAFETY: a plain system call; the number is a child's that was not reaped.
        unsafe { libc::kill(pid, libc::SIGKILL) };
        process::reap(pid);
        return Err(why);
    }
    Ok(pid)
}

fn say(line: &OwnedFd, message: &impl serde::Serialize, fds: &[OwnedFd]) -> Result<(), String> {
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let body = serde_json::to_vec(message).map_err(|error| error.to_string())?;
    packet::send(line.as_fd(), &body, &fds, true).map_err(|error| format!("talking to the fork: {error}"))
}

#[allow(clippy::disallowed_methods)] // The guest's one clock: its own deadlines.
fn now() -> Instant {
    Instant::now()
}

/// Reads until the process is there, is a child of ours, and is ready.
fn wait_for(line: &OwnedFd) -> Result<i32, String> {
    let deadline = now() + PATIENCE;
    let (mut forked, mut parted, mut ready) = (None, false, false);
    for _ in 0..MESSAGES_MAX {
        if let (Some(pid), true, true) = (forked, parted, ready) {
            return if is_child(pid) { Ok(pid) } else { Err("the fork is no process of here".to_owned()) };
        }
        match next(line, deadline)? {
            FromFork::Forked { pid } if pid > 1 => forked = Some(pid),
            FromFork::Forked { .. } => return Err("the fork named a process that it cannot be".to_owned()),
            FromFork::Parted => parted = true,
            FromFork::Ready => ready = true,
            FromFork::Failed { why } => return Err(plain(&why)),
        }
    }
    Err("the fork said too much".to_owned())
}

fn plain(why: &str) -> String {
    why.chars().filter(|c| !c.is_control()).take(WHY_MAX).collect()
}

fn next(line: &OwnedFd, deadline: Instant) -> Result<FromFork, String> {
    loop {
        let left = deadline.saturating_duration_since(now());
        if left.is_zero() {
            return Err(format!("the template did not fork within {} ms", PATIENCE.as_millis()));
        }
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match poll(&mut [PollFd::new(line, PollFlags::IN)], Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(format!("waiting for the fork: {error}")),
        }
        match packet::recv(line.as_fd(), true) {
            Ok(Some(packet)) => {
                let message = serde_json::from_slice(&packet.body);
                return message.map_err(|_| "the fork sent what is no message".to_owned());
            }
            Ok(None) => return Err("the fork ended before it was ready".to_owned()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(format!("hearing the fork: {error}")),
        }
    }
}

/// Whether a process is our child and lives.
fn is_child(pid: i32) -> bool {
    // SAFETY: no status is asked for, and nothing is waited for.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::WNOHANG) == 0 }
}

/// The kernel's word for what the process is.
fn check(pid: i32) -> Result<(), String> {
    for name in NAMESPACES {
        let of = |who: &str| std::fs::read_link(format!("/proc/{who}/ns/{name}"));
        let both = of("self").and_then(|ours| of(&pid.to_string()).map(|theirs| ours == theirs));
        match both {
            Ok(true) => {}
            Ok(false) => return Err(format!("the fork is in another {name} namespace")),
            Err(error) => return Err(format!("looking at the fork's {name} namespace: {error}")),
        }
    }
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"));
    check_status(&status.map_err(|error| format!("looking at the fork: {error}"))?)
}

fn check_status(status: &str) -> Result<(), String> {
    let kept = format!("{:016x}", privileges::kept());
    let wanted: [(&str, &str); 11] = [
        ("Uid", "0 0 0 0"),
        ("Gid", "0 0 0 0"),
        ("Groups", ""),
        ("Threads", "1"),
        ("CapInh", "0000000000000000"),
        ("CapPrm", &kept),
        ("CapEff", &kept),
        ("CapBnd", &kept),
        ("CapAmb", "0000000000000000"),
        ("NoNewPrivs", "1"),
        ("Seccomp_filters", "2"),
    ];
    for (name, value) in wanted {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let found = line.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        if found.as_deref() != Some(value) {
            let found = found.unwrap_or_default();
            return Err(format!("the fork has {name} '{found}' instead of '{value}'"));
        }
    }
    Ok(())
}

/// What it uses from now on is the container's.
fn lead_in(pid: i32, groups: &[OwnedFd]) -> Result<(), String> {
    for group in groups {
        let copy = group.try_clone().map_err(|error| format!("a control group: {error}"))?;
        let written = std::fs::File::from(copy).write_all(pid.to_string().as_bytes());
        written.map_err(|error| format!("leading the fork into the control groups: {error}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> String {
        let kept = format!("{:016x}", privileges::kept());
        format!(
            "Name:\tpython\nUid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nGroups:\t \nThreads:\t1\n\
             CapInh:\t0000000000000000\nCapPrm:\t{kept}\nCapEff:\t{kept}\nCapBnd:\t{kept}\n\
             CapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t2\n"
        )
    }

    #[test]
    fn a_fork_with_more_than_it_may_have_is_refused() {
        assert_eq!(check_status(&status()), Ok(()));
        let kept = format!("CapEff:\t{:016x}", privileges::kept());
        for (from, to) in [
            ("Uid:\t0", "Uid:\t5"),
            ("Groups:\t ", "Groups:\t27 "),
            ("Threads:\t1", "Threads:\t2"),
            (kept.as_str(), "CapEff:\t000001ffffffffff"),
            ("NoNewPrivs:\t1", "NoNewPrivs:\t0"),
            ("Seccomp_filters:\t2", "Seccomp_filters:\t1"),
            ("Seccomp_filters:\t2\n", ""),
        ] {
            let changed = status().replacen(from, to, 1);
            assert_ne!(changed, status(), "{from}");
            assert!(check_status(&changed).is_err(), "{to}");
        }
    }

    #[test]
    fn what_is_said_out_of_turn_ends_the_wait() {
        let heard = |messages: &[FromFork]| {
            let (ours, theirs) = packet::pair().unwrap();
            for message in messages {
                let body = serde_json::to_vec(message).unwrap();
                packet::send(theirs.as_fd(), &body, &[], false).unwrap();
            }
            drop(theirs);
            wait_for(&ours).unwrap_err()
        };
        assert!(heard(&[]).contains("ended"));
        assert!(heard(&[FromFork::Forked { pid: 1 }]).contains("cannot be"));
        assert!(heard(&[FromFork::Ready, FromFork::Parted]).contains("ended"));
        assert!(heard(&[FromFork::Failed { why: "a\u{7}b".into() }]).contains("ab"));
        assert!(heard(&vec![FromFork::Ready; 9]).contains("too much"));
        // This test's own process is nobody's child here.
        let own = FromFork::Forked { pid: std::process::id() as i32 };
        assert!(heard(&[own, FromFork::Parted, FromFork::Ready]).contains("no process of here"));
    }
}
