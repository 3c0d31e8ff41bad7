//! Images: the same recipe is the same image; what is not built yet is built once, however many ask.

use crate::image_logs::{ABANDONED, Build, CUT_OFF, Outcome, unreadable};
use crate::invocations::call_without_arguments;
use crate::ports::{BuildLog, BuildRequest, BuiltImage};
use crate::results::client_item;
use crate::{Control, blocking, parse_id, stored};
use evoke_core::{AppId, Error, FunctionId, ImageId, TaskId};
use evoke_engine::{CallType, Invocation, MapRequest, NewInput, ResultStatus};
use evoke_proto::{CallContext, Code, Status, api};
use evoke_store::{Grade, ImageRow, ImageState, ImageWrite};
use prost::Message;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// How long after a use of an image the next one is noted (milliseconds).
const USE_NOTED_EVERY_MS: u64 = 60 * 1000;

impl Control {
    pub(crate) async fn image_get_or_create(
        self: Arc<Self>,
        context: CallContext,
        request: api::ImageGetOrCreateRequest,
    ) -> Result<api::ImageGetOrCreateResponse, Status> {
        let image = request.image.clone().ok_or_else(|| Status::invalid("The request describes no image"))?;
        let asks_for_gpu = image.gpu_config.as_ref().is_some_and(|gpu| gpu.count > 0);
        if asks_for_gpu && request.build_function_id.is_empty() {
            context.warn(
                "gpu= of an image's commands: they see no GPU here; a function of run_function(gpu=) does",
            );
        }
        let version = match request.builder_version.as_str() {
            "" => self.config.builder_version.clone(),
            version => version.to_string(),
        };
        let digest = recipe_digest(&self.with_known_secrets(image.clone()).await?, &version);
        let known = self.store.images().by_recipe(digest.clone()).await.map_err(stored)?;
        let anew = request.force_build || request.ignore_cache;
        let app = request.app_id.parse::<AppId>().ok();
        // Who asks for both wants the cache replaced.
        let apart = request.ignore_cache && !request.force_build;
        if let Some(row) = known.as_ref().filter(|row| row.state == ImageState::Ready && !anew) {
            let _using = self.builder.begin_use();
            self.collection.asked(row.id, app, self.now());
            if self.is_usable(row).await? {
                return ready_reply(row);
            }
        }
        let id = match &known {
            // A build that runs is joined; a failed one is built again under the same id.
            Some(row) if !anew || row.state == ImageState::Building => row.id,
            _ => ImageId::new(self.now(), &mut *self.entropy()),
        };
        let now = self.now();
        self.collection.asked(id, app, now);
        let builder = TaskId::new(now, &mut *self.entropy());
        let row = ImageRow {
            id,
            recipe_digest: if apart { format!("{digest}:{id}") } else { digest },
            state: ImageState::Building,
            built: String::new(),
            builder: Some(builder),
            error: String::new(),
            created_at: now,
            updated_at: now,
            used_at: now,
            recipe: request.encode_to_vec(),
            metadata: Vec::new(),
        };
        let reply = api::ImageGetOrCreateResponse { image_id: id.to_string(), ..Default::default() };
        if let Some(build) = self.builds.begin(id, builder) {
            let (known, begin) = oneshot::channel();
            self.run_build(build, row.clone(), request, version, begin);
            self.commit(&context, vec![ImageWrite::Put(row).into()], Grade::Synced, &reply).await?;
            // It waits for this as long as the server lives.
            let _ = known.send(());
        }
        Ok(reply)
    }

    /// The recipe with its secrets named by what they hold: clients make a new secret for each run, and the
    /// same values must find the same image.
    async fn with_known_secrets(&self, mut image: api::Image) -> Result<api::Image, Status> {
        if !image.secret_ids.is_empty() {
            let mut hash = Sha256::new();
            for (name, value) in self.open_secrets(&image.secret_ids).await? {
                for part in [name, value] {
                    hash.update((part.len() as u64).to_le_bytes());
                    hash.update(part);
                }
            }
            image.secret_ids = vec![evoke_core::hex(&hash.finalize())];
        }
        Ok(image)
    }

