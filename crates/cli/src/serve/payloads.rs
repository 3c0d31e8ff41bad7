//! The payload store as the gateway writes to it and reads from it.

use evoke_core::{BlobId, Error};
use evoke_files::{BlobStore, PartWriter};
use evoke_gateway::BlobWriter;
use std::fs::File;

/// The payload store.
pub(super) struct Payloads(pub BlobStore);

struct Part(PartWriter);

impl evoke_gateway::BlobStore for Payloads {
    fn write_part(&self, blob: BlobId, number: u32) -> Result<Box<dyn BlobWriter>, Error> {
        Ok(Box::new(Part(self.0.write_part(blob, number)?)))
    }
    fn complete(&self, blob: BlobId) -> Result<String, Error> {
        Ok(self.0.complete(blob)?.etag)
    }
    fn open(&self, blob: BlobId) -> Result<(File, u64), Error> {
        Ok(self.0.open_blob(blob)?)
    }
}

impl BlobWriter for Part {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        Ok(self.0.write(bytes)?)
    }
    fn finish(self: Box<Self>) -> Result<String, Error> {
        Ok(self.0.finish()?.to_hex())
    }
}
