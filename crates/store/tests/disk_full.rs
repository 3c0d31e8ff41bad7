//! A full disk: clear errors, nothing half applied, and life goes on when there is room again.
//!
//! The test runs itself again inside a mount namespace of its own, on a file system of a few MiB. Where
//! the machine allows no such namespace it says so and passes.
#![allow(clippy::unwrap_used)] // In a test a failure to set up is a failure of the test.

use bytes::Bytes;
use evoke_core::{AppId, ErrorCode, SeededEntropy, TaskId, UnixMs};
use evoke_store::logs::{Filter, Logs, LogsConfig, NewEntry, StreamName};
use evoke_store::{Grade, SettingWrite, Store, StoreError, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

const FOLDER: &str = "EVOKE_TEST_FULL_FOLDER";

fn inside(victim: &str) {
    let folder = tempfile::tempdir().unwrap();
    let script = format!(
        "mount -t tmpfs -o size=6m none {0} 2>/dev/null || exit 77; {FOLDER}={0} exec {1} --exact {victim} --ignored --nocapture",
        folder.path().display(),
        std::env::current_exe().unwrap().display()
    );
    let status =
        Command::new("unshare").args(["--user", "--map-root-user", "--mount", "sh", "-c", &script]).status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) if matches!(status.code(), Some(77 | 1)) && !probe() => {
            eprintln!("skipped: this machine allows no mount namespace ({status})");
        }
        Ok(status) => panic!("{status}"),
        Err(error) => eprintln!("skipped: unshare cannot be run ({error})"),
    }
}

fn probe() -> bool {
    let script = "mount -t tmpfs none /mnt";
    Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script])
        .status()
        .is_ok_and(|status| status.success())
}

/// Takes what is left of the disk; the file to be removed to give it back.
fn fill(folder: &Path) -> PathBuf {
    use std::io::Write;
    let path = folder.join("filler");
    let mut file = std::fs::File::create(&path).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    path
}

fn setting(key: &str) -> Write {
    SettingWrite::Put { key: key.to_owned(), value: vec![1; 40_000] }.into()
}

fn keys(store: &Store) -> Vec<String> {
    store
        .read_here(|conn| {
            let mut statement = conn.prepare("SELECT key FROM settings ORDER BY key")?;
            let keys = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
            Ok(keys)
        })
        .unwrap()
}

#[test]
fn the_database_survives_a_full_disk() {
    inside("database_on_a_full_disk");
}

#[test]
fn logs_survive_a_full_disk() {
    inside("logs_on_a_full_disk");
}

#[test]
#[ignore = "run inside a namespace by another test"]
fn database_on_a_full_disk() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let store = Store::open(&folder.join("evoke.db")).unwrap();
    store.submit(vec![setting("a1")], Grade::Synced).wait().unwrap();
    let filler = fill(&folder);
    for grade in [Grade::Written, Grade::Synced, Grade::Written] {
        let tickets: Vec<_> =
            (0..5).map(|n| store.submit(vec![setting(&format!("b{n}")), setting("c")], grade)).collect();
        for ticket in tickets {
            let error = ticket.wait().unwrap_err();
            assert!(matches!(error, StoreError::DiskFull), "{error:?}");
            let shown = evoke_core::Error::from(error);
            assert_eq!(shown.code, ErrorCode::ResourceExhausted);
            assert!(shown.hint.is_some());
        }
        assert_eq!(keys(&store), ["a1"]);
    }
    std::fs::remove_file(filler).unwrap();
    store.submit(vec![setting("a2")], Grade::Written).wait().unwrap();
    store.submit(vec![setting("a3")], Grade::Synced).wait().unwrap();
    assert_eq!(keys(&store), ["a1", "a2", "a3"]);
    drop(store);
    let store = Store::open(&folder.join("evoke.db")).unwrap();
    assert_eq!(keys(&store), ["a1", "a2", "a3"]);
}

#[test]
#[ignore = "run inside a namespace by another test"]
fn logs_on_a_full_disk() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let mut entropy = SeededEntropy::new(1);
    let app: StreamName = AppId::new(UnixMs(1), &mut entropy).into();
    let task = TaskId::new(UnixMs(1), &mut entropy);
    let open = || {
        Logs::open(&folder.join("logs"), LogsConfig { segment_bytes: 100_000, ..LogsConfig::default() })
            .unwrap()
    };
    let entry = |n: u64| NewEntry {
        at_ns: n,
        task: Some(task),
        fd: 1,
        spool_offset: Some(n * 10_000),
        data: Bytes::from(vec![b'a' + n as u8; 10_000]),
        ..NewEntry::default()
    };
    let logs = open();
    // Fails in the middle of a segment, and at the beginning of the next.
    let mut next = 0;
    for before in [3, 9] {
        while next < before {
            logs.append(&app, &[entry(next)]).unwrap();
            next += 1;
        }
        let filler = fill(&folder);
        for _ in 0..3 {
            let batch: Vec<NewEntry> = (next..next + 3).map(entry).collect();
            assert!(matches!(logs.append(&app, &batch), Err(StoreError::DiskFull)));
        }
        std::fs::remove_file(filler).unwrap();
    }
    while next < 15 {
        logs.append(&app, &[entry(next)]).unwrap();
        next += 1;
    }
    for logs in [logs.clone(), open()] {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let page =
            runtime.block_on(logs.read_from(app.clone(), Default::default(), Filter::default())).unwrap();
        let numbers: Vec<u64> = page.entries.iter().map(|entry| entry.at_ns).collect();
        assert_eq!(numbers, (0..15).collect::<Vec<_>>());
        assert_eq!(logs.taken_over(&app, task).unwrap().0, 150_000);
    }
}
