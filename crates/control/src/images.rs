//! Images: the same recipe is the same image; what is not built yet is built once, however many ask.

use crate::invocations::call_without_arguments;
use crate::ports::{BuildRequest, BuiltImage};
use crate::results::client_item;
use crate::{Control, blocking, parse_id, stored};
use evoke_core::{Error, FunctionId, ImageId};
use evoke_engine::{CallType, Invocation, MapRequest, NewInput, ResultStatus};
use evoke_proto::{BoxStream, CallContext, Code, Status, api};
use evoke_store::{Grade, ImageRow, ImageState, ImageWrite};
use futures::StreamExt;
use prost::Message;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Pieces of a build's log that are kept for those who join late; the oldest go first.
const LOG_PIECES_MAX: usize = 20_000;
/// Pieces in one message to a client.
const LOG_PIECES_PER_MESSAGE: usize = 256;
/// The longest that one log stream is held (seconds), whatever the client asks for.
const STREAM_SECS_MAX: f32 = 60.0;

/// Builds that run or ended a short while ago, by image.
#[derive(Default)]
pub(crate) struct Builds(Mutex<HashMap<ImageId, Arc<Build>>>);

/// One build with its log, for all who watch it.
pub(crate) struct Build {
    log: Mutex<Vec<(i32, String, f64)>>,
    /// Pieces logged so far, and whether the build has ended.
    progress: watch::Sender<(usize, bool)>,
    outcome: Mutex<Option<Result<BuiltImage, Error>>>,
}

impl Build {
    fn new() -> Self {
        Self { log: Mutex::default(), progress: watch::channel((0, false)).0, outcome: Mutex::default() }
    }

    fn write(&self, fd: i32, text: &str, at: f64) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        if log.len() < LOG_PIECES_MAX {
            log.push((fd, text.to_string(), at));
        }
        let count = log.len();
        drop(log);
        self.progress.send_modify(|progress| progress.0 = count);
    }

    fn end(&self, outcome: Result<BuiltImage, Error>) {
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
        self.progress.send_modify(|progress| progress.1 = true);
    }

    fn outcome(&self) -> Option<Result<BuiltImage, Error>> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn pieces(&self, from: usize) -> Vec<api::TaskLogs> {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let pieces = log.iter().skip(from).take(LOG_PIECES_PER_MESSAGE);
        pieces
            .map(|(fd, text, at)| api::TaskLogs {
                data: text.clone(),
                file_descriptor: *fd,
                timestamp: *at,
                timestamp_ns: (*at * 1e9) as u64,
                ..Default::default()
            })
            .collect()
    }
}

impl Control {
    pub(crate) async fn image_get_or_create(
        self: Arc<Self>,
        context: CallContext,
        request: api::ImageGetOrCreateRequest,
    ) -> Result<api::ImageGetOrCreateResponse, Status> {
        let image = request.image.clone().ok_or_else(|| Status::invalid("The request describes no image"))?;
        if !image.volume_mounts.is_empty() && request.build_function_id.is_empty() {
            // Built without them it would be another image than asked for, and nobody would know.
            return Err(Status::new(
                evoke_proto::Code::FailedPrecondition,
                "volumes= of an image's commands is not served by this Evoke version; use run_function(volumes=)",
            ));
        }
        let version = match request.builder_version.as_str() {
            "" => self.config.builder_version.clone(),
            version => version.to_string(),
        };
        let digest = recipe_digest(&self.with_known_secrets(image.clone()).await?, &version);
        let known = self.store.images().by_recipe(digest.clone()).await.map_err(stored)?;
        let anew = request.force_build || request.ignore_cache;
        // Who asks for both wants the cache replaced.
        let apart = request.ignore_cache && !request.force_build;
        if let Some(row) = known.as_ref().filter(|row| row.state == ImageState::Ready && !anew) {
            return ready_reply(row);
        }
        let id = match &known {
            // A build that runs is joined; a failed one is built again under the same id.
            Some(row) if !anew || row.state == ImageState::Building => row.id,
            _ => ImageId::new(self.now(), &mut *self.entropy()),
        };
        let now = self.now();
        let row = ImageRow {
            id,
            recipe_digest: if apart { format!("{digest}:{id}") } else { digest },
            state: ImageState::Building,
            built: String::new(),
            build_log: None,
            error: String::new(),
            created_at: now,
            updated_at: now,
            recipe: request.encode_to_vec(),
            metadata: Vec::new(),
        };
        let reply = api::ImageGetOrCreateResponse { image_id: id.to_string(), ..Default::default() };
        if self.begin_build(&row, request, version) {
            self.commit(&context, vec![ImageWrite::Put(row).into()], Grade::Synced, &reply).await?;
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
            image.secret_ids = vec![hex(&hash.finalize())];
        }
        Ok(image)
    }

