//! Network file systems: folders by name. Containers have them mounted live; clients write, read, list and
//! remove files in them.

use crate::data_objects::OBJECT_SILENCE_MS_MAX;
use crate::named::Asked;
use crate::volumes::{clean_path, in_batches};
use crate::{Control, blocking, parse_id, stored};
use evoke_core::{BlobId, Error, SharedVolumeId, UnixMs};
use evoke_files::{BlobSpec, SharedEntry, SharedKind};
use evoke_proto::worker::SharedFolder;
use evoke_proto::{CallContext, Status, api};
use evoke_store::{Grade, SharedVolumeRow, SharedVolumeWrite};
use futures::Stream;
use std::collections::HashMap;
use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of a file that an answer carries itself; more go by blob.
const INLINE_BYTES_MAX: u64 = 4 << 20;
/// Bytes moved at a time.
const PIECE_BYTES: usize = 1 << 20;

/// When ephemeral ones were last heard of.
#[derive(Default)]
pub(crate) struct Heard(Mutex<HashMap<SharedVolumeId, UnixMs>>);

impl Heard {
    fn note(&self, id: SharedVolumeId, at: UnixMs) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id, at);
    }

    /// When it was; one that is not known counts as heard of now.
    fn of(&self, id: SharedVolumeId, now: UnixMs) -> UnixMs {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(id).or_insert(now)
    }
}

impl Control {
    pub(crate) async fn shared_volume_get_or_create(
        self: Arc<Self>,
        context: CallContext,
        request: api::SharedVolumeGetOrCreateRequest,
    ) -> Result<api::SharedVolumeGetOrCreateResponse, Status> {
        use api::ObjectCreationType as Kind;
        let kind = request.object_creation_type();
        let environment = self.environment(&request.environment_name)?;
        let named = !matches!(kind, Kind::Ephemeral | Kind::AnonymousOwnedByApp);
        let name = named.then(|| request.deployment_name.clone());
        let asked = Asked {
            what: "network file system",
            command: "nfs",
            name: &request.deployment_name,
            environment: &environment.name,
            creation: kind,
        };
        let find = async || {
            let volumes = self.store.shared_volumes();
            volumes.by_name(environment.id, request.deployment_name.clone()).await.map_err(stored)
        };
        let reply =
            |id: SharedVolumeId| api::SharedVolumeGetOrCreateResponse { shared_volume_id: id.to_string() };
        if named {
            if let Some(row) = asked.settle(find().await?)? {
                return Ok(reply(row.id));
            }
        }
        let now = self.now();
        let id = SharedVolumeId::new(now, &mut *self.entropy());
        self.shared_heard.note(id, now);
        let row = SharedVolumeRow { id, environment_id: environment.id, name, created_at: now };
        let answer = reply(id);
        let made =
            self.commit(&context, vec![SharedVolumeWrite::Create(row).into()], Grade::Synced, &answer).await;
        asked.made(made, answer, find, |row| reply(row.id)).await
    }

    pub(crate) async fn shared_volume_list(
        self: Arc<Self>,
        _context: CallContext,
        request: api::SharedVolumeListRequest,
    ) -> Result<api::SharedVolumeListResponse, Status> {
        let environment = self.environment(&request.environment_name)?;
        let rows = self.store.shared_volumes().list(environment.id).await.map_err(stored)?;
        let items = rows.into_iter().map(|row| api::SharedVolumeListItem {
            label: row.name.unwrap_or_default(),
            shared_volume_id: row.id.to_string(),
            created_at: row.created_at.as_secs_f64(),
            ..Default::default()
        });
        Ok(api::SharedVolumeListResponse {
            items: items.collect(),
            environment_name: environment.name.clone(),
        })
    }

    pub(crate) async fn shared_volume_delete(
        self: Arc<Self>,
        context: CallContext,
        request: api::SharedVolumeDeleteRequest,
    ) -> Result<(), Status> {
        let id = self.shared_volume(&request.shared_volume_id).await?;
        self.commit(&context, vec![SharedVolumeWrite::Delete { id }.into()], Grade::Synced, &()).await?;
        let folders = self.shared_folders.clone();
        blocking(move || folders.remove_folder(id).map_err(Error::from)).await
    }

