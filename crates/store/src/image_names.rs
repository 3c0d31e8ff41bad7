//! Names of images: which image a name with its tag stands for, and which it stood for before.

use crate::sql::{exec, id, int, many, ms, one};
use crate::{Store, StoreError};
use evoke_core::{EnvironmentId, ImageId, UnixMs};
use rusqlite::{Connection, Row, params};

/// Publications of one name that are kept; the oldest go first.
pub const REVISIONS_MAX: u32 = 1_000;

pub(crate) const SCHEMA: &str = "
CREATE TABLE image_names (
  environment_id TEXT NOT NULL, name TEXT NOT NULL, number INTEGER NOT NULL, image_id TEXT NOT NULL,
  published_at INTEGER NOT NULL, published_by TEXT NOT NULL,
  PRIMARY KEY (environment_id, name, number)
) WITHOUT ROWID;
CREATE INDEX image_names_by_image ON image_names (image_id);
";

const COLUMNS: &str = "name, number, image_id, published_at, published_by";

/// One publication of an image under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageNameRow {
    /// The name with its tag: `name:tag`.
    pub name: String,
    /// Counts the publications of the name, from 1; the highest one is in force.
    pub number: u64,
    /// The image.
    pub image_id: ImageId,
    /// When.
    pub published_at: UnixMs,
    /// By whom.
    pub published_by: String,
}

/// A change of the names of images.
#[derive(Debug, Clone)]
pub enum ImageNameWrite {
    /// From now on the name stands for the image.
    Publish {
        /// The environment that the name is in.
        environment: EnvironmentId,
        /// The name with its tag.
        name: String,
        /// The image.
        image: ImageId,
        /// When.
        at: UnixMs,
        /// By whom.
        by: String,
    },
    /// Forgets a name with all its publications.
    Delete {
        /// The environment that the name is in.
        environment: EnvironmentId,
        /// The name with its tag.
        name: String,
    },
}

impl ImageNameWrite {
    pub(crate) fn apply(&self, conn: &Connection) -> rusqlite::Result<()> {
        match self {
            Self::Publish { environment, name, image, at, by } => {
                let environment = environment.to_string();
                exec(
                    conn,
                    "INSERT INTO image_names (environment_id, name, number, image_id, published_at, published_by)
                     VALUES (?1, ?2, 1 + coalesce(
                       (SELECT max(number) FROM image_names WHERE environment_id = ?1 AND name = ?2), 0),
                       ?3, ?4, ?5)",
                    params![environment, name, image.to_string(), int(*at), by],
                )?;
                exec(
                    conn,
                    "DELETE FROM image_names WHERE environment_id = ?1 AND name = ?2 AND number <=
                       (SELECT max(number) FROM image_names WHERE environment_id = ?1 AND name = ?2) - ?3",
                    params![environment, name, REVISIONS_MAX],
                )?;
            }
            Self::Delete { environment, name } => {
                exec(
                    conn,
                    "DELETE FROM image_names WHERE environment_id = ?1 AND name = ?2",
                    params![environment.to_string(), name],
                )?;
            }
        };
        Ok(())
    }
}

/// All names of an environment go with it.
pub(crate) fn delete_of_environment(conn: &Connection, environment: EnvironmentId) -> rusqlite::Result<()> {
    exec(conn, "DELETE FROM image_names WHERE environment_id = ?1", [environment.to_string()]).map(drop)
}

/// All publications of an image go with it.
pub(crate) fn delete_of_image(conn: &Connection, image: ImageId) -> rusqlite::Result<()> {
    exec(conn, "DELETE FROM image_names WHERE image_id = ?1", [image.to_string()]).map(drop)
}

/// Reads names of images.
#[derive(Debug, Clone, Copy)]
pub struct ImageNames<'a>(pub(crate) &'a Store);

impl ImageNames<'_> {
    /// The publication of a name that is in force.
    pub async fn current(
        &self,
        environment: EnvironmentId,
        name: String,
    ) -> Result<Option<ImageNameRow>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM image_names WHERE environment_id = ?1 AND name = ?2
             ORDER BY number DESC LIMIT 1"
        );
        self.0.read(move |conn| one(conn, &sql, params![environment.to_string(), name], from_row)).await
    }

    /// All images that a name stands for or stood for.
    pub async fn images(&self) -> Result<Vec<ImageId>, StoreError> {
        let sql = "SELECT DISTINCT image_id FROM image_names";
        self.0.read(move |conn| many(conn, sql, [], |row| id(row, 0))).await
    }

    /// The publications of a name, newest first: at most `limit` that came before the one numbered `before`.
    pub async fn history(
        &self,
        environment: EnvironmentId,
        name: String,
        before: Option<u64>,
        limit: u32,
    ) -> Result<Vec<ImageNameRow>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM image_names WHERE environment_id = ?1 AND name = ?2 AND number < ?3
             ORDER BY number DESC LIMIT ?4"
        );
        let before = before.and_then(|number| i64::try_from(number).ok()).unwrap_or(i64::MAX);
        let environment = environment.to_string();
        self.0.read(move |conn| many(conn, &sql, params![environment, name, before, limit], from_row)).await
    }

    /// What is in force for the names of an environment that begin with `prefix` and come after `after`, by
    /// name: at most `limit`, each with the time of its first publication. Of one image, where it is given.
    pub async fn list(
        &self,
        environment: EnvironmentId,
        prefix: String,
        image: Option<ImageId>,
        after: String,
        limit: u32,
    ) -> Result<Vec<(ImageNameRow, UnixMs)>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS}, (SELECT min(published_at) FROM image_names AS first
                WHERE first.environment_id = ?1 AND first.name = latest.name)
             FROM image_names AS latest
             WHERE environment_id = ?1 AND name > ?2 AND substr(name, 1, length(?3)) = ?3
               AND number = (SELECT max(number) FROM image_names AS other
                 WHERE other.environment_id = ?1 AND other.name = latest.name)
               AND (?4 IS NULL OR image_id = ?4)
             ORDER BY name LIMIT ?5"
        );
        let image = crate::sql::opt_text(&image);
        let environment = environment.to_string();
        self.0
            .read(move |conn| {
                many(conn, &sql, params![environment, after, prefix, image, limit], |row| {
                    Ok((from_row(row)?, ms(row, 5)?))
                })
            })
            .await
    }
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<ImageNameRow> {
    Ok(ImageNameRow {
        name: row.get(0)?,
        number: row.get::<_, i64>(1)?.max(0) as u64,
        image_id: id(row, 2)?,
        published_at: ms(row, 3)?,
        published_by: row.get(4)?,
    })
}
