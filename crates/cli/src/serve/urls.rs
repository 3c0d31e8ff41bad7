//! Addresses for control, signed by the gateway that will serve them.

use evoke_control::ports::Urls;
use evoke_core::{AppId, BlobId};
use evoke_files::{ContentHash, VolumeContent};
use evoke_gateway::UrlSigner;

/// The gateway's signed addresses.
pub(super) struct Signed(pub UrlSigner);

impl Urls for Signed {
    fn home(&self, origin: &str) -> String {
        self.0.home(origin)
    }
    fn app(&self, origin: &str, app: AppId) -> String {
        self.0.app(origin, app)
    }
    fn blob_put(&self, origin: &str, blob: BlobId) -> String {
        self.0.blob_put(origin, blob)
    }
    fn blob_part(&self, origin: &str, blob: BlobId, number: u32) -> String {
        self.0.blob_part(origin, blob, number)
    }
    fn blob_complete(&self, origin: &str, blob: BlobId) -> String {
        self.0.blob_complete(origin, blob)
    }
    fn blob_get(&self, origin: &str, blob: BlobId) -> String {
        self.0.blob_get(origin, blob)
    }
    fn volume_block(&self, origin: &str, block: ContentHash) -> String {
        self.0.volume_block(origin, &block.to_hex())
    }
    fn volume_content(&self, origin: &str, content: VolumeContent, start: u64, length: u64) -> String {
        self.0.volume_content(origin, &content.to_string(), start, length)
    }
    fn web(&self, origin: &str, _label: &str, port: u16) -> String {
        // The host by which the caller reached this server, whatever its port there.
        let authority = origin.split_once("://").map_or(origin, |(_, rest)| rest);
        let host = match authority.rsplit_once(':') {
            Some((host, number)) if number.bytes().all(|byte| byte.is_ascii_digit()) => host,
            _ => authority,
        };
        format!("http://{host}:{port}")
    }
}