    pub(crate) async fn shared_volume_heartbeat(
        self: Arc<Self>,
        _context: CallContext,
        request: api::SharedVolumeHeartbeatRequest,
    ) -> Result<(), Status> {
        let id = self.shared_volume(&request.shared_volume_id).await?;
        self.shared_heard.note(id, self.now());
        Ok(())
    }

    pub(crate) async fn shared_volume_put_file(
        self: Arc<Self>,
        _context: CallContext,
        request: api::SharedVolumePutFileRequest,
    ) -> Result<api::SharedVolumePutFileResponse, Status> {
        use api::shared_volume_put_file_request::DataOneof;
        let id = self.shared_volume(&request.shared_volume_id).await?;
        let path = clean_path(&request.path)?;
        if path.is_empty() {
            return Err(Status::invalid("A file needs a path"));
        }
        let (folders, blobs) = (self.shared_folders.clone(), self.blobs.clone());
        match request.data_oneof {
            Some(DataOneof::DataBlobId(blob)) => {
                let blob: BlobId = parse_id(&blob)?;
                blocking(move || {
                    let (mut file, _) = blobs.open_blob(blob)?;
                    folders.write(id, &path, &mut file)?;
                    Ok(blobs.delete(blob)?)
                })
                .await?;
            }
            Some(DataOneof::Data(data)) => {
                blocking(move || folders.write(id, &path, &mut &data[..])).await?;
            }
            None => blocking(move || folders.write(id, &path, &mut std::io::empty())).await?,
        }
        Ok(api::SharedVolumePutFileResponse { exists: true })
    }

    pub(crate) async fn shared_volume_get_file(
        self: Arc<Self>,
        _context: CallContext,
        request: api::SharedVolumeGetFileRequest,
    ) -> Result<api::SharedVolumeGetFileResponse, Status> {
        use api::shared_volume_get_file_response::DataOneof;
        let id = self.shared_volume(&request.shared_volume_id).await?;
        let path = clean_path(&request.path)?;
        let (folders, blobs) = (self.shared_folders.clone(), self.blobs.clone());
        let blob = BlobId::new(self.now(), &mut *self.entropy());
        let data = blocking(move || {
            let (mut file, length) = folders.read(id, &path)?;
            let broken = |error| Error::internal(format!("reading '{path}': {error}"));
            if length <= INLINE_BYTES_MAX {
                let mut data = Vec::new();
                (&mut file).take(INLINE_BYTES_MAX).read_to_end(&mut data).map_err(broken)?;
                return Ok(DataOneof::Data(data.into()));
            }
            blobs.create(blob, BlobSpec { length, md5: None, sha256: None, part_length: None })?;
            let mut part = blobs.write_part(blob, 1)?;
            let mut piece = vec![0; PIECE_BYTES];
            let mut file = file.take(length);
            loop {
                let count = file.read(&mut piece).map_err(broken)?;
                if count == 0 {
                    break;
                }
                part.write(&piece[..count])?;
            }
            part.finish()?;
            blobs.complete(blob)?;
            Ok(DataOneof::DataBlobId(blob.to_string()))
        })
        .await?;
        Ok(api::SharedVolumeGetFileResponse { data_oneof: Some(data) })
    }

    pub(crate) async fn shared_volume_list_files_stream(
        self: Arc<Self>,
        _context: CallContext,
        request: api::SharedVolumeListFilesRequest,
    ) -> Result<impl Stream<Item = Result<api::SharedVolumeListFilesResponse, Status>> + use<>, Status> {
        let batches = in_batches(self.shared_entries(request).await?);
        let replies = batches.into_iter().map(|entries| Ok(api::SharedVolumeListFilesResponse { entries }));
        Ok(futures::stream::iter(replies))
    }

    pub(crate) async fn shared_volume_list_files(
        self: Arc<Self>,
        _context: CallContext,
        request: api::SharedVolumeListFilesRequest,
    ) -> Result<api::SharedVolumeListFilesResponse, Status> {
        Ok(api::SharedVolumeListFilesResponse { entries: self.shared_entries(request).await? })
    }

