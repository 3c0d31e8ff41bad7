//! What web functions have for good: the port of each label, and the tokens that open those which are not for
//! everybody.

use crate::sql::{exec, id, int, many, ms};
use crate::{Store, StoreError};
use evoke_core::{EnvironmentId, UnixMs};
use rusqlite::{Connection, params};
use sha2::{Digest, Sha256};

pub(crate) const SCHEMA: &str = "
CREATE TABLE web_ports (label TEXT PRIMARY KEY, port INTEGER NOT NULL UNIQUE, used_at INTEGER NOT NULL)
  WITHOUT ROWID;
CREATE TABLE web_tokens (
  id TEXT PRIMARY KEY, secret_hash BLOB NOT NULL, name TEXT NOT NULL, created_at INTEGER NOT NULL,
  scoped INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE web_token_environments (
  token TEXT NOT NULL, environment TEXT NOT NULL, PRIMARY KEY (token, environment)
) WITHOUT ROWID;
";

/// The port of a label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebPortRow {
    /// The name of the web function in its address.
    pub label: String,
    /// Where it is served.
    pub port: u16,
    /// When something of that name was last published.
    pub used_at: UnixMs,
}

/// A proxy token. Of its secret part only a hash is stored, see [`crate::TokenRow`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebTokenRow {
    /// Its public part, `wk-…`.
    pub id: String,
    /// SHA-256 of its secret part, `ws-…`.
    pub secret_hash: Vec<u8>,
    /// What its owner calls it.
    pub name: String,
    /// When it was made.
    pub created_at: UnixMs,
    /// Whether it opens the environments that it was allowed for, instead of all.
    pub scoped: bool,
    /// The environments that it was allowed for.
    pub environments: Vec<EnvironmentId>,
}

impl WebTokenRow {
    /// A new token with this secret part.
    pub fn new(id: String, secret: &str, name: String, scoped: bool, now: UnixMs) -> Self {
        let secret_hash = Sha256::digest(secret.as_bytes()).to_vec();
        Self { id, secret_hash, name, created_at: now, scoped, environments: Vec::new() }
    }

    /// Whether `secret` is this token's and it opens `environment`. What is compared are digests, so that the
    /// time it takes says nothing about the secret.
    pub fn opens(&self, secret: &str, environment: EnvironmentId) -> bool {
        self.secret_hash == Sha256::digest(secret.as_bytes()).as_slice()
            && (!self.scoped || self.environments.contains(&environment))
    }
}

/// A change of what web functions have.
#[derive(Debug, Clone)]
pub enum WebWrite {
    /// A label has this port from now on.
    Port(WebPortRow),
    /// Makes a token.
    Token(WebTokenRow),
    /// Gives a token another name.
    RenameToken {
        /// Which.
        id: String,
        /// The name.
        name: String,
    },
    /// Deletes a token.
    DeleteToken {
        /// Which.
        id: String,
    },
    /// Allows a token for an environment.
    Allow {
        /// Which.
        token: String,
        /// For which.
        environment: EnvironmentId,
    },
    /// Takes that back.
    Forbid {
        /// Which.
        token: String,
        /// For which.
        environment: EnvironmentId,
    },
}

impl WebWrite {
    pub(crate) fn apply(&self, conn: &Connection) -> rusqlite::Result<()> {
        match self {
            Self::Port(row) => {
                // Two labels never have one port: whoever had it before gets another when it is needed.
                exec(
                    conn,
                    "DELETE FROM web_ports WHERE port = ?1 AND label <> ?2",
                    params![row.port, row.label],
                )?;
                exec(
                    conn,
                    "INSERT INTO web_ports (label, port, used_at) VALUES (?1, ?2, ?3)
                     ON CONFLICT (label) DO UPDATE SET port = excluded.port, used_at = excluded.used_at",
                    params![row.label, row.port, int(row.used_at)],
                )?
            }
            Self::Token(row) => exec(
                conn,
                "INSERT INTO web_tokens (id, secret_hash, name, created_at, scoped) VALUES (?1, ?2, ?3, ?4, ?5)",
                params![row.id, row.secret_hash, row.name, int(row.created_at), row.scoped],
            )?,
            Self::RenameToken { id, name } => {
                exec(conn, "UPDATE web_tokens SET name = ?2 WHERE id = ?1", params![id, name])?
            }
            Self::DeleteToken { id } => {
                exec(conn, "DELETE FROM web_token_environments WHERE token = ?1", [id])?;
                exec(conn, "DELETE FROM web_tokens WHERE id = ?1", [id])?
            }
            Self::Allow { token, environment } => exec(
                conn,
                "INSERT INTO web_token_environments (token, environment) VALUES (?1, ?2)
                 ON CONFLICT DO NOTHING",
                params![token, environment.to_string()],
            )?,
            Self::Forbid { token, environment } => exec(
                conn,
                "DELETE FROM web_token_environments WHERE token = ?1 AND environment = ?2",
                params![token, environment.to_string()],
            )?,
        };
        Ok(())
    }
}

/// Reads what web functions have.
#[derive(Debug, Clone, Copy)]
pub struct Web<'a>(pub(crate) &'a Store);

impl Web<'_> {
    /// The ports of all labels, the one used last first.
    pub async fn ports(&self) -> Result<Vec<WebPortRow>, StoreError> {
        let sql = "SELECT label, port, used_at FROM web_ports ORDER BY used_at DESC, label";
        let row = |row: &rusqlite::Row<'_>| {
            Ok(WebPortRow { label: row.get(0)?, port: row.get(1)?, used_at: ms(row, 2)? })
        };
        self.0.read(move |conn| many(conn, sql, [], row)).await
    }

    /// All tokens; few enough to be kept in memory, so that no request waits for this.
    pub async fn tokens(&self) -> Result<Vec<WebTokenRow>, StoreError> {
        self.0
            .read(move |conn| {
                let sql = "SELECT id, secret_hash, name, created_at, scoped FROM web_tokens ORDER BY created_at, id";
                let mut tokens = many(conn, sql, [], |row| {
                    Ok(WebTokenRow {
                        id: row.get(0)?,
                        secret_hash: row.get(1)?,
                        name: row.get(2)?,
                        created_at: ms(row, 3)?,
                        scoped: row.get(4)?,
                        environments: Vec::new(),
                    })
                })?;
                let sql = "SELECT environment FROM web_token_environments WHERE token = ?1";
                for token in &mut tokens {
                    token.environments = many(conn, sql, [&token.id], |row| id(row, 0))?;
                }
                Ok(tokens)
            })
            .await
    }
}
