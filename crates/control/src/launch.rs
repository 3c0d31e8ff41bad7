//! From the decision to start a container to the assignment that a worker gets: image, mounts, client
//! packages, secrets and arguments, put together.

use crate::images::read_built;
use crate::registry::Function;
use crate::results::stored_failure;
use crate::web::VARIABLE;
use crate::{Control, parse_id, wire};
use bytes::Bytes;
use evoke_core::{DefinitionId, FunctionId, StartPath, TaskId};
use evoke_engine::{ContainerEvent, ContainerExit, ExitCause, ResultStatus};
use evoke_proto::worker::{Assignment, HostBind, LayerRef, Limits, NetworkMode};
use evoke_proto::{Code, Status, api};
use prost::Message;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

/// Field number of `function_def` in `ContainerArguments`.
const FUNCTION_DEF: u32 = 7;
/// How long a container has from an interrupt to its end (milliseconds).
const GRACE_MS: u64 = 30_000;
/// Processes and threads of one container.
const PIDS_MAX: u32 = 16_384;
/// The smallest `/dev/shm` (bytes).
const SHM_BYTES_MIN: u64 = 64 << 20;
/// The search path where an image sets none.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Where Python finds user code and the client's packages.
const PYTHON_PATH: &str = "/root:/pkg";
/// Lists the lean ways that a container takes; an image, a secret or a function's environment may say otherwise.
const LEAN_SWITCH: &str = "EVOKE_LEAN";
/// Where user code lives, and the working folder where an image sets none.
const HOME: &str = "/root";

/// Where a container reaches web functions: its loopback leads their ports to its own listener.
const CONTAINER_ORIGIN: &str = "http://127.0.0.1";

impl Control {
    /// Starts a container that the engine decided on. What fails here fails the container's start.
    pub(crate) async fn launch(
        self: Arc<Self>,
        task: TaskId,
        function: FunctionId,
        definition: DefinitionId,
        gpus: Vec<String>,
        reason: String,
    ) {
        tracing::debug!(%task, %function, reason, "starting container");
        let Err(status) = self.try_launch(task, function, definition, gpus).await else { return };
        if status.code == Code::Aborted || !self.is_wanted(task) {
            // It was told to stop before it began, by a deployment or with its app: nobody's fault.
            let exit = ContainerExit {
                oom: false,
                code: None,
                signal: None,
                cause: ExitCause::WorkerLost,
                text: "it was not needed any more before it began".into(),
            };
            let gone = ContainerEvent::Exited(exit);
            let told =
                self.calls.apply(&self, |engine, now| Ok(engine.container_event(task, gone, now))).await;
            if let Err(status) = told {
                tracing::error!(%task, %status, "could not record that a container was not needed");
            }
            return;
        }
        tracing::warn!(%task, %function, %status, "the container could not be started");
        if let Err(status) = self.start_failed(task, &status.message).await {
            tracing::error!(%task, %status, "could not record the failed start");
        }
    }

    /// Records that a container's start failed, with the reason that its callers are told.
    pub(crate) async fn start_failed(&self, task: TaskId, text: &str) -> Result<(), Status> {
        let result = api::GenericResult {
            status: api::generic_result::GenericStatus::InitFailure as i32,
            exception: format!("The container could not be started: {text}"),
            ..Default::default()
        };
        let body = stored_failure(&result);
        let exit = ContainerExit {
            oom: false,
            code: None,
            signal: None,
            cause: ExitCause::StartFailed,
            text: text.to_string(),
        };
        self.calls
            .apply(self, |engine, now| Ok(engine.task_result(task, ResultStatus::InitFailure, body, now)))
            .await?;
        self.calls
            .apply(self, |engine, now| Ok(engine.container_event(task, ContainerEvent::Exited(exit), now)))
            .await
    }

    async fn try_launch(
        &self,
        task: TaskId,
        function: FunctionId,
        definition: DefinitionId,
        gpus: Vec<String>,
    ) -> Result<(), Status> {
        let function = self
            .registry
            .function(function)
            .ok_or_else(|| Status::not_found(format!("the function {function} is gone")))?;
        if function.definition_id != definition {
            return Err(Status::new(Code::Aborted, "the function was redefined meanwhile"));
        }
        let mut assignment = self.assignment(task, &function).await?;
        assignment.gpus = gpus;
        if !self.is_wanted(task) {
            return Err(Status::new(Code::Aborted, "the container was told to stop meanwhile"));
        }
        let with = with_bytes(&function, &assignment);
        self.calls.apply(self, |engine, _| Ok(engine.task_with(task, with, StartPath::Plain))).await?;
        Ok(self.worker().assign(assignment).await?)
    }

    fn is_wanted(&self, task: TaskId) -> bool {
        self.calls.look(|engine| engine.task_info(task)).is_some_and(|info| !info.stopping)
    }