    /// Whether a built image can be used: its layers are there and, noted as used now, it is not collected.
    async fn is_usable(&self, row: &ImageRow) -> Result<bool, Status> {
        if !self.builder.is_whole(&read_built(row)?).await? {
            tracing::warn!(image = %row.id, "layers of an image are gone; it is built anew");
            return Ok(false);
        }
        Ok(!self.note_use(row).await? || self.store.images().by_id(row.id).await.map_err(stored)?.is_some())
    }

    /// Notes that an image is used now, unless that was noted lately; whether it was noted.
    pub(crate) async fn note_use(&self, row: &ImageRow) -> Result<bool, Status> {
        let now = self.now();
        let note = now.since(row.used_at) >= USE_NOTED_EVERY_MS;
        if note {
            self.submit(vec![ImageWrite::Used { id: row.id, at: now }.into()], Grade::Written).await?;
        }
        Ok(note)
    }

    /// Runs a build once it is stored that there is one: its end must not be stored before its beginning.
    fn run_build(
        self: &Arc<Self>,
        build: Arc<Build>,
        row: ImageRow,
        request: api::ImageGetOrCreateRequest,
        version: String,
        begin: oneshot::Receiver<()>,
    ) {
        self.spawn("image-build", move |control| async move {
            if begin.await.is_err() {
                // Who asked for it could not be answered, and asks again.
                return control.builds.end(row.id, Err(Error::precondition(CUT_OFF)));
            }
            // Until its end is stored nothing that it found or made is collected.
            let _using = control.builder.begin_use();
            let started = Instant::now();
            let work = control.build_image(&row, request, version, build.clone());
            let work = async {
                tokio::select! {
                    outcome = work => outcome,
                    () = build.abandoned() => Err(Status::new(Code::Cancelled, ABANDONED)),
                }
            };
            let outcome = build.recorded(&control, work).await;
            let outcome = outcome.map_err(|status| Error::new(code_of(status.code), status.message));
            tracing::debug!(ok = outcome.is_ok(), ms = started.elapsed().as_millis() as u64, "build ended");
            let id = row.id;
            let told = match control.record_build(row, outcome).await {
                Ok(outcome) => outcome,
                Err(error) => {
                    tracing::error!(%error, "could not record the end of a build");
                    Err(Error::new(code_of(error.code), error.message))
                }
            };
            control.builds.end(id, told);
        });
    }

    /// Stores how a build ended, and says it for those who wait.
    async fn record_build(
        &self,
        mut row: ImageRow,
        outcome: Result<BuiltImage, Error>,
    ) -> Result<Outcome, Status> {
        row.updated_at = self.now();
        row.used_at = row.updated_at;
        let told = match outcome {
            Ok(built) => {
                let metadata = metadata_of(&built);
                row.state = ImageState::Ready;
                row.built =
                    serde_json::to_string(&built).map_err(|error| Status::internal(error.to_string()))?;
                row.metadata = metadata.encode_to_vec();
                Ok(metadata)
            }
            Err(error) => {
                row.state = ImageState::Failed;
                row.error = error.to_string();
                Err(error)
            }
        };
        self.submit(vec![ImageWrite::Put(row).into()], Grade::Synced).await?;
        Ok(told)
    }