    /// Starts the build of `row` unless one runs. Whether it did.
    fn begin_build(
        self: &Arc<Self>,
        row: &ImageRow,
        request: api::ImageGetOrCreateRequest,
        version: String,
    ) -> bool {
        let build = Arc::new(Build::new());
        {
            let mut builds = self.builds.0.lock().unwrap_or_else(PoisonError::into_inner);
            if builds.get(&row.id).is_some_and(|running| running.outcome().is_none()) {
                return false;
            }
            builds.insert(row.id, build.clone());
        }
        let row = row.clone();
        self.spawn("image-build", move |control| async move {
            let started = Instant::now();
            let outcome = control.build_image(&row, request, version, build.clone()).await;
            let outcome = outcome.map_err(|status| Error::new(code_of(status.code), status.message));
            if let Err(error) = control.record_build(row, &outcome).await {
                tracing::error!(%error, "could not record the end of a build");
            }
            tracing::debug!(ok = outcome.is_ok(), ms = started.elapsed().as_millis() as u64, "build ended");
            build.end(outcome);
        });
        true
    }

    async fn record_build(
        &self,
        mut row: ImageRow,
        outcome: &Result<BuiltImage, Error>,
    ) -> Result<(), Status> {
        row.updated_at = self.now();
        match outcome {
            Ok(built) => {
                row.state = ImageState::Ready;
                row.built =
                    serde_json::to_string(built).map_err(|error| Status::internal(error.to_string()))?;
                row.metadata = metadata_of(built).encode_to_vec();
            }
            Err(error) => {
                row.state = ImageState::Failed;
                row.error = error.to_string();
            }
        }
        self.submit(vec![ImageWrite::Put(row).into()], Grade::Synced).await
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
        let log = {
            let build = build.clone();
            move |fd: i32, text: &str| build.write(fd, text, clock.now().as_secs_f64())
        };
        if image.build_function.is_some() || !request.build_function_id.is_empty() {
            let base = bases.into_iter().next().map(|(_, built)| built);
            let base = base.ok_or_else(|| Status::invalid("A build function needs an image to run in"))?;
            let function = parse_id(&request.build_function_id)?;
            let input = image.build_function.and_then(|build| build.input);
            return self.run_build_function(function, base, input, &log).await;
        }
        let context = match image.context_mount_id.as_str() {
            "" => None,
            mount => Some(self.mount_tree(parse_id(mount)?).await?),
        };
        let secrets = self.open_secrets(&image.secret_ids).await?.into_iter().collect();
        let request = BuildRequest {
            image_id: row.id,
            image,
            builder_version: version,
            bases,
            secrets,
            context,
            force_build,
            ignore_cache,
            log: Arc::new(log),
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
        log(1, &format!("=> Step: RUN function {name}\n"));
        let committed = self.commits.expect(function);
        let input = input.unwrap_or_else(call_without_arguments);
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
        Ok(self.builder.with_layer(&base, &layer).await?)
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

    /// The built image with this id.
    pub(crate) async fn built_image(&self, id: ImageId) -> Result<BuiltImage, Status> {
        let row = self.store.images().by_id(id).await.map_err(stored)?;
        let row = row.ok_or_else(|| {
            Status::not_found(format!(
                "The image {id} does not exist on this server. Run the app again to build it"
            ))
        })?;
        match row.state {
            ImageState::Ready => serde_json::from_str(&row.built)
                .map_err(|error| Status::new(Code::DataLoss, format!("stored image {id}: {error}"))),
            ImageState::Building => {
                Err(Status::new(Code::FailedPrecondition, format!("The image {id} is still being built")))
            }
            ImageState::Failed => Err(Status::new(
                Code::FailedPrecondition,
                format!("The build of image {id} failed: {}", row.error),
            )),
        }
    }

    pub(crate) async fn image_join_streaming(
        self: Arc<Self>,
        _context: CallContext,
        request: api::ImageJoinStreamingRequest,
    ) -> Result<BoxStream<Result<api::ImageJoinStreamingResponse, Status>>, Status> {
        let id: ImageId = parse_id(&request.image_id)?;
        let running = self.builds.0.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned();
        let build = match running {
            Some(build) => build,
            None => self.build_from_store(id).await?,
        };
        let from = request.last_entry_id.parse().unwrap_or(0);
        let hold = Duration::from_secs_f32(request.timeout.clamp(0.0, STREAM_SECS_MAX));
        let deadline = Instant::now() + hold;
        let state = (build.clone(), build.progress.subscribe(), from, false);
        let stream = futures::stream::unfold(state, move |(build, mut progress, from, over)| async move {
            if over {
                return None;
            }
            // An ended build's outcome is read before its log, so that the last piece cannot be missed.
            let wait = progress.wait_for(|(count, ended)| *count > from || *ended);
            if tokio::time::timeout_at(deadline, wait).await.is_err() {
                return None;
            }
            let outcome = build.outcome();
            let pieces = build.pieces(from);
            let next = from + pieces.len();
            let mut message = api::ImageJoinStreamingResponse {
                task_logs: pieces,
                entry_id: next.to_string(),
                ..Default::default()
            };
            let over = message.task_logs.is_empty() && outcome.is_some();
            if let Some(outcome) = outcome.filter(|_| over) {
                message.result = Some(result_of(&outcome));
                message.metadata = outcome.ok().as_ref().map(metadata_of);
                message.eof = true;
            }
            Some((Ok(message), (build, progress, next, over)))
        });
        Ok(stream.boxed())
    }

    /// A build that ended before this server started; one that was cut off then is told as failed, so that
    /// the client asks for it again.
    async fn build_from_store(&self, id: ImageId) -> Result<Arc<Build>, Status> {
        let row = self.store.images().by_id(id).await.map_err(stored)?;
        let row = row.ok_or_else(|| Status::not_found(format!("There is no image {id}")))?;
        let build = Build::new();
        build.end(match row.state {
            ImageState::Ready => serde_json::from_str(&row.built)
                .map_err(|error| Error::internal(format!("stored image: {error}"))),
            ImageState::Failed => Err(Error::precondition(row.error)),
            ImageState::Building => Err(Error::precondition(
                "The build was cut off by a restart of the server. Run the app again",
            )),
        });
        Ok(Arc::new(build))
    }

    pub(crate) async fn image_from_id(
        self: Arc<Self>,
        _context: CallContext,
        request: api::ImageFromIdRequest,
    ) -> Result<api::ImageFromIdResponse, Status> {
        let built = self.built_image(parse_id(&request.image_id)?).await?;
        Ok(api::ImageFromIdResponse { image_id: request.image_id, metadata: Some(metadata_of(&built)) })
    }

    /// Marks builds that a restart cut off as failed, at start.
    pub(crate) async fn end_cut_off_builds(&self) -> Result<(), Status> {
        for row in self.store.images().building().await.map_err(stored)? {
            let cut = Err(Error::precondition(
                "The build was cut off by a restart of the server. Run the app again",
            ));
            self.record_build(row, &cut).await?;
        }
        // Nothing else is needed: layers are renamed into place whole or swept.
        blocking(|| Ok::<_, Error>(())).await
    }
}

/// The same recipe on the same bases has the same digest.
fn recipe_digest(image: &api::Image, version: &str) -> String {
    let mut canonical = image.clone();
    // Clients generate these anew each time; what they carry is covered by the base image and the source.
    canonical.version.clear();
    let mut hash = Sha256::new();
    hash.update(version.as_bytes());
    hash.update([0]);
    hash.update(canonical.encode_to_vec());
    hex(&hash.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn ready_reply(row: &ImageRow) -> Result<api::ImageGetOrCreateResponse, Status> {
    let metadata = api::ImageMetadata::decode(row.metadata.as_slice())
        .map_err(|error| Status::new(Code::DataLoss, format!("stored image {}: {error}", row.id)))?;
    Ok(api::ImageGetOrCreateResponse {
        image_id: row.id.to_string(),
        result: Some(success()),
        metadata: Some(metadata),
    })
}

fn success() -> api::GenericResult {
    api::GenericResult { status: api::generic_result::GenericStatus::Success as i32, ..Default::default() }
}

fn result_of(outcome: &Result<BuiltImage, Error>) -> api::GenericResult {
    match outcome {
        Ok(_) => success(),
        Err(error) => api::GenericResult {
            status: api::generic_result::GenericStatus::Failure as i32,
            exception: error.to_string(),
            ..Default::default()
        },
    }
}

fn metadata_of(built: &BuiltImage) -> api::ImageMetadata {
    let text = |text: &str| (!text.is_empty()).then(|| text.to_string());
    api::ImageMetadata {
        python_version_info: text(&built.python).map(|version| format!("Python {version}")),
        workdir: text(&built.workdir),
        libc_version_info: text(&built.libc),
        image_builder_version: text(&built.builder_version),
        ..Default::default()
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
