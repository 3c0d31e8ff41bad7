//! Functions, variants of them bound to parameters, and every definition that they ever had.

use crate::sql::{exec, id, int, many, ms, one, opt_id, opt_ms, opt_text};
use crate::{Store, StoreError};
use evoke_core::{AppId, DefinitionId, FunctionId, UnixMs};
use rusqlite::{Connection, Row, params};

pub(crate) const SCHEMA: &str = "
CREATE TABLE functions (
  id TEXT PRIMARY KEY, app_id TEXT NOT NULL, tag TEXT NOT NULL, definition_id TEXT,
  generation INTEGER NOT NULL, created_at INTEGER NOT NULL, deleted_at INTEGER, base_id TEXT,
  variant BLOB, body BLOB NOT NULL, metadata BLOB NOT NULL
) WITHOUT ROWID;
CREATE UNIQUE INDEX functions_by_tag ON functions (app_id, tag)
  WHERE base_id IS NULL AND deleted_at IS NULL;
CREATE INDEX functions_of_app ON functions (app_id);
CREATE UNIQUE INDEX functions_by_variant ON functions (base_id, variant) WHERE base_id IS NOT NULL;
CREATE TABLE definitions (
  id TEXT PRIMARY KEY, function_id TEXT NOT NULL, created_at INTEGER NOT NULL,
  body BLOB NOT NULL, metadata BLOB NOT NULL
) WITHOUT ROWID;
";

/// Two deployments under way may both create a function of one tag; which one counts, their publication says.
pub(crate) const SCHEMA_TAGS: &str = "
DROP INDEX functions_by_tag;
CREATE INDEX functions_by_tag ON functions (app_id, tag) WHERE base_id IS NULL AND deleted_at IS NULL;
";

const COLUMNS: &str = "id, app_id, tag, definition_id, generation, created_at, deleted_at, base_id, variant,
  body, metadata";

/// A stored function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FunctionRow {
    /// Its id; stays the same over the versions of an app.
    pub id: FunctionId,
    /// The app that it belongs to.
    pub app_id: AppId,
    /// Its name in the app. Variants share their base's; what is published has each name once.
    pub tag: String,
    /// The definition that is live; `None` while it is only announced.
    pub definition_id: Option<DefinitionId>,
    /// Grows with each change of what its containers run; containers of an older one are let go.
    pub generation: u64,
    /// When it was made.
    pub created_at: UnixMs,
    /// When it left its app.
    pub deleted_at: Option<UnixMs>,
    /// For a variant: the function that it was made of.
    pub base_id: Option<FunctionId>,
    /// For a variant: what tells it from others of the same base (parameters and options, canonical).
    pub variant: Option<Vec<u8>>,
    /// The live definition, as received.
    pub body: Vec<u8>,
    /// What clients are given as its handle.
    pub metadata: Vec<u8>,
}

/// One immutable definition of a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefinitionRow {
    /// Its id.
    pub id: DefinitionId,
    /// Whose it is.
    pub function_id: FunctionId,
    /// When it was made.
    pub created_at: UnixMs,
    /// As received.
    pub body: Vec<u8>,
    /// What clients are given as the function's handle.
    pub metadata: Vec<u8>,
}

/// A change of a function.
#[derive(Debug, Clone)]
pub enum FunctionWrite {
    /// Makes it, or replaces what is stored under its id.
    Put(FunctionRow),
    /// Keeps a definition; what is live does not change.
    Define(DefinitionRow),
    /// A definition kept before becomes the live one.
    Live {
        /// Which function.
        id: FunctionId,
        /// Its definition from now on.
        definition_id: DefinitionId,
        /// Its generation from now on.
        generation: u64,
    },
    /// It left its app.
    Delete {
        /// Which function.
        id: FunctionId,
        /// When.
        at: UnixMs,
    },
}

impl FunctionWrite {
    pub(crate) fn apply(&self, conn: &Connection) -> rusqlite::Result<()> {
        match self {
            Self::Put(row) => put(conn, row)?,
            Self::Define(row) => exec(
                conn,
                "INSERT INTO definitions (id, function_id, created_at, body, metadata)
                 VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (id) DO NOTHING",
                params![
                    row.id.to_string(),
                    row.function_id.to_string(),
                    int(row.created_at),
                    row.body,
                    row.metadata
                ],
            )?,
            Self::Live { id, definition_id, generation } => exec(
                conn,
                "UPDATE functions SET definition_id = ?2, generation = ?3, deleted_at = NULL,
                   body = (SELECT body FROM definitions WHERE id = ?2),
                   metadata = (SELECT metadata FROM definitions WHERE id = ?2)
                 WHERE id = ?1",
                params![id.to_string(), definition_id.to_string(), *generation as i64],
            )?,
            Self::Delete { id, at } => exec(
                conn,
                "UPDATE functions SET deleted_at = ?2 WHERE id = ?1 AND deleted_at IS NULL",
                params![id.to_string(), int(*at)],
            )?,
        };
        Ok(())
    }
}