    async fn build_image(
        self: &Arc<Self>,
        row: &ImageRow,
        request: api::ImageGetOrCreateRequest,
        version: String,
        build: Arc<Build>,
    ) -> Result<BuiltImage, Status> {
        let (force_build, ignore_cache) = (request.force_build, request.ignore_cache);
        let image = request.image.unwrap_or_default();
        let mut bases = Vec::new();
        for base in &image.base_images {
            bases.push((base.docker_tag.clone(), self.built_image(parse_id(&base.image_id)?).await?));
        }
        let clock = self.clock.clone();
        let log: BuildLog = {
            let build = build.clone();
            Arc::new(move |fd: i32, text: &str| build.write(fd, text, clock.now()))
        };
        if image.build_function.is_some() || !request.build_function_id.is_empty() {
            let base = bases.into_iter().next().map(|(_, built)| built);
            let base = base.ok_or_else(|| Status::invalid("A build function needs an image to run in"))?;
            let function = parse_id(&request.build_function_id)?;
            let input = image.build_function.and_then(|build| build.input);
            return self.run_build_function(function, base, input, &*log).await;
        }
        let context = match image.context_mount_id.as_str() {
            "" => None,
            mount => Some(self.build_context(parse_id(mount)?, log.clone()).await?),
        };
        let secrets = self.open_secrets(&image.secret_ids).await?.into_iter().collect();
        let volumes = self.volume_mounts(&image.volume_mounts).await?;
        let registry_secret = match registry_secret_of(&image) {
            None => None,
            Some(id) => Some(self.open_secrets(&[id.to_owned()]).await?),
        };
        let request = BuildRequest {
            image_id: row.id,
            image,
            builder_version: version,
            bases,
            secrets,
            volumes: (volumes, self.clone()),
            registry_secret,
            context,
            force_build,
            ignore_cache,
            log,
        };
        Ok(self.builder.build(request).await?)
    }

    /// `run_function`: one input to the function in a container of the base image; what the container wrote
    /// becomes a layer.
    async fn run_build_function(
        self: &Arc<Self>,
        function: FunctionId,
        base: BuiltImage,
        input: Option<api::FunctionInput>,
        log: &(dyn Fn(i32, &str) + Send + Sync),
    ) -> Result<BuiltImage, Status> {
        let name = self.registry.function(function).map_or_else(String::new, |f| f.tag.clone());
        let step = format!("RUN function {name}");
        log(1, &format!("=> Step: {step}\n"));
        let committed = self.commits.expect(function);
        // The container ends with it, because what it has written is taken then.
        let input = api::FunctionInput { final_input: true, ..input.unwrap_or_else(call_without_arguments) };
        let map = MapRequest {
            function_id: function,
            call_type: CallType::Unary,
            invocation: Invocation::Async,
            parent_input: None,
            inputs: vec![NewInput { idx: 0, group: 0, input: crate::invocations::encoded(&input) }],
            return_exceptions: false,
        };
        let call = self.calls.apply(self, |engine, now| engine.map(map, now)).await?.call_id;
        let output = self.wait_for_output(call).await?;
        if output.status != ResultStatus::Success {
            let result = client_item(&output).result.unwrap_or_default();
            log(2, &result.traceback);
            log(2, &format!("{}\n", result.exception));
            let failed = format!("The build function '{name}' failed: {}", result.exception);
            return Err(Status::new(Code::FailedPrecondition, failed));
        }
        let layer =
            committed.await.map_err(|_| Status::internal("the container of the build was lost"))??;
        Ok(self.builder.with_layer(&base, &layer, &step).await?)
    }

    async fn wait_for_output(
        &self,
        call: evoke_core::CallId,
    ) -> Result<Arc<evoke_store::calls::OutputRow>, Status> {
        loop {
            let waiter = self.calls.calls.register(call);
            let woken = waiter.woken();
            if let Some(row) = self.output_rows(call, 0, Some((0, 0)), 1).await?.0.into_iter().next() {
                return Ok(row);
            }
            woken.await;
        }
    }

    /// The stored image with this id.
    pub(crate) async fn image_row(&self, id: ImageId) -> Result<ImageRow, Status> {
        let row = self.store.images().by_id(id).await.map_err(stored)?;
        row.ok_or_else(|| {
            Status::not_found(format!(
                "The image {id} does not exist on this server. Run the app again to build it"
            ))
        })
    }

    /// The built image with this id.
    pub(crate) async fn built_image(&self, id: ImageId) -> Result<BuiltImage, Status> {
        read_built(&self.ready_image(id).await?)
    }

    pub(crate) async fn ready_image(&self, id: ImageId) -> Result<ImageRow, Status> {
        let row = self.image_row(id).await?;
        match row.state {
            ImageState::Ready => Ok(row),
            ImageState::Building => {
                Err(Status::new(Code::FailedPrecondition, format!("The image {id} is still being built")))
            }
            ImageState::Failed => Err(Status::new(
                Code::FailedPrecondition,
                format!("The build of image {id} failed: {}", row.error),
            )),
        }
    }

