//! Blobs over HTTP: uploads in one request or in parts, and downloads. No body is ever held whole: a piece is
//! taken from one side only when the other side took the last.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use evoke_core::{BlobId, Error, ErrorCode};
use futures::stream::try_unfold;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use std::fs::File;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use crate::routes::{HttpBody, text, whole};

/// Bytes moved between a connection and the store at a time.
const PIECE_BYTES: usize = 1 << 20;
/// How long an upload may pause, in milliseconds.
const PAUSE_MS_MAX: u64 = 60_000;
/// Longest list of parts read, in bytes; each of at most ten thousand parts takes under a hundred.
const PARTS_LIST_BYTES_MAX: usize = 4 << 20;

/// Where blobs are. The functions block on the disk and are called where that is allowed.
pub trait BlobStore: Send + Sync + 'static {
    /// Begins to write part `number` (from 1 on) of a blob that was announced; one that is sent in a single
    /// request is its part 1. NOT_FOUND if it was not announced or is finished.
    fn write_part(&self, blob: BlobId, number: u32) -> Result<Box<dyn BlobWriter>, Error>;

    /// Finishes a blob whose parts are all there; durable when it returns. Gives its ETag, without quotes.
    /// Finishing twice gives the same answer twice.
    fn complete(&self, blob: BlobId) -> Result<String, Error>;

    /// Opens a finished blob, with its length in bytes.
    fn open(&self, blob: BlobId) -> Result<(File, u64), Error>;
}

/// Takes one part. Dropped before it is finished, the part counts as not sent.
pub trait BlobWriter: Send + 'static {
    /// Adds bytes.
    fn write(&mut self, bytes: &[u8]) -> Result<(), Error>;
    /// Ends the part; gives the MD5 of its bytes in hex.
    fn finish(self: Box<Self>) -> Result<String, Error>;
}

/// What an address of a blob asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BlobRoute {
    Put(BlobId),
    Part(BlobId, u32),
    Complete(BlobId),
    Get(BlobId),
}

/// What a request asks for, if its path is a blob's.
pub(crate) fn route(method: &Method, path: &str) -> Option<BlobRoute> {
    let mut words = path.strip_prefix("/blobs/")?.split('/');
    let blob = words.next()?.parse().ok()?;
    let rest: Vec<&str> = words.collect();
    match (method, rest.as_slice()) {
        (&Method::PUT, []) => Some(BlobRoute::Put(blob)),
        (&Method::PUT, ["part", number]) => Some(BlobRoute::Part(blob, number.parse().ok()?)),
        (&Method::POST, ["complete"]) => Some(BlobRoute::Complete(blob)),
        (&Method::GET | &Method::HEAD, []) => Some(BlobRoute::Get(blob)),
        _ => None,
    }
}

/// Takes a whole blob (`part` is none), or one part of it.
pub(crate) async fn put(
    store: &Arc<dyn BlobStore>,
    blob: BlobId,
    part: Option<u32>,
    request: Request<Incoming>,
) -> Result<Response<HttpBody>, Error> {
    let content_md5 = request.headers().get("content-md5").map(content_md5).transpose()?;
    let mut body = request.into_body();
    let number = part.unwrap_or(1);
    let opened = {
        let store = store.clone();
        blocking(move || store.write_part(blob, number)).await
    };
    let mut writer = match opened {
        Ok(writer) => writer,
        // The answer to an upload got lost and the client sends it again.
        Err(error) if error.code == ErrorCode::NotFound => {
            let finished = finish(store, blob).await.map_err(|_| error)?;
            while next_piece(&mut body).await?.is_some() {}
            return Ok(with_etag(text(StatusCode::OK, ""), &finished));
        }
        Err(error) => return Err(error),
    };
    while let Some(piece) = next_piece(&mut body).await? {
        writer = blocking(move || {
            piece.iter().try_for_each(|bytes| writer.write(bytes))?;
            Ok(writer)
        })
        .await?;
    }
    let md5 = blocking(move || writer.finish()).await?;
    if content_md5.is_some_and(|expected| expected != md5) {
        // The client knows this sentence and tells its user that the file changed meanwhile.
        return Err(Error::invalid("The Content-MD5 you specified did not match what we received."));
    }
    let etag = match part {
        Some(_) => md5,
        None => finish(store, blob).await?,
    };
    Ok(with_etag(text(StatusCode::OK, ""), &etag))
}

/// Finishes an upload in parts. The list of parts that the client sends is not needed: which parts there are
/// was fixed when the blob was announced, and the ETag in the answer lets the client check the whole.
pub(crate) async fn complete(
    store: &Arc<dyn BlobStore>,
    blob: BlobId,
    request: Request<Incoming>,
) -> Result<Response<HttpBody>, Error> {
    let mut body = request.into_body();
    let mut seen = 0;
    while let Some(piece) = next_piece(&mut body).await? {
        seen += piece.iter().map(Bytes::len).sum::<usize>();
        if seen > PARTS_LIST_BYTES_MAX {
            return Err(Error::invalid("The list of parts is too long"));
        }
    }
    let etag = finish(store, blob).await?;
    let answer = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<CompleteMultipartUploadResult>\
         <Key>{blob}</Key><ETag>\"{etag}\"</ETag></CompleteMultipartUploadResult>\n"
    );
    Ok(with_etag(whole(StatusCode::OK, "application/xml", answer), &etag))
}

