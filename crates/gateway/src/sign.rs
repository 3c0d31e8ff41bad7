//! Addresses that carry their own permission: signed with a key of the server, for one method and path, until
//! a time.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use evoke_core::{AppId, BlobId, Clock, Error, ErrorCode, ImageId};
use hmac::{Hmac, Mac};
use http::Method;
use sha2::Sha256;
use std::sync::Arc;

/// How long an address of a blob works, in seconds: the longest upload or download fits.
const BLOB_SECONDS: u64 = 24 * 3600;
/// How long the address of a page works, in seconds.
const PAGE_SECONDS: u64 = 30 * 24 * 3600;

/// Makes addresses and checks them. Cheap to clone.
#[derive(Clone)]
pub struct UrlSigner {
    mac: Hmac<Sha256>,
    clock: Arc<dyn Clock>,
}

impl UrlSigner {
    /// A signer with this key. Addresses stay good over restarts if the key does.
    pub fn new(key: &[u8; 32], clock: Arc<dyn Clock>) -> Self {
        // A key of any length is fine for HMAC; the one that is never reached only has another signature.
        let mac = Hmac::new_from_slice(key).unwrap_or_else(|_| Hmac::new(&Default::default()));
        Self { mac, clock }
    }

    /// Where the whole of a blob is put.
    pub fn blob_put(&self, origin: &str, blob: BlobId) -> String {
        self.signed(origin, &Method::PUT, &format!("/blobs/{blob}"), BLOB_SECONDS)
    }

    /// Where part `number` (from 1 on) of a blob is put.
    pub fn blob_part(&self, origin: &str, blob: BlobId, number: u32) -> String {
        self.signed(origin, &Method::PUT, &format!("/blobs/{blob}/part/{number}"), BLOB_SECONDS)
    }

    /// Where the end of an upload in parts is told.
    pub fn blob_complete(&self, origin: &str, blob: BlobId) -> String {
        self.signed(origin, &Method::POST, &format!("/blobs/{blob}/complete"), BLOB_SECONDS)
    }

    /// Where a blob is read.
    pub fn blob_get(&self, origin: &str, blob: BlobId) -> String {
        self.signed(origin, &Method::GET, &format!("/blobs/{blob}"), BLOB_SECONDS)
    }

    /// Where a block of a volume's file is put, by its SHA-256 in hex.
    pub fn volume_block(&self, origin: &str, hash: &str) -> String {
        self.signed(origin, &Method::PUT, &format!("/volumes/blocks/{hash}"), BLOB_SECONDS)
    }

    /// Where `length` bytes from `start` on of a volume's content are read.
    pub fn volume_content(&self, origin: &str, content: &str, start: u64, length: u64) -> String {
        let path = format!("/volumes/contents/{content}/{start}/{length}");
        self.signed(origin, &Method::GET, &path, BLOB_SECONDS)
    }

    /// The page of an app. Whoever has the address sees this app and no other.
    pub fn app(&self, origin: &str, app: AppId) -> String {
        self.signed(origin, &Method::GET, &format!("/apps/{app}"), PAGE_SECONDS)
    }

    /// The page of an image. Whoever has the address sees this image and no other.
    pub fn image(&self, origin: &str, image: ImageId) -> String {
        self.signed(origin, &Method::GET, &format!("/images/{image}"), PAGE_SECONDS)
    }

    /// The page of all apps.
    pub fn home(&self, origin: &str) -> String {
        self.signed(origin, &Method::GET, "/", PAGE_SECONDS)
    }

    fn signed(&self, origin: &str, method: &Method, path: &str, seconds: u64) -> String {
        let until = self.now() + seconds;
        let signature = URL_SAFE_NO_PAD.encode(self.mac(method, path, until).finalize().into_bytes());
        format!("{origin}{path}?until={until}&signature={signature}")
    }

    /// Whether a request for `path` with this query may be served. HEAD is allowed where GET is.
    pub(crate) fn check(&self, method: &Method, path: &str, query: Option<&str>) -> Result<(), Error> {
        let denied = |message: &str| {
            Error::new(ErrorCode::PermissionDenied, message).with_hint("Ask the server for a new address.")
        };
        let value = |name: &str| {
            let pairs = query.unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
            pairs.into_iter().find(|(key, _)| *key == name).map(|(_, value)| value)
        };
        let (Some(until), Some(signature)) = (value("until"), value("signature")) else {
            return Err(denied("This address is not signed."));
        };
        let until: u64 = until.parse().map_err(|_| denied("This address is not signed."))?;
        let method = if method == Method::HEAD { &Method::GET } else { method };
        let given = URL_SAFE_NO_PAD.decode(signature).unwrap_or_default();
        if self.mac(method, path, until).verify_slice(&given).is_err() {
            return Err(denied("The signature of this address is not valid."));
        }
        if until < self.now() {
            return Err(denied("This address is no longer valid."));
        }
        Ok(())
    }

    fn mac(&self, method: &Method, path: &str, until: u64) -> Hmac<Sha256> {
        self.mac.clone().chain_update(format!("{method}\n{path}\n{until}"))
    }

    fn now(&self) -> u64 {
        self.clock.now().0 / 1000
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evoke_core::UnixMs;
    use std::sync::atomic::{AtomicU64, Ordering};

    struct Fixed(AtomicU64);
    impl Clock for Fixed {
        fn now(&self) -> UnixMs {
            UnixMs(self.0.load(Ordering::SeqCst))
        }
    }

    fn check(signer: &UrlSigner, method: Method, url: &str) -> Result<(), Error> {
        let uri: http::Uri = url.parse().unwrap();
        signer.check(&method, uri.path(), uri.query())
    }

    #[test]
    fn an_address_works_for_its_method_and_path_until_its_time() {
        let clock = Arc::new(Fixed(AtomicU64::new(1_000_000)));
        let signer = UrlSigner::new(&[7; 32], clock.clone());
        let blob = BlobId::from_bits(1);
        let put = signer.blob_put("http://h:1", blob);
        let get = signer.blob_get("http://h:1", blob);
        check(&signer, Method::PUT, &put).unwrap();
        check(&signer, Method::GET, &get).unwrap();
        check(&signer, Method::HEAD, &get).unwrap();
        check(&signer, Method::GET, &put).unwrap_err();
        check(&signer, Method::PUT, &get).unwrap_err();
        check(&signer, Method::GET, &get.replace("/blobs/bl-0", "/blobs/bl-1")).unwrap_err();
        check(&signer, Method::GET, &get.replace("until=", "until=1")).unwrap_err();
        check(&signer, Method::GET, get.split('?').next().unwrap()).unwrap_err();
        check(&UrlSigner::new(&[8; 32], clock.clone()), Method::GET, &get).unwrap_err();
        clock.0.fetch_add((BLOB_SECONDS + 1) * 1000, Ordering::SeqCst);
        let late = check(&signer, Method::GET, &get).unwrap_err();
        assert!(late.message.contains("no longer valid"));
    }
}
