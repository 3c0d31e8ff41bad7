//! Takes length-prefixed messages out of a request body.

use bytes::{Buf, Bytes, BytesMut};
use futures::Stream;
use futures::stream::try_unfold;
use http_body::Body;
use http_body_util::BodyExt;
use std::fmt;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;

use crate::invoke::{Budget, MESSAGE_BYTES_MAX, message_too_large};
use crate::{Code, Status};

/// Bytes in front of each message: one of flags, four of length.
const PREFIX_LEN: usize = 5;
/// How long the rest of a begun message may take to go on, in milliseconds.
const STALL_MS_MAX: u64 = 60_000;

/// The messages of one request.
pub struct MessageReader<B> {
    body: B,
    /// What arrived and is not yet taken.
    chunk: Bytes,
    budget: Budget,
    /// The share of the budget of the message handed out last.
    held: Option<OwnedSemaphorePermit>,
}

impl<B> MessageReader<B>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: fmt::Display,
{
    pub fn new(body: B, budget: Budget) -> Self {
        Self { body, chunk: Bytes::new(), budget, held: None }
    }

    /// The next message, or none at the end of the request. The share of the budget of the last message is
    /// kept until another one begins.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        while self.chunk.is_empty() {
            match self.frame().await? {
                Some(data) => self.chunk = data,
                None => return Ok(None),
            }
        }
        self.held = None;
        let prefix = self.take(PREFIX_LEN).await?;
        let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
        if prefix[0] != 0 {
            return Err(Status::new(Code::Unimplemented, "Compressed messages are not supported"));
        }
        if length > MESSAGE_BYTES_MAX {
            return Err(message_too_large(length));
        }
        self.held = self.budget.take(length).await;
        self.take(length).await.map(Some)
    }

    /// All messages, one after the other.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes, Status>> + Send {
        try_unfold(self, async |mut reader| Ok(reader.next().await?.map(|message| (message, reader))))
    }

    /// Exactly `length` bytes; without a copy where they arrived in one piece.
    async fn take(&mut self, length: usize) -> Result<Bytes, Status> {
        if self.chunk.len() >= length {
            return Ok(self.chunk.split_to(length));
        }
        let mut gathered = BytesMut::with_capacity(length);
        loop {
            let wanted = length - gathered.len();
            let part = self.chunk.split_to(wanted.min(self.chunk.len()));
            gathered.extend_from_slice(&part);
            if gathered.len() == length {
                return Ok(gathered.freeze());
            }
            let stall = Duration::from_millis(STALL_MS_MAX);
            self.chunk = match tokio::time::timeout(stall, self.frame()).await {
                Ok(data) => data?.ok_or_else(|| Status::invalid("The request ends within a message"))?,
                Err(_elapsed) => {
                    return Err(Status::new(
                        Code::DeadlineExceeded,
                        format!("The rest of the request did not arrive within {} s", STALL_MS_MAX / 1000),
                    ));
                }
            };
        }
    }

    /// The next piece of the body that has data.
    async fn frame(&mut self) -> Result<Option<Bytes>, Status> {
        while let Some(frame) = self.body.frame().await {
            let frame =
                frame.map_err(|e| Status::new(Code::Cancelled, format!("The request broke off: {e}")))?;
            if let Ok(data) = frame.into_data() {
                if data.has_remaining() {
                    return Ok(Some(data));
                }
            }
        }
        Ok(None)
    }
}
