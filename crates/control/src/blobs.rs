//! Blobs: addresses to upload to and to read from. The bytes go through the gateway.

use crate::{Control, blocking, parse_id};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use evoke_core::{BlobId, Error};
use evoke_files::{BlobSpec, BodyMd5};
use evoke_proto::{CallContext, Status, api};
use std::net::Ipv4Addr;
use std::sync::Arc;

/// Bodies up to this length (bytes) are put in one request.
const SINGLE_PUT_BYTES_MAX: u64 = 64 << 20;
/// Length of the parts of longer bodies (bytes).
const PART_BYTES: u64 = 64 << 20;
/// Over this length (bytes) clients send a placeholder instead of a digest.
const DIGEST_BYTES_MAX: u64 = 1 << 30;
/// The longest blob (bytes).
const BLOB_BYTES_MAX: u64 = 1 << 40;

impl Control {
    pub(crate) async fn blob_create(
        self: Arc<Self>,
        context: CallContext,
        request: api::BlobCreateRequest,
    ) -> Result<api::BlobCreateResponse, Status> {
        let length = u64::try_from(request.content_length)
            .ok()
            .filter(|length| *length <= BLOB_BYTES_MAX)
            .ok_or_else(|| {
                Status::invalid(format!("{} is not a length for a blob", request.content_length))
            })?;
        let id = BlobId::new(self.now(), &mut *self.entropy());
        let single = length <= SINGLE_PUT_BYTES_MAX && single_put_allowed(&context.origin);
        let spec = BlobSpec {
            length,
            md5: (length <= DIGEST_BYTES_MAX).then(|| md5_of(&request.content_md5)).flatten(),
            sha256: (length <= DIGEST_BYTES_MAX).then(|| sha256_of(&request.content_sha256_base64)).flatten(),
            part_length: (!single).then_some(PART_BYTES),
        };
        let parts = spec.parts() as u32;
        let blobs = self.blobs.clone();
        blocking(move || blobs.create(id, spec).map_err(Error::from)).await?;
        let origin = &context.origin;
        let mut reply = api::BlobCreateResponse {
            blob_id: id.to_string(),
            blob_ids: vec![id.to_string()],
            ..Default::default()
        };
        // The plural fields are what today's clients read, the singular ones what older ones do.
        if single {
            let url = self.urls.blob_put(origin, id);
            reply.upload_type_oneof =
                Some(api::blob_create_response::UploadTypeOneof::UploadUrl(url.clone()));
            reply.upload_types_oneof =
                Some(api::blob_create_response::UploadTypesOneof::UploadUrls(api::UploadUrlList {
                    items: vec![url],
                }));
        } else {
            let upload = api::MultiPartUpload {
                part_length: PART_BYTES as i64,
                upload_urls: (1..=parts).map(|number| self.urls.blob_part(origin, id, number)).collect(),
                completion_url: self.urls.blob_complete(origin, id),
            };
            reply.upload_type_oneof =
                Some(api::blob_create_response::UploadTypeOneof::Multipart(upload.clone()));
            reply.upload_types_oneof =
                Some(api::blob_create_response::UploadTypesOneof::Multiparts(api::MultiPartUploadList {
                    items: vec![upload],
                }));
        }
        Ok(reply)
    }

    pub(crate) async fn blob_get(
        self: Arc<Self>,
        context: CallContext,
        request: api::BlobGetRequest,
    ) -> Result<api::BlobGetResponse, Status> {
        let id: BlobId = parse_id(&request.blob_id)?;
        let blobs = self.blobs.clone();
        blocking(move || blobs.size(id).map_err(Error::from)).await?;
        Ok(api::BlobGetResponse { download_url: self.urls.blob_get(&context.origin, id) })
    }
}

/// The client refuses to put a body with a digest to hosts other than these; parts it puts anywhere.
fn single_put_allowed(origin: &str) -> bool {
    let host = origin.split("://").nth(1).unwrap_or(origin).split(':').next().unwrap_or_default();
    host == "localhost" || host.parse::<Ipv4Addr>().is_ok_and(|ip| ip.is_loopback() || ip.is_private())
}

fn md5_of(text: &str) -> Option<BodyMd5> {
    Some(BodyMd5(STANDARD.decode(text).ok()?.try_into().ok()?))
}

fn sha256_of(text: &str) -> Option<evoke_files::ContentHash> {
    let bytes: [u8; 32] = STANDARD.decode(text).ok()?.try_into().ok()?;
    Some(evoke_files::ContentHash::from_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_bodies_only_go_where_the_client_puts_them() {
        for (origin, allowed) in [
            ("http://127.0.0.1:7350", true),
            ("http://localhost:80", true),
            ("http://10.1.2.3:1", true),
            ("http://evoke.example.com", false),
            ("http://100.64.0.1:1", false),
            ("https://8.8.8.8", false),
        ] {
            assert_eq!(single_put_allowed(origin), allowed, "{origin}");
        }
    }
}