    pub(crate) async fn image_from_id(
        self: Arc<Self>,
        _context: CallContext,
        request: api::ImageFromIdRequest,
    ) -> Result<api::ImageFromIdResponse, Status> {
        let row = self.ready_image(parse_id(&request.image_id)?).await?;
        self.note_use(&row).await?;
        Ok(api::ImageFromIdResponse { image_id: request.image_id, metadata: Some(stored_metadata(&row)?) })
    }

    /// Marks builds that a restart cut off as failed, at start.
    pub(crate) async fn end_cut_off_builds(&self) -> Result<(), Status> {
        for row in self.store.images().building().await.map_err(stored)? {
            let _told = self.record_build(row, Err(Error::precondition(CUT_OFF))).await?;
        }
        // Nothing else is needed: layers are renamed into place whole or swept.
        blocking(|| Ok::<_, Error>(())).await
    }
}

/// The id of the secret with the login for the base's registry.
fn registry_secret_of(image: &api::Image) -> Option<&str> {
    let config = image.image_registry_config.as_ref()?;
    (!config.secret_id.is_empty()).then_some(config.secret_id.as_str())
}

/// The same recipe on the same bases has the same digest.
fn recipe_digest(image: &api::Image, version: &str) -> String {
    let mut canonical = image.clone();
    // Clients generate these anew each time; what they carry is covered by the base image and the source.
    canonical.version.clear();
    // How the base's registry is logged in to does not change what is in the base.
    if let Some(config) = &mut canonical.image_registry_config {
        config.secret_id.clear();
    }
    let mut hash = Sha256::new();
    hash.update(version.as_bytes());
    hash.update([0]);
    hash.update(canonical.encode_to_vec());
    evoke_core::hex(&hash.finalize())
}

/// What a container of a built image needs.
pub(crate) fn read_built(row: &ImageRow) -> Result<BuiltImage, Status> {
    serde_json::from_str(&row.built).map_err(|error| unreadable(row.id, error))
}

fn ready_reply(row: &ImageRow) -> Result<api::ImageGetOrCreateResponse, Status> {
    let status = api::generic_result::GenericStatus::Success as i32;
    Ok(api::ImageGetOrCreateResponse {
        image_id: row.id.to_string(),
        result: Some(api::GenericResult { status, ..Default::default() }),
        metadata: Some(stored_metadata(row)?),
    })
}

fn stored_metadata(row: &ImageRow) -> Result<api::ImageMetadata, Status> {
    api::ImageMetadata::decode(row.metadata.as_slice()).map_err(|error| unreadable(row.id, error))
}

/// What a stored image was asked for as.
pub(crate) fn parse_request(row: &ImageRow) -> Result<api::ImageGetOrCreateRequest, Status> {
    api::ImageGetOrCreateRequest::decode(row.recipe.as_slice()).map_err(|error| unreadable(row.id, error))
}

fn metadata_of(built: &BuiltImage) -> api::ImageMetadata {
    let text = |text: &str| (!text.is_empty()).then(|| text.to_string());
    api::ImageMetadata {
        python_version_info: text(&built.python).map(|version| format!("Python {version}")),
        workdir: text(&built.workdir),
        libc_version_info: text(&built.libc),
        image_builder_version: text(&built.builder_version),
        python_packages: built.packages.iter().cloned().collect(),
    }
}

fn code_of(code: Code) -> evoke_core::ErrorCode {
    use evoke_core::ErrorCode;
    match code {
        Code::InvalidArgument | Code::OutOfRange => ErrorCode::InvalidArgument,
        Code::NotFound => ErrorCode::NotFound,
        Code::ResourceExhausted => ErrorCode::ResourceExhausted,
        Code::Unavailable => ErrorCode::Unavailable,
        Code::Internal | Code::Unknown => ErrorCode::Internal,
        _ => ErrorCode::FailedPrecondition,
    }
}
