//! The RPCs that `.remote()` and `.map` of one function need, from both ends.

use bytes::Bytes;
use evoke_core::{AppId, CallId, Clock, FunctionId, SystemClock};
use evoke_proto::{BoxStream, CallContext, Dispatcher, DispatcherBuilder, Status, api};
use futures::StreamExt;
use prost::Message;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

use crate::calls::Calls;
use crate::container::Launcher;

/// The only app's id.
const APP_BITS: u128 = 1;
/// The only function's id.
const FUNCTION_BITS: u128 = 1;
/// Unfinished inputs that a map's client may have outstanding, as Evoke says.
const INPUTS_OUTSTANDING_MAX: u32 = 1000;
/// The longest that one poll is held (seconds).
const POLL_SECS_MAX: f32 = 60.0;
/// How long a heartbeat's answer is held back, as Evoke does.
const HEARTBEAT_HOLD: Duration = Duration::from_secs(12);

/// Everything that the server knows.
pub(crate) struct Server {
    launcher: Launcher,
    calls: Mutex<Calls>,
    /// The container's arguments, made of the function's definition.
    arguments: Mutex<Bytes>,
    started: AtomicBool,
}

impl Server {
    pub(crate) fn new(launcher: Launcher) -> Arc<Self> {
        Arc::new(Self {
            launcher,
            calls: Mutex::new(Calls::new()),
            arguments: Mutex::default(),
            started: AtomicBool::new(false),
        })
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn arguments(&self) -> MutexGuard<'_, Bytes> {
        self.arguments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn function_id() -> String {
        FunctionId::from_bits(FUNCTION_BITS).to_string()
    }

    fn app_id() -> String {
        AppId::from_bits(APP_BITS).to_string()
    }

    fn define(&self, request: api::FunctionCreateRequest) -> Result<api::FunctionCreateResponse, Status> {
        let function = request.function.ok_or_else(|| Status::invalid("no function"))?;
        let metadata = metadata_of(&function);
        let arguments = api::ContainerArguments {
            task_id: self.launcher.task.to_string(),
            function_id: Self::function_id(),
            app_id: Self::app_id(),
            environment_name: "main".into(),
            function_def: Some(function.clone()),
            app_layout: Some(layout(&function, &metadata)),
            ..Default::default()
        };
        *self.arguments() = arguments.encode_to_vec().into();
        Ok(api::FunctionCreateResponse {
            function_id: Self::function_id(),
            function_data: Some(data_of(&function)),
            function: Some(function),
            handle_metadata: Some(metadata),
            ..Default::default()
        })
    }

    /// The container is started by the first input.
    fn ensure_container(&self) -> Result<(), Status> {
        if self.started.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        let started = self.launcher.start(&self.arguments());
        let mut child = started.map_err(|error| Status::internal(format!("{error:#}")))?;
        tokio::spawn(async move {
            let ended = child.wait().await;
            // Nothing can be measured any more, and the client would wait for ever.
            eprintln!("the container has ended: {ended:?}");
            std::process::exit(1);
        });
        Ok(())
    }

    fn map(&self, request: api::FunctionMapRequest) -> Result<api::FunctionMapResponse, Status> {
        self.ensure_container()?;
        let mut calls = self.calls();
        let call = calls.begin();
        let invocation = request.function_call_invocation_type;
        let accepted = calls.put(call, request.pipelined_inputs, invocation)?;
        Ok(api::FunctionMapResponse {
            function_call_id: call.to_string(),
            pipelined_inputs: accepted,
            max_inputs_outstanding: INPUTS_OUTSTANDING_MAX,
            ..Default::default()
        })
    }

    fn put_inputs(
        &self,
        request: api::FunctionPutInputsRequest,
    ) -> Result<api::FunctionPutInputsResponse, Status> {
        let call = call_of(&request.function_call_id)?;
        let invocation = api::FunctionCallInvocationType::Sync as i32;
        let inputs = self.calls().put(call, request.inputs, invocation)?;
        Ok(api::FunctionPutInputsResponse { inputs })
    }

    async fn get_inputs(&self) -> Result<api::FunctionGetInputsResponse, Status> {
        loop {
            let arrived = {
                let mut calls = self.calls();
                if let Some(next) = calls.take() {
                    return Ok(api::FunctionGetInputsResponse { inputs: vec![next], ..Default::default() });
                }
                calls.arrived.clone()
            };
            // It keeps one notice, so an input that comes in between is not missed.
            arrived.notified().await;
        }
    }

    fn put_outputs(&self, request: api::FunctionPutOutputsRequest) {
        self.calls().answer(request.outputs, SystemClock.now(), &self.launcher.task.to_string());
    }

    async fn get_outputs(
        &self,
        request: api::FunctionGetOutputsRequest,
    ) -> Result<api::FunctionGetOutputsResponse, Status> {
        let call = call_of(&request.function_call_id)?;
        let after = request.last_entry_id.split('-').next().and_then(|n| n.parse().ok()).unwrap_or(0);
        let hold = Duration::from_secs_f32(request.timeout.clamp(0.0, POLL_SECS_MAX));
        if request.clear_on_success && request.start_idx.is_none() && hold.is_zero() {
            self.calls().forget(call);
            return Ok(api::FunctionGetOutputsResponse::default());
        }
        let deadline = Instant::now() + hold;
        loop {
            let (reply, changed) = self.calls().outputs(call, after)?;
            let mut changes = std::pin::pin!(changed.notified());
            // Registered before the second look, so that no output falls in between.
            changes.as_mut().enable();
            let reply = if reply.outputs.is_empty() { self.calls().outputs(call, after)?.0 } else { reply };
            let over = !reply.outputs.is_empty() || tokio::time::timeout_at(deadline, changes).await.is_err();
            if over {
                if request.clear_on_success && !reply.outputs.is_empty() {
                    self.calls().forget(call);
                }
                return Ok(reply);
            }
        }
    }
}

fn call_of(text: &str) -> Result<CallId, Status> {
    text.parse().map_err(|_| Status::invalid("not a call's id"))
}

fn metadata_of(function: &api::Function) -> api::FunctionHandleMetadata {
    api::FunctionHandleMetadata {
        function_name: function.function_name.clone(),
        function_type: function.function_type,
        definition_id: "de-bare".into(),
        function_schema: function.function_schema.clone(),
        supported_input_formats: function.supported_input_formats.clone(),
        supported_output_formats: function.supported_output_formats.clone(),
        app_id: Server::app_id(),
        ..Default::default()
    }
}

/// What the client reads settings back from.
fn data_of(function: &api::Function) -> api::FunctionData {
    let only = api::function_data::RankedFunction { rank: 0, function: Some(function.clone()) };
    api::FunctionData {
        module_name: function.module_name.clone(),
        function_name: function.function_name.clone(),
        function_type: function.function_type,
        timeout_secs: function.timeout_secs,
        ranked_functions: vec![only],
        ..Default::default()
    }
}

fn layout(function: &api::Function, metadata: &api::FunctionHandleMetadata) -> api::AppLayout {
    use api::object::HandleMetadataOneof::FunctionHandleMetadata;
    let id = Server::function_id();
    let own = api::Object {
        object_id: id.clone(),
        handle_metadata_oneof: Some(FunctionHandleMetadata(metadata.clone())),
    };
    // The container resolves each dependency of its definition in the layout.
    let dependencies = function.object_dependencies.iter().map(|dependency| api::Object {
        object_id: dependency.object_id.clone(),
        handle_metadata_oneof: None,
    });
    api::AppLayout {
        objects: std::iter::once(own).chain(dependencies).collect(),
        function_ids: [(function.function_name.clone(), id)].into(),
        ..Default::default()
    }
}

/// The dispatcher over all of it.
pub(crate) fn dispatcher(server: &Arc<Server>) -> Dispatcher {
    container_side(client_side(objects(Dispatcher::builder(), server), server), server).build()
}

/// What the client asks before and after its calls: every object is taken as it is.
fn objects(builder: DispatcherBuilder, server: &Arc<Server>) -> DispatcherBuilder {
    use api::rpc;
    let server = server.clone();
    builder
        .unary(rpc::ClientHello, |_context, ()| async {
            Ok(api::ClientHelloResponse { image_builder_version: "2025.06".into(), ..Default::default() })
        })
        .unary(rpc::EnvironmentGetOrCreate, |_context, _request| async {
            let metadata = api::EnvironmentMetadata {
                name: "main".into(),
                settings: Some(api::EnvironmentSettings {
                    image_builder_version: "2025.06".into(),
                    ..Default::default()
                }),
                ..Default::default()
            };
            Ok(api::EnvironmentGetOrCreateResponse {
                environment_id: "en-bare".into(),
                metadata: Some(metadata),
            })
        })
        .unary(rpc::AppCreate, |_context, _request| async {
            Ok(api::AppCreateResponse { app_id: Server::app_id(), ..Default::default() })
        })
        .unary(rpc::AppPublish, |_context, _request| async { Ok(api::AppPublishResponse::default()) })
        .unary(rpc::AppHeartbeat, |_context, _request| async { Ok(()) })
        .unary(rpc::AppClientDisconnect, |_context, _request| async { Ok(()) })
        .server_stream(rpc::AppGetLogs, |_context: CallContext, _request| async {
            let nothing: BoxStream<Result<api::TaskLogsBatch, Status>> = futures::stream::pending().boxed();
            Ok(nothing)
        })
        .unary(rpc::ImageGetOrCreate, |_context, _request| async {
            let done = api::GenericResult {
                status: api::generic_result::GenericStatus::Success as i32,
                ..Default::default()
            };
            Ok(api::ImageGetOrCreateResponse {
                image_id: "im-bare".into(),
                result: Some(done),
                ..Default::default()
            })
        })
        .unary(rpc::MountBatchedCheckExistence, |_context, _request| async {
            Ok(api::MountBatchedCheckExistenceResponse::default())
        })
        .unary(rpc::MountPutFile, |_context, _request| async {
            Ok(api::MountPutFileResponse { exists: true, ..Default::default() })
        })
        .unary(rpc::MountGetOrCreate, |_context, _request| async {
            let metadata = api::MountHandleMetadata::default();
            Ok(api::MountGetOrCreateResponse { mount_id: "mo-bare".into(), handle_metadata: Some(metadata) })
        })
        .unary(rpc::FunctionPrecreate, |_context, _request| async {
            Ok(api::FunctionPrecreateResponse { function_id: Server::function_id(), handle_metadata: None })
        })
        .unary(rpc::FunctionCreate, move |_context, request| {
            let defined = server.define(request);
            async { defined }
        })
}

fn client_side(builder: DispatcherBuilder, server: &Arc<Server>) -> DispatcherBuilder {
    use api::rpc;
    let [map, put, outputs] = std::array::from_fn(|_| server.clone());
    builder
        .unary(rpc::FunctionMap, move |_context, request| {
            let mapped = map.map(request);
            async { mapped }
        })
        .unary(rpc::FunctionPutInputs, move |_context, request| {
            let accepted = put.put_inputs(request);
            async { accepted }
        })
        .unary(rpc::FunctionFinishInputs, |_context, _request| async { Ok(()) })
        .unary(rpc::FunctionGetOutputs, move |_context, request| {
            let server = outputs.clone();
            async move { server.get_outputs(request).await }
        })
}

fn container_side(builder: DispatcherBuilder, server: &Arc<Server>) -> DispatcherBuilder {
    use api::rpc;
    let [inputs, outputs] = std::array::from_fn(|_| server.clone());
    builder
        .unary(rpc::ContainerHello, |_context, ()| async { Ok(()) })
        .unary(rpc::ContainerHeartbeat, |_context, _request| async {
            tokio::time::sleep(HEARTBEAT_HOLD).await;
            Ok(api::ContainerHeartbeatResponse::default())
        })
        .unary(rpc::FunctionGetInputs, move |_context, _request| {
            let server = inputs.clone();
            async move { server.get_inputs().await }
        })
        .unary(rpc::FunctionPutOutputs, move |_context, request| {
            outputs.put_outputs(request);
            async { Ok(()) }
        })
        .unary(rpc::TaskResult, |_context, _request| async { Ok(()) })
}
