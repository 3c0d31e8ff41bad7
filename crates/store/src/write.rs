//! Writes as data: what a decision wants stored, one variant per aggregate. They are made by pure code,
//! carried by [`crate::Store::submit`], and applied by the writer thread in the order of submission.

use crate::apps::AppWrite;
use crate::blobs::BlobWrite;
use crate::calls::CallWrite;
use crate::classes::ClassWrite;
use crate::dicts::DictWrite;
use crate::environments::EnvironmentWrite;
use crate::functions::FunctionWrite;
use crate::idempotency::IdempotencyWrite;
use crate::image_names::ImageNameWrite;
use crate::images::ImageWrite;
use crate::mounts::MountWrite;
use crate::objects::ObjectWrite;
use crate::queues::QueueWrite;
use crate::retention::RetentionWrite;
use crate::scaling::ScalingWrite;
use crate::schedules::ScheduleWrite;
use crate::secrets::SecretWrite;
use crate::settings::SettingWrite;
use crate::shared_volumes::SharedVolumeWrite;
use crate::tokens::TokenWrite;
use crate::volumes::VolumeWrite;
use crate::web::WebWrite;
use rusqlite::Connection;

/// What an acknowledgement promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grade {
    /// Survives SIGKILL of every process of ours: it is in the write-ahead log's file. It is synced to the
    /// disk within [`crate::SYNC_DELAY_MS`] and the time that the sync takes, off the path.
    Written,
    /// On stable storage: survives a loss of power.
    Synced,
}

/// Bytes of a payload that is still small.
const SMALL_BYTES: usize = 64 * 1024;

impl Write {
    /// Whether applying it takes microseconds: one row or two of bounded size.
    pub(crate) fn is_small(&self) -> bool {
        match self {
            Write::Call(write) => write.payload_bytes() <= SMALL_BYTES,
            Write::Idempotency(write) => {
                matches!(&**write, IdempotencyWrite::Keep(row) if row.reply.len() <= SMALL_BYTES)
            }
            Write::Setting(write) => {
                matches!(&**write, SettingWrite::Put { value, .. } if value.len() <= SMALL_BYTES)
            }
            Write::Dict(write) => write.is_of_one_entry(SMALL_BYTES),
            Write::Queue(write) => write.is_small(SMALL_BYTES),
            _ => false,
        }
    }
}

macro_rules! writes {
    ($($(#[$doc:meta])* $variant:ident($write:ty),)*) => {
        /// One change of one aggregate.
        #[derive(Debug, Clone)]
        pub enum Write {
            $($(#[$doc])* $variant(Box<$write>),)*
        }

        impl Write {
            /// Makes the change on `conn`, inside the caller's transaction.
            pub(crate) fn apply(&self, conn: &Connection) -> rusqlite::Result<()> {
                match self {
                    $(Write::$variant(write) => write.apply(conn),)*
                }
            }
        }

        $(impl From<$write> for Write {
            fn from(write: $write) -> Self {
                Write::$variant(Box::new(write))
            }
        })*
    };
}

writes! {
    /// Calls, inputs, attempts, outputs, chunks and tasks.
    Call(CallWrite),
    /// Environments.
    Environment(EnvironmentWrite),
    /// Apps and their deployments.
    App(AppWrite),
    /// Functions and their definitions.
    Function(FunctionWrite),
    /// Functions that run by themselves, and for which due time they last did.
    Schedule(ScheduleWrite),
    /// Class handles.
    Class(ClassWrite),
    /// Sets of mounted files.
    Mount(MountWrite),
    /// Images.
    Image(ImageWrite),
    /// Names of images.
    ImageName(ImageNameWrite),
    /// Autoscaler settings that were changed live.
    Scaling(ScalingWrite),
    /// Secrets, sealed.
    Secret(SecretWrite),
    /// Dictionaries and queues as a whole.
    Object(ObjectWrite),
    /// Entries of dictionaries.
    Dict(DictWrite),
    /// Items of queues.
    Queue(QueueWrite),
    /// Large payloads: their metadata, not their bytes.
    Blob(BlobWrite),
    /// Replies kept for repeated requests.
    Idempotency(IdempotencyWrite),
    /// Deletion of old calls.
    Retention(RetentionWrite),
    /// Tokens of clients.
    Token(TokenWrite),
    /// Single values of the server itself.
    Setting(SettingWrite),
    /// Volumes and their files.
    Volume(VolumeWrite),
    /// Network file systems.
    SharedVolume(SharedVolumeWrite),
    /// Ports and tokens of web functions.
    Web(WebWrite),
}
