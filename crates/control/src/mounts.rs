//! Mounts: which files are missing, files uploaded, sets of files made and looked up.

use crate::ports::BuildLog;
use crate::{Control, blocking, parse_id, stored};
use evoke_core::{BlobId, Error, MountId};
use evoke_files::{ContentHash, MountFile};
use evoke_proto::worker::{LayerOwner, LayerRef};
use evoke_proto::{CallContext, Status, api};
use evoke_store::{Grade, MountRow, MountWrite};
use prost::Message;
use sha2::{Digest, Sha256};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

/// Hashes in one question for existence. The client asks for 64.
const HASHES_MAX: usize = 4096;
/// The name under which clients of a version look up the packages that containers need of them.
const CLIENT_MOUNT_PREFIX: &str = "modal-client-mount-";
/// The name under which clients look up a Python to put into an image that has none.
const PYTHON_MOUNT_PREFIX: &str = "python-build-standalone.";
/// The mode of a file whose client sent none.
const MODE_DEFAULT: u32 = 0o644;

impl Control {
    pub(crate) async fn mount_batched_check_existence(
        self: Arc<Self>,
        _context: CallContext,
        request: api::MountBatchedCheckExistenceRequest,
    ) -> Result<api::MountBatchedCheckExistenceResponse, Status> {
        if request.sha256_hex_hashes.len() > HASHES_MAX {
            return Err(Status::invalid(format!("At most {HASHES_MAX} hashes can be asked for at once")));
        }
        let hashes =
            request.sha256_hex_hashes.iter().map(|text| hash_of(text)).collect::<Result<Vec<_>, _>>()?;
        let objects = self.objects.clone();
        let missing = blocking(move || Ok::<_, Error>(objects.missing(&hashes))).await?;
        Ok(api::MountBatchedCheckExistenceResponse {
            missing_sha256_hex_hashes: missing.iter().map(ToString::to_string).collect(),
            checked_at: Some(self.timestamp()),
        })
    }

    pub(crate) async fn mount_put_file(
        self: Arc<Self>,
        _context: CallContext,
        request: api::MountPutFileRequest,
    ) -> Result<api::MountPutFileResponse, Status> {
        use api::mount_put_file_request::DataOneof;
        let hash = hash_of(&request.sha256_hex)?;
        let (objects, blobs) = (self.objects.clone(), self.blobs.clone());
        let exists = match request.data_oneof {
            None => blocking(move || Ok::<_, Error>(objects.contains(hash))).await?,
            Some(DataOneof::Data(data)) => {
                blocking(move || objects.put(hash, &data).map_err(refused)).await?;
                true
            }
            Some(DataOneof::DataBlobId(blob)) => {
                let blob: BlobId = parse_id(&blob)?;
                blocking(move || {
                    let (mut file, _) = blobs.open_blob(blob).map_err(refused)?;
                    objects.put_reader(Some(hash), &mut file).map_err(refused)?;
                    blobs.delete(blob).map_err(refused)
                })
                .await?;
                true
            }
        };
        Ok(api::MountPutFileResponse { exists, checked_at: Some(self.timestamp()) })
    }

    pub(crate) async fn mount_get_or_create(
        self: Arc<Self>,
        context: CallContext,
        request: api::MountGetOrCreateRequest,
    ) -> Result<api::MountGetOrCreateResponse, Status> {
        if request.object_creation_type() == api::ObjectCreationType::Unspecified {
            return self.look_up_mount(&context, &request).await;
        }
        let files = mount_files(&request.files)?;
        let objects = self.objects.clone();
        let listed: Vec<_> = files.iter().map(|file| file.sha256).collect();
        let missing = blocking(move || Ok::<_, Error>(objects.missing(&listed))).await?;
        if let Some(first) = missing.first() {
            return Err(Status::new(
                evoke_proto::Code::FailedPrecondition,
                format!("{} of the mount's files were not uploaded, the first is {first}", missing.len()),
            ));
        }
        let digest = evoke_files::Trees::digest(&files)
            .map_err(|error| Status::invalid(format!("The mount is refused: {error}")))?;
        let id = MountId::from_bits(bits_of(digest.to_string().as_bytes()));
        let now = self.now();
        let row = MountRow {
            id,
            digest: digest.to_string(),
            files: api::MountGetOrCreateRequest { files: request.files, ..Default::default() }
                .encode_to_vec(),
            name: None,
            namespace: 0,
            environment_id: None,
            created_at: now,
            used_at: now,
        };
        let reply = mount_reply(id, row.digest.clone());
        self.commit(&context, vec![MountWrite::Put(row).into()], Grade::Synced, &reply).await?;
        Ok(reply)
    }

