//! Opening a database: again, a broken one, somebody else's, a newer one.
#![allow(clippy::unwrap_used)] // In a test a failure to set up is a failure of the test.

use evoke_store::{Grade, SettingWrite, Store, StoreError, Write};
use std::path::PathBuf;

fn setting(key: &str, value: &[u8]) -> Write {
    SettingWrite::Put { key: key.to_owned(), value: value.to_vec() }.into()
}

fn fresh() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("evoke.db");
    (folder, path)
}

fn count(store: &Store) -> i64 {
    store
        .read_here(|conn| Ok(conn.query_row("SELECT count(*) FROM settings", [], |row| row.get(0))?))
        .unwrap()
}

#[test]
fn what_was_stored_is_there_again() {
    let (_folder, path) = fresh();
    for round in 0..3 {
        let store = Store::open(&path).unwrap();
        assert_eq!(count(&store), round * 100);
        for n in 0..100 {
            let ticket = store.submit(vec![setting(&format!("{round}-{n}"), &[0; 100])], Grade::Written);
            drop(ticket);
        }
        // Dropping the last handle writes what was submitted.
    }
    // A clean end leaves no write-ahead log to be read at the next start.
    assert!(!path.with_extension("db-wal").exists());
}

#[test]
fn refuses_what_is_not_a_database() {
    let (_folder, path) = fresh();
    let text = "this is a text file, and rather more than a header long. ".repeat(20);
    std::fs::write(&path, &text).unwrap();
    let error = Store::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::Foreign { .. }), "{error:?}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    let shown = evoke_core::Error::from(error);
    assert!(shown.message.contains("evoke.db") && shown.hint.is_some(), "{shown}");
}

#[test]
fn refuses_another_programs_database() {
    let (_folder, path) = fresh();
    let conn = rusqlite::Connection::open(&path).unwrap();
    conn.execute_batch("CREATE TABLE theirs (x)").unwrap();
    drop(conn);
    assert!(matches!(Store::open(&path), Err(StoreError::Foreign { .. })));
}

#[test]
fn refuses_a_newer_database() {
    let (_folder, path) = fresh();
    drop(Store::open(&path).unwrap());
    rusqlite::Connection::open(&path).unwrap().pragma_update(None, "user_version", 999).unwrap();
    let error = Store::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::NewerSchema { found: 999, .. }), "{error:?}");
}

#[test]
fn says_where_a_database_is_damaged() {
    let (_folder, path) = fresh();
    let store = Store::open(&path).unwrap();
    for n in 0..100 {
        store.submit(vec![setting(&n.to_string(), &[1; 3_000])], Grade::Written).wait().unwrap();
    }
    drop(store);
    // Cut short, as by a copy that was broken off.
    let size = std::fs::metadata(&path).unwrap().len();
    std::fs::File::options().write(true).open(&path).unwrap().set_len(size / 2).unwrap();
    let error = Store::open(&path).unwrap_err();
    assert!(matches!(&error, StoreError::Corrupt(text) if text.contains("evoke.db")), "{error:?}");
}

#[test]
fn says_which_folder_is_missing() {
    let (folder, _) = fresh();
    let error = Store::open(&folder.path().join("no/evoke.db")).unwrap_err();
    assert!(matches!(error, StoreError::Open { .. }), "{error:?}");
}

/// While writes keep coming, the log is bounded: it is moved into the database and starts again.
#[test]
fn the_write_ahead_log_stays_bounded() {
    let (_folder, path) = fresh();
    let store = Store::open(&path).unwrap();
    let wal = path.with_extension("db-wal");
    let mut longest = 0;
    // 240 MiB in all, never pausing.
    for n in 0..240 {
        let batch: Vec<Write> =
            (0..16).map(|k| setting(&format!("{}-{k}", n % 8), &vec![n as u8; 64 * 1024])).collect();
        store.submit(batch, Grade::Written).wait().unwrap();
        longest = longest.max(std::fs::metadata(&wal).unwrap().len());
    }
    assert!(longest < 160 * 1024 * 1024, "{longest}");
}

#[test]
fn readers_see_whole_batches_while_writes_go_on() {
    let (_folder, path) = fresh();
    let store = Store::open(&path).unwrap();
    store.submit(vec![setting("a", b"0"), setting("b", b"0")], Grade::Written).wait().unwrap();
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let same = store
                            .read_here(|conn| {
                                Ok(conn.query_row(
                                    "SELECT (SELECT value FROM settings WHERE key = 'a')
                                          = (SELECT value FROM settings WHERE key = 'b')",
                                    [],
                                    |row| row.get::<_, bool>(0),
                                )?)
                            })
                            .unwrap();
                        assert!(same);
                    }
                })
            })
            .collect();
        for n in 0..500 {
            let value = n.to_string().into_bytes();
            drop(store.submit(vec![setting("a", &value), setting("b", &value)], Grade::Written));
        }
        for reader in readers {
            reader.join().unwrap();
        }
    });
}
