//! Files that clients put into a volume, remove from it and copy in it.

use super::draft::{Draft, Files, clean};
use super::{Change, VolumeRow};
use crate::{Control, blocking, stored};
use evoke_core::{Error, ErrorCode};
use evoke_files::{BlockFile, ContentHash, VOLUME_BLOCK_BYTES, VolumeContent};
use evoke_proto::{CallContext, Status, api};
use evoke_store::{VolumeFile, VolumeFileKind, VolumeSnapshot};
use std::collections::HashMap;
use std::sync::Arc;

/// Files in one request.
const FILES_MAX: usize = 1_000_000;
/// The largest file (bytes).
const FILE_BYTES_MAX: u64 = 1 << 40;
/// Permission bits of a file whose client sent none.
const FILE_MODE: u32 = 0o644;

/// Files sent by a client.
struct Upload {
    files: Vec<VolumeFile>,
    overwrite: bool,
}

impl Change for Upload {
    fn apply<'c, F: Files>(
        self,
        draft: &mut Draft<'_, F>,
        _at: &dyn Fn(u64) -> VolumeSnapshot<'c>,
    ) -> Result<(), Error> {
        // Checked first of all against what is there: two files of one request may not collide either way.
        for file in &self.files {
            draft.check_upload(&file.path, self.overwrite)?;
        }
        self.files.into_iter().try_for_each(|file| draft.upload(file, true))
    }
}

struct Remove {
    path: String,
    recursive: bool,
}

impl Change for Remove {
    fn apply<'c, F: Files>(
        self,
        draft: &mut Draft<'_, F>,
        _at: &dyn Fn(u64) -> VolumeSnapshot<'c>,
    ) -> Result<(), Error> {
        draft.remove(&self.path, self.recursive)
    }
}

struct Copy {
    sources: Vec<String>,
    target: String,
    recursive: bool,
}

impl Change for Copy {
    fn apply<'c, F: Files>(
        self,
        draft: &mut Draft<'_, F>,
        _at: &dyn Fn(u64) -> VolumeSnapshot<'c>,
    ) -> Result<(), Error> {
        draft.copy(&self.sources, &self.target, self.recursive)
    }
}

/// Refuses what the disk has no room for before it is sent: clients try for minutes to send a block that is
/// refused, and show nothing meanwhile.
fn check_room(files: &[BlockFile], missing: &[Vec<usize>], room: Option<u64>) -> Result<(), Error> {
    let block = |file: &BlockFile, index: usize| {
        let begin = (index as u64).saturating_mul(VOLUME_BLOCK_BYTES);
        (file.blocks[index], file.size.saturating_sub(begin).min(VOLUME_BLOCK_BYTES))
    };
    let wanted = files.iter().zip(missing);
    let wanted = wanted.flat_map(|(file, missing)| missing.iter().map(move |index| block(file, *index)));
    // A block that comes twice is sent and kept once.
    let wanted: u64 = wanted.collect::<HashMap<_, _>>().values().sum();
    match room {
        Some(room) if wanted > room => Err(Error::new(
            ErrorCode::ResourceExhausted,
            format!(
                "the disk that holds the data folder has {room} bytes free, and the upload takes up to {wanted}\n\
                 Free some space, then try again."
            ),
        )),
        _ => Ok(()),
    }
}

impl Control {
    pub(crate) async fn volume_put_files(
        self: Arc<Self>,
        context: CallContext,
        request: api::VolumePutFilesRequest,
    ) -> Result<(), Status> {
        let row = self.volume(&request.volume_id).await?;
        let mut files = Vec::with_capacity(request.files.len());
        for file in &request.files {
            let hash: ContentHash =
                file.sha256_hex.parse().map_err(|error| Status::invalid(format!("{error}")))?;
            files.push(self.new_file(&file.filename, VolumeContent::Object(hash), 0, file.mode)?);
        }
        let contents = self.contents.clone();
        let files = blocking(move || {
            for file in &mut files {
                let content = parse_content(&file.content)?;
                file.size = contents.size(content).map_err(|error| {
                    let error = Error::from(error);
                    Error::precondition(format!("{}: {}", file.path, error.message))
                })?;
            }
            Ok(files)
        })
        .await?;
        let overwrite = !request.disallow_overwrite_existing_files;
        self.advance(Some(&context), row.id, "upload", files.len(), Upload { files, overwrite }).await?;
        Ok(())
    }

