//! The few helpers through which every aggregate speaks to SQLite: cached statements, ids and times as
//! columns.

use crate::StoreError;
use evoke_core::UnixMs;
use evoke_core::id::{Id, Kind};
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Params, Row};
use std::str::FromStr;

/// Runs a cached statement; how many rows it changed.
pub(crate) fn exec(conn: &Connection, sql: &str, params: impl Params) -> rusqlite::Result<usize> {
    conn.prepare_cached(sql)?.execute(params)
}

/// The first row of a cached query, if there is one.
pub(crate) fn one<T>(
    conn: &Connection,
    sql: &str,
    params: impl Params,
    map: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Option<T>, StoreError> {
    Ok(conn.prepare_cached(sql)?.query_row(params, map).optional()?)
}

/// All rows of a cached query. The query bounds how many those are.
pub(crate) fn many<T>(
    conn: &Connection,
    sql: &str,
    params: impl Params,
    map: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>, StoreError> {
    let mut statement = conn.prepare_cached(sql)?;
    let rows = statement.query_map(params, map)?;
    Ok(rows.collect::<rusqlite::Result<Vec<T>>>()?)
}

/// Column `index` as an id.
pub(crate) fn id<K: Kind>(row: &Row<'_>, index: usize) -> rusqlite::Result<Id<K>> {
    parse(index, row.get_ref(index)?.as_str()?)
}

/// Column `index` as an id, or nothing where it is NULL.
pub(crate) fn opt_id<K: Kind>(row: &Row<'_>, index: usize) -> rusqlite::Result<Option<Id<K>>> {
    row.get_ref(index)?.as_str_or_null()?.map(|text| parse(index, text)).transpose()
}

fn parse<K: Kind>(index: usize, text: &str) -> rusqlite::Result<Id<K>> {
    Id::from_str(text)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(index, Type::Text, Box::new(error)))
}

/// An optional id as a parameter.
pub(crate) fn opt_text<K: Kind>(id: &Option<Id<K>>) -> Option<String> {
    id.as_ref().map(ToString::to_string)
}

/// Column `index` as a time.
pub(crate) fn ms(row: &Row<'_>, index: usize) -> rusqlite::Result<UnixMs> {
    Ok(UnixMs(row.get::<_, i64>(index)?.max(0) as u64))
}

/// Column `index` as a time, or nothing where it is NULL.
pub(crate) fn opt_ms(row: &Row<'_>, index: usize) -> rusqlite::Result<Option<UnixMs>> {
    Ok(row.get::<_, Option<i64>>(index)?.map(|at| UnixMs(at.max(0) as u64)))
}

/// A time as a parameter.
pub(crate) fn int(at: UnixMs) -> i64 {
    i64::try_from(at.0).unwrap_or(i64::MAX)
}

/// A column that holds JSON.
pub(crate) fn json<T: serde::de::DeserializeOwned>(row: &Row<'_>, index: usize) -> rusqlite::Result<T> {
    serde_json::from_str(row.get_ref(index)?.as_str()?)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(index, Type::Text, Box::new(error)))
}

/// A value as JSON text for a parameter.
pub(crate) fn to_json<T: serde::Serialize>(value: &T) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}
