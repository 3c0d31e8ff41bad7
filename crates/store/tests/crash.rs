//! What an acknowledgement promises, checked by killing a process that commits.
//!
//! The tests start this test binary again as the process to be killed: an ignored test, told by an
//! environment variable where to write.
#![allow(clippy::unwrap_used)] // In a test a failure to set up is a failure of the test.

use bytes::Bytes;
use evoke_core::{AppId, SeededEntropy, TaskId, UnixMs};
use evoke_store::logs::{Cursor, Filter, Logs, LogsConfig, NewEntry};
use evoke_store::{Grade, SettingWrite, Store, Write};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const FOLDER: &str = "EVOKE_TEST_CRASH_FOLDER";

fn folder() -> Option<PathBuf> {
    std::env::var_os(FOLDER).map(PathBuf::from)
}

/// Runs the ignored test `victim` on `folder` and kills it when it has printed `lines` acknowledgements;
/// all that it printed.
fn kill_after(victim: &str, folder: &Path, lines: usize) -> Vec<u64> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", victim, "--ignored", "--nocapture", "--test-threads=1"])
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut acknowledged = Vec::new();
    let mut killed = false;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        // The last line may be torn by the kill; what counts is what was printed whole.
        let Ok(line) = line else { break };
        acknowledged.extend(line.strip_prefix("ack ").and_then(|n| n.strip_suffix('.')?.parse::<u64>().ok()));
        if acknowledged.len() >= lines && !killed {
            child.kill().unwrap();
            killed = true;
        }
    }
    child.wait().unwrap();
    assert!(killed, "the process ended by itself");
    acknowledged
}

#[test]
#[ignore = "the process that another test kills"]
fn commits_until_killed() {
    let Some(folder) = folder() else { return };
    let store = Store::open(&folder.join("evoke.db")).unwrap();
    let start: u64 = store
        .read_here(|conn| Ok(conn.query_row("SELECT count(*) / 2 FROM settings", [], |row| row.get(0))?))
        .unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let store = &store;
            scope.spawn(move || {
                for n in 0.. {
                    let n = start * 1_000 + n * 4 + thread;
                    let put = |side: &str| -> Write {
                        SettingWrite::Put { key: format!("{side}{n}"), value: vec![1; 500] }.into()
                    };
                    let writes = vec![put("a"), put("b")];
                    // Half of them commit what they submit themselves.
                    if thread % 2 == 0 {
                        store.submit(writes, Grade::Written).wait().unwrap();
                    } else {
                        let (tickets, lead) = store.submit_all(vec![(writes, Grade::Written)]);
                        drop(lead);
                        tickets.into_iter().for_each(|ticket| ticket.wait().unwrap());
                    }
                    println!("ack {n}.");
                }
            });
        }
    });
}

#[test]
fn acknowledged_writes_survive_sigkill() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("evoke.db");
    let mut acknowledged = Vec::new();
    for round in 1..=4 {
        acknowledged.extend(kill_after("commits_until_killed", folder.path(), 150 * round));
        let store = Store::open(&path).unwrap();
        store
            .read_here(|conn| {
                let mut has = conn.prepare("SELECT count(*) FROM settings WHERE key IN (?1, ?2)")?;
                for n in &acknowledged {
                    let count: i64 = has.query_row([format!("a{n}"), format!("b{n}")], |row| row.get(0))?;
                    assert_eq!(count, 2, "batch {n} was acknowledged");
                }
                // What was not acknowledged is there as a whole or not at all.
                let halves: i64 = conn.query_row(
                    "SELECT count(*) FROM settings s WHERE NOT EXISTS (SELECT 1 FROM settings t WHERE t.key =
                       CASE substr(s.key, 1, 1) WHEN 'a' THEN 'b' ELSE 'a' END || substr(s.key, 2))",
                    [],
                    |row| row.get(0),
                )?;
                assert_eq!(halves, 0);
                let check: String = conn.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
                assert_eq!(check, "ok");
                Ok(())
            })
            .unwrap();
    }
}

fn log_ids() -> (AppId, TaskId) {
    let mut entropy = SeededEntropy::new(5);
    (AppId::new(UnixMs(1), &mut entropy), TaskId::new(UnixMs(1), &mut entropy))
}

fn line(n: u64) -> Bytes {
    Bytes::from(format!("line {n} {}\n", "x".repeat((n % 700) as usize)))
}

/// The spool offset at which line `n` begins.
fn offset_of(n: u64) -> u64 {
    (0..n).map(|n| line(n).len() as u64).sum()
}

#[test]
#[ignore = "the process that another test kills"]
fn logs_until_killed() {
    let Some(folder) = folder() else { return };
    let logs =
        Logs::open(&folder.join("logs"), LogsConfig { segment_bytes: 64 * 1024, ..LogsConfig::default() })
            .unwrap();
    let (app, task) = log_ids();
    let taken = logs.taken_over(&app.into(), task).unwrap().0;
    let mut offset = 0;
    for n in 0.. {
        let data = line(n);
        let entry = NewEntry {
            at_ns: n,
            task: Some(task),
            fd: 1,
            spool_offset: Some(offset),
            data: data.clone(),
            ..NewEntry::default()
        };
        // From a little before where the last one was killed: a worker sends again what was not confirmed.
        if offset + 5_000 >= taken {
            logs.append(&app.into(), &[entry]).unwrap();
            println!("ack {n}.");
        }
        offset += data.len() as u64;
    }
}

#[tokio::test]
async fn appended_logs_survive_sigkill_once_each() {
    let folder = tempfile::tempdir().unwrap();
    let (app, task) = log_ids();
    let mut last = 0;
    for round in 1..=4 {
        let acknowledged = kill_after("logs_until_killed", folder.path(), 200 * round);
        last = acknowledged.into_iter().max().unwrap().max(last);
    }
    let logs = Logs::open(&folder.path().join("logs"), LogsConfig::default()).unwrap();
    let (mut next, mut from) = (0, Cursor::START);
    loop {
        let page = logs.read_from(app.into(), from, Filter::default()).await.unwrap();
        for entry in page.entries {
            assert_eq!(entry.data, line(next), "entry {next}");
            assert_eq!(entry.spool_offset, Some(offset_of(next)));
            next += 1;
        }
        from = page.next;
        if page.at_end {
            break;
        }
    }
    assert!(next > last, "{next} lines, and line {last} was acknowledged");
    assert_eq!(logs.taken_over(&app.into(), task).unwrap(), (offset_of(next), 0));
}
