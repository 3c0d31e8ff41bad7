//! The schema: numbered migrations, forward only, each applied once and all of a start in one transaction.

use crate::StoreError;
use rusqlite::{Connection, TransactionBehavior};
use std::path::Path;

/// Written into the file's header ("EVOK"), so that another program's database is not taken for ours.
const APPLICATION_ID: i32 = 0x4556_4F4B;

/// What makes schema `n` out of schema `n - 1`, at index `n - 1`. Published ones are never edited.
const MIGRATIONS: &[&[&str]] = &[
    &[
        crate::environments::SCHEMA,
        crate::apps::SCHEMA,
        crate::functions::SCHEMA,
        crate::classes::SCHEMA,
        crate::mounts::SCHEMA,
        crate::images::SCHEMA,
        crate::secrets::SCHEMA,
        crate::blobs::SCHEMA,
        crate::idempotency::SCHEMA,
        crate::tokens::SCHEMA,
        crate::settings::SCHEMA,
        crate::calls::SCHEMA,
    ],
    &[crate::volumes::SCHEMA, crate::shared_volumes::SCHEMA],
    &[crate::apps::SCHEMA_DEPLOYMENTS, crate::functions::SCHEMA_TAGS, crate::schedules::SCHEMA],
    &[crate::objects::SCHEMA, crate::dicts::SCHEMA, crate::queues::SCHEMA, crate::secrets::AUTHORS],
    &[crate::scaling::SCHEMA, crate::calls::PARENT_INDEX],
    &[crate::calls::TASK_GPUS],
    &[crate::image_names::SCHEMA, crate::images::BUILDERS],
    &[crate::images::USES],
    &[crate::web::SCHEMA],
    &[crate::tokens::EXPIRY],
];

/// Brings the database behind `conn` to the newest schema. `path` is for the message.
pub(crate) fn migrate(conn: &mut Connection, path: &Path) -> Result<(), StoreError> {
    migrate_with(conn, path, MIGRATIONS)
}

fn migrate_with(conn: &mut Connection, path: &Path, migrations: &[&[&str]]) -> Result<(), StoreError> {
    let known = migrations.len() as u32;
    let transaction = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found = version_of(&transaction, path)?;
    if found > known {
        return Err(StoreError::NewerSchema { found, known });
    }
    for steps in &migrations[found as usize..] {
        for step in *steps {
            transaction.execute_batch(step)?;
        }
    }
    if found < known {
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", known)?;
    }
    transaction.commit()?;
    Ok(())
}

/// The schema number of the file; 0 for an empty one.
fn version_of(conn: &Connection, path: &Path) -> Result<u32, StoreError> {
    let number = |pragma: &str| conn.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
    let application = number("application_id")?;
    let version = u32::try_from(number("user_version")?).unwrap_or(u32::MAX);
    let objects: i64 = conn.query_row("SELECT count(*) FROM sqlite_master", [], |row| row.get(0))?;
    if application == 0 && objects == 0 {
        return Ok(0);
    }
    if application != i64::from(APPLICATION_ID) {
        let reason = "it is the database of another program".to_owned();
        return Err(StoreError::Foreign { path: path.to_owned(), reason });
    }
    Ok(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &[&[&str]] = &[&["CREATE TABLE a (x)"], &["ALTER TABLE a ADD COLUMN y", "CREATE TABLE b (z)"]];

    fn tables(conn: &Connection) -> i64 {
        conn.query_row("SELECT count(*) FROM sqlite_master", [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn migrates_step_by_step_and_only_once() {
        let mut conn = Connection::open_in_memory().unwrap();
        let path = Path::new("x");
        migrate_with(&mut conn, path, &TWO[..1]).unwrap();
        assert_eq!(tables(&conn), 1);
        migrate_with(&mut conn, path, TWO).unwrap();
        migrate_with(&mut conn, path, TWO).unwrap();
        assert_eq!(tables(&conn), 2);
    }

    #[test]
    fn refuses_a_newer_schema_and_leaves_it_alone() {
        let mut conn = Connection::open_in_memory().unwrap();
        migrate_with(&mut conn, Path::new("x"), TWO).unwrap();
        let error = migrate_with(&mut conn, Path::new("x"), &TWO[..1]).unwrap_err();
        assert!(matches!(error, StoreError::NewerSchema { found: 2, known: 1 }), "{error}");
    }

    #[test]
    fn a_failed_migration_changes_nothing() {
        let mut conn = Connection::open_in_memory().unwrap();
        let broken: &[&[&str]] = &[&["CREATE TABLE a (x)"], &["CREATE TABLE b (y)", "CREATE GARBAGE"]];
        migrate_with(&mut conn, Path::new("x"), broken).unwrap_err();
        assert_eq!(tables(&conn), 0);
    }
}