/// Sends a blob.
pub(crate) async fn get(
    store: &Arc<dyn BlobStore>,
    blob: BlobId,
    head_only: bool,
) -> Result<Response<HttpBody>, Error> {
    let opener = store.clone();
    let (file, length) = blocking(move || opener.open(blob)).await?;
    Ok(download(file, length, head_only))
}

/// The answer that is `length` bytes of a file, or only says so.
pub(crate) fn download(file: std::fs::File, length: u64, head_only: bool) -> Response<HttpBody> {
    let mut response = if head_only {
        whole(StatusCode::OK, "application/octet-stream", "")
    } else {
        Response::new(file_body(file, length))
    };
    download_headers(response.headers_mut());
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    response
}

/// Says that the bytes are a user's: no browser may take them for a page of ours.
fn download_headers(headers: &mut http::HeaderMap) {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
}

async fn finish(store: &Arc<dyn BlobStore>, blob: BlobId) -> Result<String, Error> {
    let store = store.clone();
    blocking(move || store.complete(blob)).await
}

/// The next piece of a body, as it arrived; none at its end.
pub(crate) async fn next_piece(body: &mut Incoming) -> Result<Option<Vec<Bytes>>, Error> {
    let broken = |e: &dyn std::fmt::Display| Error::invalid(format!("The upload broke off: {e}"));
    let mut piece = Vec::new();
    let mut length = 0;
    while length < PIECE_BYTES {
        let frame = tokio::time::timeout(Duration::from_millis(PAUSE_MS_MAX), body.frame())
            .await
            .map_err(|_elapsed| broken(&format!("nothing came for {} s", PAUSE_MS_MAX / 1000)))?;
        match frame {
            Some(frame) => {
                if let Ok(data) = frame.map_err(|e| broken(&e))?.into_data() {
                    length += data.len();
                    piece.push(data);
                }
            }
            None => break,
        }
    }
    Ok((length > 0).then_some(piece))
}

/// A body of `length` bytes of a file from where it stands on, read as they are taken.
fn file_body(file: File, length: u64) -> HttpBody {
    let stream = try_unfold((file, length), async |(mut file, left)| {
        if left == 0 {
            return Ok(None);
        }
        let wanted = left.min(PIECE_BYTES as u64);
        let (file, piece) = blocking(move || {
            let mut piece = Vec::with_capacity(wanted as usize);
            let read = (&mut file).take(wanted).read_to_end(&mut piece);
            match read {
                Ok(0) => Err(Error::new(ErrorCode::DataLoss, "A blob is shorter than its length")),
                Ok(_) => Ok((file, piece)),
                Err(e) => Err(Error::internal(format!("Reading a blob failed: {e}"))),
            }
        })
        .await?;
        let left = left - piece.len() as u64;
        Ok(Some((Frame::data(Bytes::from(piece)), (file, left))))
    });
    StreamBody::new(stream).boxed_unsync()
}

/// The MD5 that a Content-MD5 header means, in hex.
fn content_md5(value: &HeaderValue) -> Result<String, Error> {
    let bytes = STANDARD.decode(value.as_bytes()).ok().filter(|bytes| bytes.len() == 16);
    let bytes = bytes.ok_or_else(|| Error::invalid("The header Content-MD5 is not an MD5 in base64"))?;
    Ok(evoke_core::hex(&bytes))
}

fn with_etag(mut response: Response<HttpBody>, etag: &str) -> Response<HttpBody> {
    if let Ok(value) = HeaderValue::from_str(&format!("\"{etag}\"")) {
        response.headers_mut().insert(header::ETAG, value);
    }
    response
}

/// Runs what blocks on the disk where that holds up nobody else.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(_) => Err(Error::internal("Storing a blob failed unexpectedly; the server's log says why")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_methods_make_a_route() {
        let blob = BlobId::from_bits(5);
        let cases = [
            (Method::PUT, format!("/blobs/{blob}"), Some(BlobRoute::Put(blob))),
            (Method::PUT, format!("/blobs/{blob}/part/7"), Some(BlobRoute::Part(blob, 7))),
            (Method::POST, format!("/blobs/{blob}/complete"), Some(BlobRoute::Complete(blob))),
            (Method::GET, format!("/blobs/{blob}"), Some(BlobRoute::Get(blob))),
            (Method::HEAD, format!("/blobs/{blob}"), Some(BlobRoute::Get(blob))),
            (Method::PUT, format!("/blobs/{blob}/part/-1"), None),
            (Method::POST, format!("/blobs/{blob}"), None),
            (Method::GET, "/blobs/../key".to_owned(), None),
            (Method::GET, "/apps/x".to_owned(), None),
        ];
        for (method, path, expected) in cases {
            assert_eq!(route(&method, &path), expected, "{method} {path}");
        }
    }

    #[test]
    fn reads_content_md5() {
        let value = HeaderValue::from_static("1B2M2Y8AsgTpgAmY7PhCfg==");
        assert_eq!(content_md5(&value).unwrap(), "d41d8cd98f00b204e9800998ecf8427e");
        assert!(content_md5(&HeaderValue::from_static("abc")).is_err());
    }
}
