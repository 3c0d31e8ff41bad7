//! The stores of payloads and of volumes' files as the gateway writes to them and reads from them.

use evoke_core::{BlobId, Error};
use evoke_files::{BlobStore, ContentHash, ParseHashError, PartWriter, VolumeContent, VolumeContents};
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

/// The store of volumes' files.
pub(super) struct VolumeFiles(pub VolumeContents);

impl evoke_gateway::VolumeStore for VolumeFiles {
    fn put_block(&self, hash: &str, bytes: &[u8]) -> Result<(), Error> {
        let hash: ContentHash = hash.parse().map_err(|e: ParseHashError| Error::invalid(e.to_string()))?;
        Ok(self.0.put_block(hash, bytes)?)
    }
    fn open(&self, content: &str) -> Result<(File, u64), Error> {
        let content: VolumeContent =
            content.parse().map_err(|_| Error::not_found("There is no such content"))?;
        Ok(self.0.open_content(content)?)
    }
}