    async fn assignment(&self, task: TaskId, function: &Arc<Function>) -> Result<Assignment, Status> {
        let definition = &function.definition.function;
        if definition.image_id.is_empty() {
            return Err(Status::invalid("the function has no image"));
        }
        let row = self.ready_image(parse_id(&definition.image_id)?).await?;
        self.note_use(&row).await?;
        let image = read_built(&row)?;
        let mut layers: Vec<LayerRef> = image.layers.iter().map(LayerRef::from).collect();
        let dependencies = self.bundles.dependencies(&image).await?;
        // The lean runtime lies beside the dependencies.
        let has_lean_runtime = dependencies.is_some();
        layers.extend(dependencies);
        let builder = definition.is_builder_function;
        let is_forkable = self.config.templates && has_lean_runtime && !builder;
        let mut template_layers = if is_forkable { layers.clone() } else { Vec::new() };
        let mut seen = HashSet::new();
        for mount in definition.mount_ids.iter().filter(|id| seen.insert(id.as_str())) {
            let (layer, is_client) = self.mount_layer(parse_id(mount)?).await?;
            template_layers.extend((is_forkable && is_client).then(|| layer.clone()));
            layers.push(layer);
        }
        let environment = {
            let live = self.registry.lock();
            live.apps.get(&function.app_id).map(|app| app.environment.clone()).unwrap_or_default()
        };
        let mut env: BTreeMap<String, String> = image.env.iter().cloned().collect();
        env.extend(self.open_secrets(&definition.secret_ids).await?);
        let own = self.own_environment(task, definition, &environment, &env);
        env.extend(own);
        let switch = env.get(LEAN_SWITCH).filter(|_| has_lean_runtime).map_or("off", String::as_str);
        env.extend(self.web_variable(task, function, switch).map(|told| (VARIABLE.to_owned(), told)));
        let python = if image.python_path.is_empty() { "python" } else { &image.python_path };
        let workdir = if image.workdir.is_empty() { HOME } else { &image.workdir };
        Ok(Assignment {
            task_id: task,
            app_id: function.app_id,
            function_id: function.id,
            generation: function.generation,
            layers,
            template_layers,
            binds: image.binds.iter().cloned().map(|(source, target)| HostBind { source, target }).collect(),
            shared: self.shared_mounts(&definition.shared_volume_mounts).await?,
            volumes: self.volume_mounts(&definition.volume_mounts).await?,
            argv: [python, "-m", entrypoint(&env, has_lean_runtime, self.config.templates)]
                .map(String::from)
                .to_vec(),
            env: env.into_iter().collect(),
            cwd: workdir.to_string(),
            container_arguments: self.arguments(task, function, &environment)?,
            limits: self.limits(definition),
            buckets: self.bucket_mounts(&definition.cloud_bucket_mounts).await?,
            gpus: Vec::new(),
            network: if definition.block_network { NetworkMode::Loopback } else { NetworkMode::Bridged },
            grace_ms: GRACE_MS,
            ends_by_sigterm: definition.is_server,
            startup_timeout_ms: function.conf().startup_timeout_ms,
            commit_on_exit: builder.then(|| self.builder.layer_path(&layer_name(task))),
        })
    }

    /// The variables that the client's runtime expects, and those that any program does.
    fn own_environment(
        &self,
        task: TaskId,
        definition: &api::Function,
        environment: &str,
        set: &BTreeMap<String, String>,
    ) -> Vec<(String, String)> {
        let default = |key: &str, value: &str| {
            let value = set.get(key).map_or(value, String::as_str);
            (key.to_string(), value.to_string())
        };
        let python_path = match set.get("PYTHONPATH") {
            Some(more) if !more.is_empty() => format!("{PYTHON_PATH}:{more}"),
            _ => PYTHON_PATH.to_string(),
        };
        vec![
            default("PATH", PATH_DEFAULT),
            default("HOME", HOME),
            default("LANG", "C.UTF-8"),
            default("PYTHONUNBUFFERED", "1"),
            default(LEAN_SWITCH, &self.lean),
            ("PYTHONPATH".into(), python_path),
            ("MODAL_IS_REMOTE".into(), "1".into()),
            ("MODAL_TASK_ID".into(), task.to_string()),
            ("MODAL_IMAGE_ID".into(), definition.image_id.clone()),
            ("MODAL_ENVIRONMENT".into(), environment.to_string()),
            ("MODAL_CLOUD_PROVIDER".into(), self.cloud_provider()),
            ("MODAL_REGION".into(), self.machine.region.clone().unwrap_or_else(|| "local".into())),
        ]
    }

