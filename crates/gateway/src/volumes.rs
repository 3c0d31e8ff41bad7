//! Files of volumes over HTTP: blocks that clients put, and ranges of contents that they read.

use evoke_core::{Error, ErrorCode};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::sync::Arc;
use tokio::sync::Semaphore;

use crate::blobs::{blocking, download, next_piece};
use crate::routes::{HttpBody, text};

/// Longest block (bytes), as the protocol has it.
const BLOCK_BYTES_MAX: usize = 8 << 20;
/// Blocks that are in memory at a time; further ones wait in their connections.
const BLOCKS_MAX: usize = 16;

/// Where volumes' files are. The functions block on the disk and are called where that is allowed.
pub trait VolumeStore: Send + Sync + 'static {
    /// Takes a block with this SHA-256 in hex.
    fn put_block(&self, hash: &str, bytes: &[u8]) -> Result<(), Error>;
    /// Opens the content of this name, with its length in bytes.
    fn open(&self, content: &str) -> Result<(File, u64), Error>;
}

/// The store, and how much of what clients send is in memory.
#[derive(Clone)]
pub(crate) struct Volumes {
    store: Arc<dyn VolumeStore>,
    turns: Arc<Semaphore>,
}

/// What an address of a volume's file asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum VolumeRoute {
    Put(String),
    Get { content: String, start: u64, length: u64 },
}

/// What a request asks for, if its path is that of a volume's file.
pub(crate) fn route(method: &Method, path: &str) -> Option<VolumeRoute> {
    let words: Vec<&str> = path.strip_prefix("/volumes/")?.split('/').collect();
    match (method, words.as_slice()) {
        (&Method::PUT, ["blocks", hash]) => Some(VolumeRoute::Put((*hash).to_owned())),
        (&Method::GET | &Method::HEAD, ["contents", content, start, length]) => {
            let (start, length) = (start.parse().ok()?, length.parse().ok()?);
            Some(VolumeRoute::Get { content: (*content).to_owned(), start, length })
        }
        _ => None,
    }
}

impl Volumes {
    pub(crate) fn new(store: Arc<dyn VolumeStore>) -> Self {
        Self { store, turns: Arc::new(Semaphore::new(BLOCKS_MAX)) }
    }

    pub(crate) async fn serve(
        &self,
        route: VolumeRoute,
        request: Request<Incoming>,
    ) -> Result<Response<HttpBody>, Error> {
        match route {
            VolumeRoute::Put(hash) => self.put(hash, request).await,
            VolumeRoute::Get { content, start, length } => {
                self.get(content, start, length, request.method() == Method::HEAD).await
            }
        }
    }

    /// Takes a block. The body of the answer is what the client hands in as its receipt; the store knows the
    /// block by its hash.
    async fn put(&self, hash: String, request: Request<Incoming>) -> Result<Response<HttpBody>, Error> {
        let turn = self.turns.clone().acquire_owned().await;
        let _turn =
            turn.map_err(|_closed| Error::new(ErrorCode::Unavailable, "The server is shutting down"))?;
        let mut body = request.into_body();
        let mut bytes = Vec::new();
        while let Some(pieces) = next_piece(&mut body).await? {
            for piece in pieces {
                if bytes.len() + piece.len() > BLOCK_BYTES_MAX {
                    return Err(Error::invalid(format!("A block has {BLOCK_BYTES_MAX} bytes at most")));
                }
                bytes.extend_from_slice(&piece);
            }
        }
        let (store, receipt) = (self.store.clone(), hash.clone());
        blocking(move || store.put_block(&hash, &bytes)).await?;
        Ok(text(StatusCode::OK, receipt))
    }

    async fn get(
        &self,
        content: String,
        start: u64,
        length: u64,
        head_only: bool,
    ) -> Result<Response<HttpBody>, Error> {
        let store = self.store.clone();
        let (file, length) = blocking(move || {
            let (mut file, all) = store.open(&content)?;
            file.seek(SeekFrom::Start(start))
                .map_err(|error| Error::internal(format!("Reading a volume's file failed: {error}")))?;
            Ok((file, length.min(all.saturating_sub(start))))
        })
        .await?;
        Ok(download(file, length, head_only))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_methods_make_a_route() {
        let get = VolumeRoute::Get { content: "oab".into(), start: 8, length: 9 };
        for (method, path, expected) in [
            (Method::PUT, "/volumes/blocks/ab", Some(VolumeRoute::Put("ab".into()))),
            (Method::GET, "/volumes/contents/oab/8/9", Some(get.clone())),
            (Method::HEAD, "/volumes/contents/oab/8/9", Some(get)),
            (Method::GET, "/volumes/contents/oab/-8/9", None),
            (Method::GET, "/volumes/contents/oab/8/9/1", None),
            (Method::POST, "/volumes/blocks/ab", None),
            (Method::GET, "/volumes/../key", None),
        ] {
            assert_eq!(route(&method, path), expected, "{method} {path}");
        }
    }
}
