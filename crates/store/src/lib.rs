//! Durable state. Everything that must survive a crash is here: rows in SQLite, logs in append-only
//! segments, secrets sealed.
//!
//! Invariants:
//! - Writes are data ([`Write`]); one [`Store::submit`] is atomic, and the order of submission is the order
//!   of commit. An acknowledgement promises what its [`Grade`] says.
//! - One thread writes at a time. Readers see only what is committed; they never wait for it, nor it for them.
//! - A failed write leaves nothing half applied, and the store goes on once its cause is gone.
//! - Rows keep protocol messages as the bytes received, so that fields of newer clients survive.
//!
//! Entry points: [`Store`] (asynchronous, threaded), [`Db`] (the same, synchronous, for simulation),
//! [`calls`] (what the call engine stores), [`logs`], [`vault`].

mod answer;
mod apps;
mod blobs;
pub mod calls;
mod checkpoint;
mod classes;
mod db;
mod dicts;
mod environments;
mod error;
mod functions;
mod idempotency;
mod image_names;
mod images;
pub mod logs;
mod mounts;
mod objects;
mod queues;
mod readers;
mod retention;
mod scaling;
mod schedules;
mod schema;
mod secrets;
mod settings;
mod shared_volumes;
mod sql;
mod store;
mod sync;
mod tokens;
pub mod vault;
mod volumes;
mod web;
mod write;
mod writer;

pub use answer::{Answer, Keep};
pub use apps::{AppRow, AppWrite, Apps, DEPLOYMENT_STAGED, DeploymentRow};
pub use blobs::{BlobRow, BlobState, BlobWrite, Blobs};
pub use classes::{ClassRow, ClassWrite, Classes};
pub use db::Db;
pub use dicts::{
    DICT_LEN_MAX, DictCursor, DictEntry, DictWrite, Dicts, ENTRY_IDLE_MS_MAX, ENTRY_TOUCH_MS, Found, Value,
};
pub use environments::{EnvironmentRow, EnvironmentWrite, Environments};
pub use error::StoreError;
pub use functions::{DefinitionRow, FunctionRow, FunctionWrite, Functions};
pub use idempotency::{IDEMPOTENCY_RETENTION_MS, IdempotencyRow, IdempotencyWrite};
pub use image_names::{ImageNameRow, ImageNameWrite, ImageNames, REVISIONS_MAX};
pub use images::{ImageRow, ImageState, ImageWrite, Images};
pub use mounts::{MountRow, MountWrite, Mounts};
pub use objects::{DataKind, ObjectRow, ObjectWrite, Objects};
pub use queues::{
    NumberedItems, PARTITION_BYTES_MAX, PARTITION_ITEMS_MAX, PARTITIONS_MAX, Put, QueueSize, QueueWrite,
    Queues,
};
pub use retention::RetentionWrite;
pub use scaling::{Scaling, ScalingWrite};
pub use schedules::{ScheduleRow, ScheduleWrite, Schedules};
pub use secrets::{SecretRow, SecretWrite, Secrets};
pub use settings::{SettingWrite, Settings};
pub use shared_volumes::{SharedVolumeRow, SharedVolumeWrite, SharedVolumes};
pub use store::{Lead, Store, Ticket};
pub use sync::SYNC_DELAY_MS;
pub use tokens::{TokenRow, TokenWrite, Tokens};
pub use volumes::{
    TREE_LEVELS_MAX, VolumeFile, VolumeFileKind, VolumeRow, VolumeSnapshot, VolumeTree, VolumeVersionRow,
    VolumeWrite, Volumes,
};
pub use web::{Web, WebPortRow, WebTokenRow, WebWrite};
pub use write::{Grade, Write};
pub use writer::{GROUP_BATCHES_MAX, QUEUE_BATCHES_MAX};