fn put(conn: &Connection, row: &FunctionRow) -> rusqlite::Result<usize> {
    exec(
        conn,
        "INSERT INTO functions (id, app_id, tag, definition_id, generation, created_at, deleted_at, base_id,
           variant, body, metadata)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)
         ON CONFLICT (id) DO UPDATE SET tag = excluded.tag, definition_id = excluded.definition_id,
           generation = excluded.generation, deleted_at = excluded.deleted_at, body = excluded.body,
           metadata = excluded.metadata",
        params![
            row.id.to_string(),
            row.app_id.to_string(),
            row.tag,
            opt_text(&row.definition_id),
            row.generation as i64,
            int(row.created_at),
            row.deleted_at.map(int),
            opt_text(&row.base_id),
            row.variant,
            row.body,
            row.metadata
        ],
    )
}

/// Reads functions.
#[derive(Debug, Clone, Copy)]
pub struct Functions<'a>(pub(crate) &'a Store);

impl Functions<'_> {
    /// The one with this id.
    pub async fn by_id(&self, id: FunctionId) -> Result<Option<FunctionRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM functions WHERE id = ?1");
        self.0.read(move |conn| one(conn, &sql, [id.to_string()], from_row)).await
    }

    /// The newest one with this tag in an app.
    pub async fn by_tag(&self, app: AppId, tag: String) -> Result<Option<FunctionRow>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM functions
             WHERE app_id = ?1 AND tag = ?2 AND base_id IS NULL AND deleted_at IS NULL ORDER BY id DESC"
        );
        self.0.read(move |conn| one(conn, &sql, params![app.to_string(), tag], from_row)).await
    }

    /// All of an app with their variants, in order of creation; those that have left it too.
    pub async fn of_app(&self, app: AppId) -> Result<Vec<FunctionRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM functions WHERE app_id = ?1 ORDER BY id");
        self.0.read(move |conn| many(conn, &sql, [app.to_string()], from_row)).await
    }

    /// The variant of `base` with these parameters and options.
    pub async fn variant(
        &self,
        base: FunctionId,
        variant: Vec<u8>,
    ) -> Result<Option<FunctionRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM functions WHERE base_id = ?1 AND variant = ?2");
        self.0.read(move |conn| one(conn, &sql, params![base.to_string(), variant], from_row)).await
    }

    /// All variants of `base`, in order of creation.
    pub async fn variants(&self, base: FunctionId) -> Result<Vec<FunctionRow>, StoreError> {
        let sql =
            format!("SELECT {COLUMNS} FROM functions WHERE base_id = ?1 AND deleted_at IS NULL ORDER BY id");
        self.0.read(move |conn| many(conn, &sql, [base.to_string()], from_row)).await
    }

    /// At most `limit` definitions, live or not, of apps that are not stopped, those after `after`, by id.
    pub async fn definitions_in_use(
        &self,
        after: Option<DefinitionId>,
        limit: u32,
    ) -> Result<Vec<DefinitionRow>, StoreError> {
        let sql = "SELECT id, function_id, created_at, body, metadata FROM definitions
             WHERE id > ?1 AND EXISTS (SELECT 1 FROM functions JOIN apps ON apps.id = functions.app_id
               WHERE functions.id = definitions.function_id AND apps.stopped_at IS NULL)
             ORDER BY id LIMIT ?2";
        let after = opt_text(&after).unwrap_or_default();
        self.0.read(move |conn| many(conn, sql, params![after, limit], definition)).await
    }

    /// A definition, live or not.
    pub async fn definition(&self, id: DefinitionId) -> Result<Option<DefinitionRow>, StoreError> {
        let sql = "SELECT id, function_id, created_at, body, metadata FROM definitions WHERE id = ?1";
        self.0.read(move |conn| one(conn, sql, [id.to_string()], definition)).await
    }
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<FunctionRow> {
    Ok(FunctionRow {
        id: id(row, 0)?,
        app_id: id(row, 1)?,
        tag: row.get(2)?,
        definition_id: opt_id(row, 3)?,
        generation: row.get::<_, i64>(4)? as u64,
        created_at: ms(row, 5)?,
        deleted_at: opt_ms(row, 6)?,
        base_id: opt_id(row, 7)?,
        variant: row.get(8)?,
        body: row.get(9)?,
        metadata: row.get(10)?,
    })
}

fn definition(row: &Row<'_>) -> rusqlite::Result<DefinitionRow> {
    Ok(DefinitionRow {
        id: id(row, 0)?,
        function_id: id(row, 1)?,
        created_at: ms(row, 2)?,
        body: row.get(3)?,
        metadata: row.get(4)?,
    })
}