    async fn look_up_mount(
        &self,
        context: &CallContext,
        request: &api::MountGetOrCreateRequest,
    ) -> Result<api::MountGetOrCreateResponse, Status> {
        let name = request.deployment_name.as_str();
        let client = name.strip_prefix(CLIENT_MOUNT_PREFIX);
        // A Python is brought by the build that copies it, which tells of it in its log.
        let python = name.strip_prefix(PYTHON_MOUNT_PREFIX).filter(|name| self.builder.knows_python(name));
        if client.is_none() && python.is_none() {
            return Err(Status::not_found(format!("There is no mount '{name}' on this server")));
        }
        let id = MountId::from_bits(bits_of(name.as_bytes()));
        if self.store.mounts().by_id(id).await.map_err(stored)?.is_none() {
            if let Some(version) = client {
                // Made here, so that a machine without a package index says so before anything else is done.
                self.bundles.client(version).await?;
            }
            let now = self.now();
            let row = MountRow {
                id,
                digest: name.to_string(),
                files: Vec::new(),
                name: Some(name.to_string()),
                namespace: request.namespace,
                environment_id: None,
                created_at: now,
                used_at: now,
            };
            self.commit(context, vec![MountWrite::Put(row).into()], Grade::Synced, &()).await?;
        }
        Ok(mount_reply(id, String::new()))
    }

    /// The files of a mount as a layer of a container's root.
    /// The layer of a mount, and whether it is the client's own.
    pub(crate) async fn mount_layer(&self, id: MountId) -> Result<(LayerRef, bool), Status> {
        let row = self.mount_row(id).await?;
        if let Some(version) = row.name.as_deref().and_then(|name| name.strip_prefix(CLIENT_MOUNT_PREFIX)) {
            return Ok((self.bundles.client(version).await?, true));
        }
        let (_, tree) = self.mount_tree(row).await?;
        let layer = own_layer(&tree);
        let layer = layer.map_err(|error| Status::internal(format!("{}: {error}", tree.display())))?;
        Ok((layer, false))
    }

    /// The list of files of a mount that a build copies from, and a folder that holds them.
    pub(crate) async fn build_context(
        &self,
        id: MountId,
        log: BuildLog,
    ) -> Result<(Vec<api::MountFile>, PathBuf), Status> {
        let row = self.mount_row(id).await?;
        match row.name.as_deref().and_then(|name| name.strip_prefix(PYTHON_MOUNT_PREFIX)) {
            Some(python) => Ok(self.builder.standalone_python(python, log).await?),
            None => self.mount_tree(row).await,
        }
    }

    async fn mount_tree(&self, row: MountRow) -> Result<(Vec<api::MountFile>, PathBuf), Status> {
        let id = row.id;
        let listed = api::MountGetOrCreateRequest::decode(row.files.as_slice()).map_err(|error| {
            Status::new(evoke_proto::Code::DataLoss, format!("stored mount {id}: {error}"))
        })?;
        let files = mount_files(&listed.files)?;
        let trees = self.trees.clone();
        let tree = blocking(move || trees.materialise(&files).map_err(refused)).await?;
        Ok((listed.files, tree.path))
    }

    async fn mount_row(&self, id: MountId) -> Result<MountRow, Status> {
        let row = self.store.mounts().by_id(id).await.map_err(stored)?;
        row.ok_or_else(|| {
            Status::not_found(format!("The mount {id} is gone. Run the app again to upload it"))
        })
    }
}

/// A folder of the server's own files as a layer: they appear as root's.
pub(crate) fn own_layer(path: &std::path::Path) -> std::io::Result<LayerRef> {
    let meta = std::fs::metadata(path)?;
    Ok(LayerRef { path: path.to_owned(), owner: LayerOwner::Single { uid: meta.uid(), gid: meta.gid() } })
}

fn mount_reply(id: MountId, digest: String) -> api::MountGetOrCreateResponse {
    api::MountGetOrCreateResponse {
        mount_id: id.to_string(),
        handle_metadata: Some(api::MountHandleMetadata { content_checksum_sha256_hex: digest }),
    }
}

fn mount_files(files: &[api::MountFile]) -> Result<Vec<MountFile>, Status> {
    files
        .iter()
        .map(|file| {
            Ok(MountFile {
                path: file.filename.clone(),
                sha256: hash_of(&file.sha256_hex)?,
                mode: file.mode.filter(|mode| *mode != 0).unwrap_or(MODE_DEFAULT),
            })
        })
        .collect()
}

fn hash_of(text: &str) -> Result<ContentHash, Status> {
    text.parse().map_err(|error| Status::invalid(format!("{error}")))
}

/// 128 bits of the text's digest: the same content gets the same id.
pub(crate) fn bits_of(content: &[u8]) -> u128 {
    let mut bits = [0u8; 16];
    bits.copy_from_slice(&Sha256::digest(content)[..16]);
    u128::from_be_bytes(bits)
}

fn refused(error: impl Into<Error>) -> Error {
    error.into()
}
