//! Retention: what has been kept for its time is deleted, a bounded piece at a time, off every path.

use crate::{Control, blocking, stored};
use evoke_core::Error;
use evoke_proto::Status;
use evoke_store::logs::Retention;
use evoke_store::{Grade, IDEMPOTENCY_RETENTION_MS, IdempotencyWrite, RetentionWrite, SecretWrite};
use std::sync::Arc;
use std::time::Duration;

/// Time between two rounds: rare enough to leave an idle server idle.
const ROUND: Duration = Duration::from_secs(600);
/// Results, inputs and logs are kept for seven days after they were made (milliseconds).
const KEPT_MS: u64 = 7 * 24 * 3600 * 1000;
/// Bytes that the database may have before the oldest ended calls go early.
const DATABASE_BYTES_MAX: u64 = 64 << 30;
/// Bytes of log that one app may have before its oldest go early.
const LOG_BYTES_MAX: u64 = 16 << 30;
/// An upload that nobody went on with for a day is given up (milliseconds).
const UPLOAD_KEPT_MS: u64 = 24 * 3600 * 1000;
/// A secret without a name and an app is kept for this long (milliseconds) after a container last got it.
const SECRET_KEPT_MS: u64 = 30 * 24 * 3600 * 1000;

impl Control {
    /// Deletes what is over its time, round after round. Ends with the server.
    pub(crate) async fn run_retention(self: Arc<Self>) {
        let mut rounds = tokio::time::interval(ROUND);
        rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            rounds.tick().await;
            if let Err(status) = self.retention_round().await {
                tracing::warn!(%status, "old data could not be deleted; the next round tries again");
            }
        }
    }

    async fn retention_round(&self) -> Result<(), Status> {
        let now = self.now();
        let before = |age_ms: u64| evoke_core::UnixMs(now.0.saturating_sub(age_ms));
        let writes = vec![
            IdempotencyWrite::Expire { before: before(IDEMPOTENCY_RETENTION_MS) }.into(),
            RetentionWrite::CallsBefore { before: before(KEPT_MS) }.into(),
            SecretWrite::DeleteUnused { before: before(SECRET_KEPT_MS) }.into(),
            RetentionWrite::CallsOverBytes { max_bytes: DATABASE_BYTES_MAX, now }.into(),
        ];
        self.submit(writes, Grade::Written).await?;
        self.retain_volumes().await?;
        self.retain_shared_volumes().await?;
        let logs = Retention { age_ms_max: KEPT_MS, stream_bytes_max: LOG_BYTES_MAX };
        self.logs.expire(now, logs).await.map_err(stored)?;
        let blobs = self.blobs.clone();
        blocking(move || blobs.sweep_uploads(now, UPLOAD_KEPT_MS).map_err(Error::from)).await?;
        Ok(())
    }
}