    /// The cloud that this machine is of, in the protocol's words.
    fn cloud_provider(&self) -> String {
        let named =
            self.machine.cloud.as_ref().map(|cloud| format!("CLOUD_PROVIDER_{}", cloud.to_uppercase()));
        let known = named.filter(|name| api::CloudProvider::from_str_name(name).is_some());
        known.unwrap_or_else(|| api::CloudProvider::Unspecified.as_str_name().to_owned())
    }

    /// The serialized `ContainerArguments`: the definition goes in as the bytes that the client sent.
    fn arguments(&self, task: TaskId, function: &Function, environment: &str) -> Result<Bytes, Status> {
        let app = {
            let live = self.registry.lock();
            live.apps.get(&function.app_id).cloned()
        };
        let app = app.ok_or_else(|| Status::not_found("the app is gone"))?;
        let mut layout = match &function.pinned {
            Some(version) => self.layout(CONTAINER_ORIGIN, &version.functions, &version.classes),
            None => self.layout(CONTAINER_ORIGIN, &app.functions, &app.classes),
        };
        let present: HashSet<String> = layout.objects.iter().map(|object| object.object_id.clone()).collect();
        let own = function.base.unwrap_or(function.id).to_string();
        if !present.contains(&own) {
            // A build function is not published, and the container looks itself up all the same.
            layout.objects.push(api::Object {
                object_id: own,
                handle_metadata_oneof: Some(api::object::HandleMetadataOneof::FunctionHandleMetadata(
                    function.metadata.clone(),
                )),
            });
        }
        // The container resolves each dependency of its definition in the layout.
        for dependency in &function.definition.function.object_dependencies {
            if !layout.objects.iter().any(|object| object.object_id == dependency.object_id) {
                layout.objects.push(api::Object {
                    object_id: dependency.object_id.clone(),
                    handle_metadata_oneof: None,
                });
            }
        }
        let arguments = api::ContainerArguments {
            task_id: task.to_string(),
            function_id: function.id.to_string(),
            app_id: function.app_id.to_string(),
            serialized_params: function.serialized_params.clone(),
            environment_name: environment.to_string(),
            app_layout: Some(layout),
            ..Default::default()
        };
        let mut bytes = arguments.encode_to_vec();
        wire::append(&mut bytes, FUNCTION_DEF, &function.definition.raw);
        Ok(bytes.into())
    }

    /// What a container may write at most. What a build function writes becomes a layer and is not bounded.
    fn disk_max_mib(&self, definition: &api::Function) -> Option<u32> {
        let asked = definition.resources.as_ref().map_or(0, |resources| resources.ephemeral_disk_mb);
        let bound = (asked > 0).then_some(asked).or(self.machine.disk_mib);
        bound.filter(|_| !definition.is_builder_function)
    }

    fn limits(&self, definition: &api::Function) -> Limits {
        let asked = definition.resources.clone().unwrap_or_default();
        let reserved = crate::definition::reserved(&asked);
        let mib = |mib: u32| u64::from(mib) << 20;
        let memory_max_bytes = (asked.memory_mb_max > 0).then(|| mib(asked.memory_mb_max));
        let half_of_machine = (self.machine.memory_mib << 20) / 2;
        Limits {
            cpu_shares_milli: reserved.milli_cpu,
            cpu_max_milli: (asked.milli_cpu_max > 0).then_some(asked.milli_cpu_max),
            memory_low_bytes: mib(reserved.memory_mib),
            memory_max_bytes,
            pids_max: PIDS_MAX,
            shm_bytes: memory_max_bytes.unwrap_or(half_of_machine).max(SHM_BYTES_MIN),
            disk_max_bytes: self.disk_max_mib(definition).map(mib),
        }
    }
}

/// The module that a container runs: the official one, or ours that prepares the lean ways first, and that templates
/// can be made of.
fn entrypoint(env: &BTreeMap<String, String>, has_lean_runtime: bool, templates: bool) -> &'static str {
    let is_off = env.get(LEAN_SWITCH).is_none_or(|switch| switch.is_empty() || switch == "off");
    if has_lean_runtime && (templates || !is_off) { "evoke_runtime" } else { "modal._container_entrypoint" }
}

/// The name of the layer that a build function's container commits.
pub(crate) fn layer_name(task: TaskId) -> String {
    format!("run-{}", task.suffix())
}

/// What an attempt in this container runs with, for replay and audit.
fn with_bytes(function: &Function, assignment: &Assignment) -> Bytes {
    let definition = &function.definition.function;
    let record = serde_json::json!({
        "definition": function.definition_id.to_string(),
        "generation": function.generation,
        "image": definition.image_id,
        "mounts": definition.mount_ids,
        "secrets": definition.secret_ids,
        "gpus": assignment.gpus,
        "layers": assignment.layers.iter().map(|layer| layer.path.display().to_string()).collect::<Vec<_>>(),
    });
    record.to_string().into_bytes().into()
}