    pub(crate) async fn volume_put_files2(
        self: Arc<Self>,
        context: CallContext,
        request: api::VolumePutFiles2Request,
    ) -> Result<api::VolumePutFiles2Response, Status> {
        if request.files.len() > FILES_MAX {
            return Err(Status::invalid(format!("At most {FILES_MAX} files can be put at once")));
        }
        let row = self.volume(&request.volume_id).await?;
        let overwrite = !request.disallow_overwrite_existing_files;
        let announced = self.announced(&row, &request.files, overwrite).await?;
        let contents = self.contents.clone();
        let asked = announced.clone();
        let missing = blocking(move || {
            let missing: Vec<_> = asked.iter().map(|file| contents.missing_blocks(file)).collect();
            check_room(&asked, &missing, contents.room())?;
            Ok(missing)
        })
        .await?;
        let missing_blocks: Vec<_> = missing
            .iter()
            .enumerate()
            .flat_map(|(file, blocks)| blocks.iter().map(move |block| (file, *block)))
            .map(|(file, block)| api::volume_put_files2_response::MissingBlock {
                file_index: file as u64,
                block_index: block as u64,
                put_url: self.urls.volume_block(&context.origin, announced[file].blocks[block]),
            })
            .collect();
        if !missing_blocks.is_empty() {
            return Ok(api::VolumePutFiles2Response { missing_blocks });
        }
        let contents = self.contents.clone();
        let made = blocking(move || contents.assemble(&announced).map_err(Error::from)).await?;
        let mut files = Vec::with_capacity(made.len());
        for (file, content) in request.files.iter().zip(made) {
            files.push(self.new_file(&file.path, content, file.size, file.mode)?);
        }
        self.advance(Some(&context), row.id, "upload", files.len(), Upload { files, overwrite }).await?;
        Ok(api::VolumePutFiles2Response::default())
    }

    /// The files of a request, checked, each with what it was before.
    async fn announced(
        &self,
        row: &VolumeRow,
        files: &[api::volume_put_files2_request::File],
        overwrite: bool,
    ) -> Result<Vec<BlockFile>, Status> {
        let mut announced = Vec::with_capacity(files.len());
        for file in files {
            let path = clean(&file.path)?;
            let expected = file.size.div_ceil(VOLUME_BLOCK_BYTES);
            if file.size > FILE_BYTES_MAX || file.blocks.len() as u64 != expected {
                return Err(Status::invalid(format!(
                    "'{path}' of {} bytes is announced in {} blocks, not {expected}",
                    file.size,
                    file.blocks.len()
                )));
            }
            let blocks = file.blocks.iter().map(|block| {
                let hash = <[u8; 32]>::try_from(&*block.contents_sha256).ok();
                hash.map(ContentHash::from_bytes)
                    .ok_or_else(|| Status::invalid(format!("A block of '{path}' has no SHA-256")))
            });
            let blocks = blocks.collect::<Result<_, _>>()?;
            announced.push((path, BlockFile { blocks, size: file.size, before: None }));
        }
        let (id, head, now) = (row.id, row.head, self.now());
        let found = self.store.read(move |conn| {
            let newest = VolumeSnapshot::new(conn, id, head);
            let draft = Draft::new(&newest, now);
            let mut checked = Vec::with_capacity(announced.len());
            for (path, mut file) in announced {
                if head > 0 {
                    if let Err(error) = draft.check_upload(&path, overwrite) {
                        return Ok(Err(error));
                    }
                    let before = newest.get(&path)?;
                    file.before = before.and_then(|before| before.content.parse().ok());
                }
                checked.push(file);
            }
            Ok(Ok(checked))
        });
        Ok(found.await.map_err(stored)??)
    }

