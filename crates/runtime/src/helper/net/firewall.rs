//! Lets containers' packets through other programs' filters (Docker, ufw, firewalld), by those programs' own
//! tools, and translates addresses by them where the kernel has no nftables. Everything added carries our
//! bridge's name, and is removed at the end.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long a tool may take.
const TOOL_TIMEOUT: Duration = Duration::from_secs(10);
/// Where tools are looked for: the helper is root and trusts no PATH.
const FOLDERS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
/// Identical rules removed at most.
const DUPLICATES_MAX: usize = 8;

/// Runs a tool quietly; whether it succeeded.
fn run(tool: &str, arguments: &[&str]) -> bool {
    let Some(path) =
        FOLDERS.iter().map(|folder| format!("{folder}/{tool}")).find(|p| std::path::Path::new(p).exists())
    else {
        return false;
    };
    let mut command = Command::new(path);
    command.args(arguments).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let Ok(mut child) = command.spawn() else { return false };
    let Ok(pidfd) = rustix::process::pidfd_open(
        rustix::process::Pid::from_child(&child),
        rustix::process::PidfdFlags::empty(),
    ) else {
        return child.wait().is_ok_and(|status| status.success());
    };
    #[allow(clippy::disallowed_methods)]
    let deadline = Instant::now() + TOOL_TIMEOUT;
    loop {
        #[allow(clippy::disallowed_methods)]
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = rustix::event::Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let mut fds = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => continue,
            Ok(1..) => return child.wait().is_ok_and(|status| status.success()),
            Ok(0) | Err(_) => {
                // Killed and reaped: whatever its outcome, it took too long.
                let _ = child.kill();
                let _ = child.wait();
                return false;
            }
        }
    }
}

/// Whether this machine's FORWARD chain of iptables has rules or a policy of its own.
fn others_filter() -> bool {
    // "-C" of a rule that nobody has is read-only; a machine without the tool or the table answers no.
    run("iptables", &["-w", "5", "-n", "-L", "DOCKER-USER"])
        || run("iptables", &["-w", "5", "-n", "-L", "ufw-before-forward"])
        || forward_policy_is_drop()
}

fn forward_policy_is_drop() -> bool {
    let path =
        FOLDERS.iter().map(|folder| format!("{folder}/iptables")).find(|p| std::path::Path::new(p).exists());
    let Some(path) = path else { return false };
    let output =
        Command::new(path).args(["-w", "5", "-S", "FORWARD"]).env_clear().stdin(Stdio::null()).output();
    output.is_ok_and(|output| {
        String::from_utf8_lossy(&output.stdout).lines().any(|line| line == "-P FORWARD DROP")
    })
}

fn rules(bridge: &str) -> [Vec<String>; 2] {
    let text = |parts: &[&str]| parts.iter().map(|part| (*part).to_owned()).collect();
    [
        text(&["FORWARD", "-i", bridge, "!", "-o", bridge, "-j", "ACCEPT"]),
        text(&[
            "FORWARD",
            "-o",
            bridge,
            "-m",
            "conntrack",
            "--ctstate",
            "RELATED,ESTABLISHED",
            "-j",
            "ACCEPT",
        ]),
    ]
}

fn iptables(table: &str, action: &str, rule: &[String]) -> bool {
    let mut arguments = vec!["-w", "5", "-t", table, action];
    arguments.extend(rule.iter().map(String::as_str));
    run("iptables", &arguments)
}

/// Makes other filters let the bridge's packets through, where there are any.
pub(super) fn open(bridge: &str) {
    if others_filter() {
        for rule in rules(bridge) {
            if !iptables("filter", "-C", &rule) {
                iptables("filter", "-I", &rule);
            }
        }
    }
    if run("firewall-cmd", &["--state"]) {
        run("firewall-cmd", &["--zone=trusted", &format!("--add-interface={bridge}")]);
    }
}

fn masquerade_rule(bridge: &str, subnet: &str) -> Vec<String> {
    let parts = ["POSTROUTING", "-s", subnet, "!", "-o", bridge, "-j", "MASQUERADE"];
    parts.iter().map(|part| (*part).to_owned()).collect()
}

fn separation_rule(bridge: &str) -> Vec<String> {
    ["FORWARD", "-i", bridge, "-o", bridge, "-j", "DROP"].iter().map(|part| (*part).to_owned()).collect()
}

/// Translates addresses by iptables, where nftables could not; whether it worked.
pub(super) fn masquerade(bridge: &str, subnet: &str) -> bool {
    let nat = masquerade_rule(bridge, subnet);
    let apart = separation_rule(bridge);
    (iptables("nat", "-C", &nat) || iptables("nat", "-I", &nat))
        && (iptables("filter", "-C", &apart) || iptables("filter", "-I", &apart))
}

/// Takes back what [`open`] and [`masquerade`] added.
pub(super) fn close(bridge: &str, subnet: &str) {
    let [out, back] = rules(bridge);
    let all = [("filter", out), ("filter", back), ("filter", separation_rule(bridge))];
    for (table, rule) in all.into_iter().chain([("nat", masquerade_rule(bridge, subnet))]) {
        for _ in 0..DUPLICATES_MAX {
            if !iptables(table, "-D", &rule) {
                break;
            }
        }
    }
    if run("firewall-cmd", &["--state"]) {
        run("firewall-cmd", &["--zone=trusted", &format!("--remove-interface={bridge}")]);
    }
}
