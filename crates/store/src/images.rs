//! Images: what they were asked as, how far their build is, and what a container of theirs needs.

use crate::sql::{exec, id, int, many, ms, one, opt_id, opt_text};
use crate::{Store, StoreError};
use evoke_core::{ImageId, TaskId, UnixMs};
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, Row, params};

pub(crate) const SCHEMA: &str = "
CREATE TABLE images (
  id TEXT PRIMARY KEY, recipe_digest TEXT NOT NULL, state INTEGER NOT NULL, built TEXT NOT NULL,
  build_log TEXT,
  error TEXT NOT NULL, created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL,
  recipe BLOB NOT NULL, metadata BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX images_by_recipe ON images (recipe_digest);
CREATE INDEX images_building ON images (id) WHERE state = 0;
";
/// Finds the build that a container id of a build's log stands for.
pub(crate) const BUILDERS: &str = "
ALTER TABLE images RENAME COLUMN build_log TO builder;
CREATE INDEX images_by_builder ON images (builder) WHERE builder IS NOT NULL;
";
/// What nobody used for long is collected.
pub(crate) const USES: &str = "
ALTER TABLE images ADD COLUMN used_at INTEGER NOT NULL DEFAULT 0;
UPDATE images SET used_at = updated_at;
";

const COLUMNS: &str =
    "id, recipe_digest, state, built, builder, error, created_at, updated_at, used_at, recipe, metadata";

/// How far the build of an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageState {
    /// Asked for; a build runs or will.
    Building,
    /// Its layers are there.
    Ready,
    /// The build failed; the same recipe asked for again is built again.
    Failed,
}

impl ToSql for ImageState {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::from(match self {
            Self::Building => 0i64,
            Self::Ready => 1,
            Self::Failed => 2,
        }))
    }
}

impl FromSql for ImageState {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        match value.as_i64()? {
            0 => Ok(Self::Building),
            1 => Ok(Self::Ready),
            2 => Ok(Self::Failed),
            other => Err(FromSqlError::OutOfRange(other)),
        }
    }
}

/// A stored image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRow {
    /// Its id.
    pub id: ImageId,
    /// Names the recipe: the same recipe is the same image.
    pub recipe_digest: String,
    /// How far it is.
    pub state: ImageState,
    /// What its containers need (layers, environment, Python), as control encodes it; empty until it is ready.
    pub built: String,
    /// Names its latest build in its log, as the id of a container that built it would.
    pub builder: Option<TaskId>,
    /// Why the build failed; empty otherwise.
    pub error: String,
    /// When it was first asked for.
    pub created_at: UnixMs,
    /// When its state last changed.
    pub updated_at: UnixMs,
    /// When it was last asked for or run, to the minute.
    pub used_at: UnixMs,
    /// The recipe, as received.
    pub recipe: Vec<u8>,
    /// What clients are told of it.
    pub metadata: Vec<u8>,
}

/// A change of an image.
#[derive(Debug, Clone)]
pub enum ImageWrite {
    /// Makes it, or replaces what is stored under its id.
    Put(ImageRow),
    /// It was asked for or run.
    Used {
        /// Which.
        id: ImageId,
        /// When.
        at: UnixMs,
    },
    /// Forgets it unless it is being built or was used since.
    Collect {
        /// Which.
        id: ImageId,
        /// It stays where it was used at this time or later.
        before: UnixMs,
    },
    /// Forgets it, and what it was published as.
    Delete {
        /// Which.
        id: ImageId,
    },
}

impl ImageWrite {
    pub(crate) fn apply(&self, conn: &Connection) -> rusqlite::Result<()> {
        match self {
            Self::Put(row) => put(conn, row)?,
            Self::Used { id, at } => {
                exec(conn, "UPDATE images SET used_at = ?2 WHERE id = ?1", params![id.to_string(), int(*at)])?
            }
            Self::Collect { id, before } => exec(
                conn,
                "DELETE FROM images WHERE id = ?1 AND state <> 0 AND used_at < ?2
                   AND NOT EXISTS (SELECT 1 FROM image_names WHERE image_id = ?1)",
                params![id.to_string(), int(*before)],
            )?,
            Self::Delete { id } => {
                crate::image_names::delete_of_image(conn, *id)?;
                exec(conn, "DELETE FROM images WHERE id = ?1", [id.to_string()])?
            }
        };
        Ok(())
    }
}

fn put(conn: &Connection, row: &ImageRow) -> rusqlite::Result<usize> {
    exec(
        conn,
        "INSERT INTO images (id, recipe_digest, state, built, builder, error,
           created_at, updated_at, used_at, recipe, metadata)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)
         ON CONFLICT (id) DO UPDATE SET recipe_digest = excluded.recipe_digest, state = excluded.state,
           built = excluded.built, builder = excluded.builder,
           error = excluded.error, updated_at = excluded.updated_at,
           used_at = excluded.used_at, recipe = excluded.recipe,
           metadata = excluded.metadata",
        params![
            row.id.to_string(),
            row.recipe_digest,
            row.state,
            row.built,
            opt_text(&row.builder),
            row.error,
            int(row.created_at),
            int(row.updated_at),
            int(row.used_at),
            row.recipe,
            row.metadata
        ],
    )
}

/// Reads images.
#[derive(Debug, Clone, Copy)]
pub struct Images<'a>(pub(crate) &'a Store);

impl Images<'_> {
    /// The one with this id.
    pub async fn by_id(&self, id: ImageId) -> Result<Option<ImageRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM images WHERE id = ?1");
        self.0.read(move |conn| one(conn, &sql, [id.to_string()], from_row)).await
    }

    /// The newest one of this recipe, whatever its state.
    pub async fn by_recipe(&self, digest: String) -> Result<Option<ImageRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM images WHERE recipe_digest = ?1 ORDER BY id DESC LIMIT 1");
        self.0.read(move |conn| one(conn, &sql, [digest], from_row)).await
    }

    /// All whose build had not ended: what a restarted server takes up again.
    pub async fn building(&self) -> Result<Vec<ImageRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM images WHERE state = 0 ORDER BY id");
        self.0.read(move |conn| many(conn, &sql, [], from_row)).await
    }

    /// The one whose latest build is named so in its log.
    pub async fn by_builder(&self, builder: TaskId) -> Result<Option<ImageRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM images WHERE builder = ?1");
        self.0.read(move |conn| one(conn, &sql, [builder.to_string()], from_row)).await
    }

    /// At most `limit` images in order of their ids, those after `after`.
    pub async fn page(&self, after: Option<ImageId>, limit: u32) -> Result<Vec<ImageRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM images WHERE id > ?1 ORDER BY id LIMIT ?2");
        let after = opt_text(&after).unwrap_or_default();
        self.0.read(move |conn| many(conn, &sql, params![after, limit], from_row)).await
    }

    /// The newest `limit` images, newest first.
    pub async fn recent(&self, limit: u32) -> Result<Vec<ImageRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM images ORDER BY id DESC LIMIT ?1");
        self.0.read(move |conn| many(conn, &sql, [limit], from_row)).await
    }
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<ImageRow> {
    Ok(ImageRow {
        id: id(row, 0)?,
        recipe_digest: row.get(1)?,
        state: row.get(2)?,
        built: row.get(3)?,
        builder: opt_id(row, 4)?,
        error: row.get(5)?,
        created_at: ms(row, 6)?,
        updated_at: ms(row, 7)?,
        used_at: ms(row, 8)?,
        recipe: row.get(9)?,
        metadata: row.get(10)?,
    })
}