    async fn shared_entries(
        &self,
        request: api::SharedVolumeListFilesRequest,
    ) -> Result<Vec<api::FileEntry>, Status> {
        let id = self.shared_volume(&request.shared_volume_id).await?;
        let path = clean_path(&request.path)?;
        let folders = self.shared_folders.clone();
        let entries = blocking(move || {
            if !path.contains('*') {
                return folders.list(id, &path, false);
            }
            let mut all = folders.list(id, "", true)?;
            all.retain(|entry| matches(&path, &entry.path));
            Ok(all)
        });
        Ok(entries.await?.into_iter().map(file_entry).collect())
    }

    pub(crate) async fn shared_volume_remove_file(
        self: Arc<Self>,
        _context: CallContext,
        request: api::SharedVolumeRemoveFileRequest,
    ) -> Result<(), Status> {
        let id = self.shared_volume(&request.shared_volume_id).await?;
        let path = clean_path(&request.path)?;
        if path.is_empty() {
            return Err(Status::invalid("The root of a network file system cannot be removed"));
        }
        let folders = self.shared_folders.clone();
        blocking(move || folders.remove(id, &path, request.recursive)).await
    }

    async fn shared_volume(&self, id: &str) -> Result<SharedVolumeId, Status> {
        let id: SharedVolumeId = parse_id(id)?;
        let row = self.store.shared_volumes().by_id(id).await.map_err(stored)?;
        row.map(|row| row.id).ok_or_else(|| {
            Status::not_found(format!("There is no network file system {id}; it may have been deleted"))
        })
    }

    /// The folders that a container has mounted.
    pub(crate) async fn shared_mounts(
        &self,
        asked: &[api::SharedVolumeMount],
    ) -> Result<Vec<SharedFolder>, Status> {
        let mut mounts = Vec::with_capacity(asked.len());
        for mount in asked {
            let id = self.shared_volume(&mount.shared_volume_id).await?;
            let source = self.shared_folders.folder(id).map_err(Error::from)?;
            mounts.push(SharedFolder { source, target: mount.mount_path.clone().into() });
        }
        Ok(mounts)
    }

    /// Deletes ephemeral ones whose client is gone.
    pub(crate) async fn retain_shared_volumes(&self) -> Result<(), Status> {
        let now = self.now();
        for row in self.store.shared_volumes().ephemeral().await.map_err(stored)? {
            if now.since(self.shared_heard.of(row.id, now)) > OBJECT_SILENCE_MS_MAX {
                self.submit(vec![SharedVolumeWrite::Delete { id: row.id }.into()], Grade::Synced).await?;
                let folders = self.shared_folders.clone();
                blocking(move || folders.remove_folder(row.id).map_err(Error::from)).await?;
            }
        }
        Ok(())
    }
}

fn file_entry(entry: SharedEntry) -> api::FileEntry {
    use api::file_entry::FileType;
    let kind = match entry.kind {
        SharedKind::File => FileType::File,
        SharedKind::Folder => FileType::Directory,
        SharedKind::Other => FileType::Symlink,
    };
    api::FileEntry { path: entry.path, r#type: kind as i32, mtime: entry.mtime, size: entry.size }
}

/// Whether `path` matches a pattern in which `*` stands for anything in a name and `**` for anything at all.
fn matches(pattern: &str, path: &str) -> bool {
    let Some(star) = pattern.find('*') else { return pattern == path };
    let Some(rest) = path.strip_prefix(&pattern[..star]) else { return false };
    let across = pattern[star..].starts_with("**");
    let after = &pattern[star + if across { 2 } else { 1 }..];
    let ends = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
    ends.take_while(|end| across || !rest[..*end].contains('/')).any(|end| matches(after, &rest[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_names_or_across_them() {
        for (pattern, path, expected) in [
            ("a/*", "a/x", true),
            ("a/*", "a/x/y", false),
            ("a/**", "a/x/y", true),
            ("**", "a/x/y", true),
            ("*.txt", "n.txt", true),
            ("*.txt", "d/n.txt", false),
            ("a/*/z", "a/b/z", true),
            ("a", "ab", false),
        ] {
            assert_eq!(matches(pattern, path), expected, "{pattern} {path}");
        }
    }
}