    fn new_file(
        &self,
        path: &str,
        content: VolumeContent,
        size: u64,
        mode: Option<u32>,
    ) -> Result<VolumeFile, Status> {
        let path = clean(path)?;
        if path.is_empty() {
            return Err(Status::invalid("A file needs a path"));
        }
        let mode = mode.filter(|mode| *mode != 0).unwrap_or(FILE_MODE);
        let (kind, mtime) = (VolumeFileKind::File, self.now());
        Ok(VolumeFile { path, kind, mode, mtime, size, content: content.to_string() })
    }

    pub(crate) async fn volume_remove_file(
        self: Arc<Self>,
        context: CallContext,
        request: api::VolumeRemoveFileRequest,
    ) -> Result<(), Status> {
        self.remove_in_volume(&context, &request.volume_id, &request.path, request.recursive).await
    }

    pub(crate) async fn volume_remove_file2(
        self: Arc<Self>,
        context: CallContext,
        request: api::VolumeRemoveFile2Request,
    ) -> Result<(), Status> {
        self.remove_in_volume(&context, &request.volume_id, &request.path, request.recursive).await
    }

    async fn remove_in_volume(
        &self,
        context: &CallContext,
        volume: &str,
        path: &str,
        recursive: bool,
    ) -> Result<(), Status> {
        let row = self.volume(volume).await?;
        let change = Remove { path: clean(path)?, recursive };
        self.advance(Some(context), row.id, "remove", 1, change).await?;
        Ok(())
    }

    pub(crate) async fn volume_copy_files(
        self: Arc<Self>,
        context: CallContext,
        request: api::VolumeCopyFilesRequest,
    ) -> Result<(), Status> {
        let (sources, target) = (&request.src_paths, &request.dst_path);
        self.copy_in_volume(&context, &request.volume_id, sources, target, request.recursive).await
    }

    pub(crate) async fn volume_copy_files2(
        self: Arc<Self>,
        context: CallContext,
        request: api::VolumeCopyFiles2Request,
    ) -> Result<(), Status> {
        let (sources, target) = (&request.src_paths, &request.dst_path);
        self.copy_in_volume(&context, &request.volume_id, sources, target, request.recursive).await
    }

    async fn copy_in_volume(
        &self,
        context: &CallContext,
        volume: &str,
        sources: &[String],
        target: &str,
        recursive: bool,
    ) -> Result<(), Status> {
        if sources.is_empty() {
            return Err(Status::invalid("There is nothing to copy"));
        }
        let row = self.volume(volume).await?;
        let sources = sources.iter().map(|path| clean(path)).collect::<Result<_, _>>()?;
        let change = Copy { sources, target: clean(target)?, recursive };
        self.advance(Some(context), row.id, "copy", 1, change).await?;
        Ok(())
    }
}

/// The content that a stored file names.
pub(super) fn parse_content(text: &str) -> Result<VolumeContent, Error> {
    text.parse().map_err(|error: evoke_files::ParseContentError| {
        Error::new(evoke_core::ErrorCode::DataLoss, format!("a stored file: {error}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upload_that_the_disk_has_no_room_for_is_refused_before_it_is_sent() {
        let [one, two] = [1u8, 2].map(|n| ContentHash::of(&[n]));
        let size = VOLUME_BLOCK_BYTES + 10;
        let files = [BlockFile { blocks: vec![one, two], size, before: None }];
        let check = |missing: &[usize], room| check_room(&files, &[missing.to_vec()], room);
        assert!(check(&[0, 1], Some(size)).is_ok());
        let refused = check(&[0, 1], Some(size - 1)).unwrap_err();
        assert_eq!(refused.code, ErrorCode::ResourceExhausted);
        assert!(check(&[1], Some(10)).is_ok(), "only what is missing is sent");
        assert!(check(&[1], Some(9)).is_err());
        assert!(check(&[0, 1], None).is_ok());
        let twice = [BlockFile { blocks: vec![one, one], size: 2 * VOLUME_BLOCK_BYTES, before: None }];
        assert!(check_room(&twice, &[vec![0, 1]], Some(VOLUME_BLOCK_BYTES)).is_ok());
    }
}
