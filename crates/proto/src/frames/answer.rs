//! The answer of one call, as frames on their way to the connection's writer.

use bytes::Bytes;
use futures::StreamExt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::codec::{self, Kind};
use super::{PART_BYTES, STREAM_AHEAD};
use crate::invoke::{self, deadline_exceeded};
use crate::{BoxStream, CallContext, Reply, Status};

/// How far a stream may be ahead of its caller.
pub(super) struct Credit {
    bytes: Mutex<i64>,
    more: Notify,
}

impl Credit {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { bytes: Mutex::new(STREAM_AHEAD), more: Notify::new() })
    }

    /// The caller took so many bytes.
    pub(super) fn add(&self, bytes: u32) {
        let mut left = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        *left = left.saturating_add(i64::from(bytes)).min(STREAM_AHEAD);
        drop(left);
        self.more.notify_one();
    }

    /// Waits until a message may begin, and counts it.
    async fn spend(&self, bytes: usize) {
        loop {
            {
                let mut left = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
                if *left > 0 {
                    *left -= i64::try_from(bytes).unwrap_or(i64::MAX);
                    return;
                }
            }
            self.more.notified().await;
        }
    }
}

/// The connection has ended: nobody is left to be answered.
struct Gone;

/// Where the answer of one call goes.
pub(super) struct Answer {
    pub call: u32,
    pub out: mpsc::Sender<Bytes>,
    pub credit: Arc<Credit>,
}

impl Answer {
    /// Runs the call and sends what it answers.
    pub(super) async fn give(
        self,
        context: CallContext,
        deadline: Option<Instant>,
        call: impl Future<Output = Result<Reply, Status>>,
    ) {
        let sent = match invoke::run(context.rpc, deadline, call).await {
            Ok(Reply::Unary(message)) => self.one(message, &context.warnings()).await,
            Ok(Reply::Stream(messages)) => self.stream(messages, &context, deadline).await,
            Err(status) => self.end(Some(&status), &context.warnings()).await,
        };
        if sent.is_err() {
            tracing::debug!(rpc = context.rpc.name, "the caller went away before it was answered");
        }
    }

    async fn one(&self, message: Bytes, warnings: &[String]) -> Result<(), Gone> {
        if message.len() <= PART_BYTES && warnings.is_empty() {
            return self.send(codec::encode(Kind::Reply, self.call, &message)).await;
        }
        self.message(message).await?;
        self.end(None, warnings).await
    }

    async fn stream(
        &self,
        mut messages: BoxStream<Result<Bytes, Status>>,
        context: &CallContext,
        deadline: Option<Instant>,
    ) -> Result<(), Gone> {
        let all = async {
            while let Some(message) = messages.next().await {
                match message {
                    Ok(message) => {
                        self.credit.spend(message.len()).await;
                        self.message(message).await?;
                    }
                    Err(status) => return Ok(Some(status)),
                }
            }
            Ok(None)
        };
        let failure = match deadline {
            Some(at) => tokio::time::timeout_at(at, all).await.unwrap_or(Ok(Some(deadline_exceeded())))?,
            None => all.await?,
        };
        self.end(failure.as_ref(), &context.warnings()).await
    }

    /// One message: what fits into a frame with its announcement, then the rest.
    async fn message(&self, message: Bytes) -> Result<(), Gone> {
        let first = &message[..message.len().min(PART_BYTES)];
        self.send(codec::message(self.call, message.len(), first)).await?;
        for part in message[first.len()..].chunks(PART_BYTES) {
            self.send(codec::encode(Kind::Part, self.call, part)).await?;
        }
        Ok(())
    }

    async fn end(&self, failure: Option<&Status>, warnings: &[String]) -> Result<(), Gone> {
        self.send(codec::end(self.call, failure, warnings)).await
    }

    async fn send(&self, frame: Bytes) -> Result<(), Gone> {
        self.out.send(frame).await.map_err(|_| Gone)
    }
}
