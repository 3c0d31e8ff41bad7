//! What clients read of a volume: lists of its files, and where their bytes are.

use super::draft::{clean, resolve};
use super::uploads::parse_content;
use crate::{Control, stored};
use evoke_core::Error;
use evoke_files::VOLUME_BLOCK_BYTES;
use evoke_proto::{CallContext, Status, api};
use evoke_store::{VolumeFile, VolumeFileKind, VolumeSnapshot};
use futures::Stream;
use std::sync::Arc;

/// Entries in one message of a list.
const BATCH: usize = 1_000;
/// Bytes of a file that the oldest read of all answers with at once.
const INLINE_BYTES_MAX: u64 = 64 << 20;

impl Control {
    pub(crate) async fn volume_list_files(
        self: Arc<Self>,
        _context: CallContext,
        request: api::VolumeListFilesRequest,
    ) -> Result<impl Stream<Item = Result<api::VolumeListFilesResponse, Status>> + use<>, Status> {
        let all = self.entries(&request.volume_id, &request.path, request.recursive, request.max_entries);
        let batches = in_batches(all.await?);
        Ok(futures::stream::iter(
            batches.into_iter().map(|entries| Ok(api::VolumeListFilesResponse { entries })),
        ))
    }

    pub(crate) async fn volume_list_files2(
        self: Arc<Self>,
        _context: CallContext,
        request: api::VolumeListFiles2Request,
    ) -> Result<impl Stream<Item = Result<api::VolumeListFiles2Response, Status>> + use<>, Status> {
        let all = self.entries(&request.volume_id, &request.path, request.recursive, request.max_entries);
        let batches = in_batches(all.await?);
        Ok(futures::stream::iter(
            batches.into_iter().map(|entries| Ok(api::VolumeListFiles2Response { entries })),
        ))
    }

    async fn entries(
        &self,
        volume: &str,
        path: &str,
        recursive: bool,
        most: Option<u32>,
    ) -> Result<Vec<api::FileEntry>, Status> {
        let row = self.volume(volume).await?;
        let path = clean(path)?;
        let found = self.store.read(move |conn| {
            let newest = VolumeSnapshot::new(conn, row.id, row.head);
            Ok(match resolve(&newest, &path) {
                Err(error) => Err(error),
                Ok((_, Some(file))) if file.kind != VolumeFileKind::Folder => Ok(vec![file]),
                Ok((at, _)) if recursive => Ok(newest.under(&at)?),
                Ok((at, _)) => Ok(newest.children(&at)?),
            })
        });
        let files: Vec<VolumeFile> = found.await.map_err(stored)??;
        let most = most.filter(|most| *most > 0).map_or(usize::MAX, |most| most as usize);
        Ok(files.into_iter().take(most).map(entry).collect())
    }

    pub(crate) async fn volume_get_file2(
        self: Arc<Self>,
        context: CallContext,
        request: api::VolumeGetFile2Request,
    ) -> Result<api::VolumeGetFile2Response, Status> {
        let file = self.file_to_read(&request.volume_id, &request.path).await?;
        let content = parse_content(&file.content)?;
        let (start, length) = range(file.size, request.start, request.len)?;
        let first = start / VOLUME_BLOCK_BYTES;
        let end = start + length;
        let mut get_urls = Vec::new();
        if length > 0 {
            for block in first..end.div_ceil(VOLUME_BLOCK_BYTES) {
                let from = start.max(block * VOLUME_BLOCK_BYTES);
                let to = end.min((block + 1) * VOLUME_BLOCK_BYTES);
                get_urls.push(self.urls.volume_content(&context.origin, content, from, to - from));
            }
        }
        Ok(api::VolumeGetFile2Response { get_urls, size: file.size, start, len: length })
    }

    pub(crate) async fn volume_get_file(
        self: Arc<Self>,
        _context: CallContext,
        request: api::VolumeGetFileRequest,
    ) -> Result<api::VolumeGetFileResponse, Status> {
        let file = self.file_to_read(&request.volume_id, &request.path).await?;
        let content = parse_content(&file.content)?;
        let (start, length) = range(file.size, request.start, request.len)?;
        let length = length.min(INLINE_BYTES_MAX);
        let contents = self.contents.clone();
        let data = crate::blocking(move || {
            use std::os::unix::fs::FileExt;
            let (file, _) = contents.open_content(content).map_err(Error::from)?;
            let mut data = vec![0; length as usize];
            file.read_exact_at(&mut data, start)
                .map_err(|error| Error::internal(format!("reading a volume's file: {error}")))?;
            Ok(data)
        })
        .await?;
        let data_oneof = Some(api::volume_get_file_response::DataOneof::Data(data.into()));
        Ok(api::VolumeGetFileResponse { data_oneof, size: file.size, start, len: length })
    }

    async fn file_to_read(&self, volume: &str, path: &str) -> Result<VolumeFile, Status> {
        let row = self.volume(volume).await?;
        let path = clean(path)?;
        let found = self.store.read(move |conn| {
            Ok(resolve(&VolumeSnapshot::new(conn, row.id, row.head), &path).and_then(|(at, file)| {
                file.filter(|file| file.kind == VolumeFileKind::File).ok_or_else(|| {
                    Error::invalid(format!("'/{at}' is a directory in the volume, not a file"))
                })
            }))
        });
        Ok(found.await.map_err(stored)??)
    }
}

/// The range that is asked for of a file, in which a length of 0 means all that is left.
fn range(size: u64, start: u64, length: u64) -> Result<(u64, u64), Status> {
    if start > size {
        return Err(Status::invalid(format!("The file has {size} bytes, and {start} lies behind its end")));
    }
    let left = size - start;
    Ok((start, if length == 0 { left } else { length.min(left) }))
}

fn entry(file: VolumeFile) -> api::FileEntry {
    use api::file_entry::FileType;
    let kind = match file.kind {
        VolumeFileKind::File => FileType::File,
        VolumeFileKind::Folder => FileType::Directory,
        VolumeFileKind::Link => FileType::Symlink,
    };
    api::FileEntry { path: file.path, r#type: kind as i32, mtime: file.mtime.0 / 1000, size: file.size }
}

/// Entries in messages of a list.
pub(crate) fn in_batches(mut entries: Vec<api::FileEntry>) -> Vec<Vec<api::FileEntry>> {
    let mut batches = Vec::new();
    while entries.len() > BATCH {
        let rest = entries.split_off(BATCH);
        batches.push(std::mem::replace(&mut entries, rest));
    }
    batches.push(entries);
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_cut_at_the_end_of_the_file() {
        assert_eq!(range(10, 0, 0).unwrap(), (0, 10));
        assert_eq!(range(10, 4, 100).unwrap(), (4, 6));
        assert_eq!(range(10, 4, 2).unwrap(), (4, 2));
        assert_eq!(range(10, 10, 5).unwrap(), (10, 0));
        assert!(range(10, 11, 1).is_err());
    }
}
