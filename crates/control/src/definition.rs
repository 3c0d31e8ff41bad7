//! What a client's `FunctionCreate` means: takes the request apart once, keeps the definition's own bytes for
//! the container, and derives from it the handle metadata that clients want back and the settings that the
//! engine schedules by. Pure: no store, no clock.

use crate::wire;
use bytes::Bytes;
use evoke_core::{AppId, DefinitionId, Error, FunctionId, Gpus, Resources, Result};
use evoke_engine::{Autoscaler, FunctionConf, RetryPolicy};
use evoke_proto::api;
use prost::Message;

/// Largest payload that travels inline for spawned calls (bytes). The client's own default of 8 KiB would
/// send nearly every spawned input through a blob; the control plane stores 2 MiB inline as it does for
/// connected calls.
const ASYNC_INLINE_BYTES_MAX: u64 = 2 << 20;
/// Default time an input may run (seconds), as the official documentation has it.
const TIMEOUT_SECS_DEFAULT: u32 = 300;
/// Default idle time before a container is stopped (seconds), as the official documentation has it.
const SCALEDOWN_WINDOW_SECS_DEFAULT: u32 = 60;
/// Default reservation of a container: an eighth of a core and 128 MiB, as the official documentation has it.
const MILLI_CPU_DEFAULT: u32 = 125;
/// See [`MILLI_CPU_DEFAULT`].
const MEMORY_MIB_DEFAULT: u32 = 128;

/// Requests at a time that a server in a container is given at most, whatever it takes.
const SERVER_REQUESTS_MAX: u32 = 10_000;

/// Field numbers of the protocol that are read at the level of bytes.
mod field {
    pub const CREATE_FUNCTION: u32 = 1;
    pub const CREATE_FUNCTION_DATA: u32 = 9;
    pub const DATA_RANKED_FUNCTIONS: u32 = 18;
    pub const RANKED_FUNCTION: u32 = 2;
}

/// One immutable definition of a function, decoded, together with the bytes it came in.
#[derive(Debug, Clone)]
pub struct Definition {
    /// The `Function` message as the client encoded it.
    pub raw: Bytes,
    /// The same, decoded as far as this server knows its fields.
    pub function: api::Function,
    /// What the client reads settings back from; always has a first ranked function.
    pub data: api::FunctionData,
}

impl Definition {
    /// Takes `FunctionCreateRequest` bytes apart. A request has either a `function` or, for a list of GPUs,
    /// a `function_data` with ranked candidates; the first candidate is the definition then.
    pub fn from_create_request(body: &Bytes, request: &api::FunctionCreateRequest) -> Result<Self> {
        if let Some(function) = &request.function {
            let raw = wire::field(body, field::CREATE_FUNCTION)
                .ok_or_else(|| Error::invalid("the function definition is malformed"))?;
            let data = data_of(function);
            return Ok(Self { raw, function: function.clone(), data });
        }
        let data =
            request.function_data.clone().ok_or_else(|| Error::invalid("the request defines no function"))?;
        let first = data
            .ranked_functions
            .first()
            .and_then(|ranked| ranked.function.clone())
            .ok_or_else(|| Error::invalid("the request names no candidate for the function"))?;
        Ok(Self {
            raw: first_ranked(body).unwrap_or_else(|| first.encode_to_vec().into()),
            function: first,
            data,
        })
    }

    /// The definition from what the store keeps (the create request's bytes).
    pub fn from_stored(body: &Bytes) -> Result<Self> {
        let request = api::FunctionCreateRequest::decode(body.clone()).map_err(|error| {
            Error::new(evoke_core::ErrorCode::DataLoss, format!("stored function: {error}"))
        })?;
        Self::from_create_request(body, &request)
    }

    /// Whether a container could not tell the two apart. Clients encode maps in any order and name mounts in
    /// any; a field that this server does not know shows in the length.
    pub fn is_same(&self, other: &Self) -> bool {
        fn ordered(definition: &Definition) -> (api::Function, api::FunctionData) {
            let (mut function, mut data) = (definition.function.clone(), definition.data.clone());
            let ranked = data.ranked_functions.iter_mut().filter_map(|ranked| ranked.function.as_mut());
            for function in ranked.chain([&mut function]) {
                function.mount_ids.sort();
                function.object_dependencies.sort_by(|a, b| a.object_id.cmp(&b.object_id));
            }
            (function, data)
        }
        self.raw == other.raw || (self.raw.len() == other.raw.len() && ordered(self) == ordered(other))
    }

    /// The handle metadata for a function of this definition.
    pub fn metadata(&self, app: AppId, definition: DefinitionId) -> api::FunctionHandleMetadata {
        let function = &self.function;
        let methods = function.method_definitions.iter();
        api::FunctionHandleMetadata {
            function_name: function.function_name.clone(),
            function_type: function.function_type,
            is_method: function.is_method,
            definition_id: definition.to_string(),
            class_parameter_info: function.class_parameter_info.clone(),
            method_handle_metadata: methods
                .map(|(name, method)| (name.clone(), method_metadata(function, name, method)))
                .collect(),
            function_schema: function.function_schema.clone(),
            max_async_object_size_bytes: Some(ASYNC_INLINE_BYTES_MAX),
            supported_input_formats: function.supported_input_formats.clone(),
            supported_output_formats: function.supported_output_formats.clone(),
            app_id: app.to_string(),
            ..Default::default()
        }
    }

    /// The settings the engine schedules by.
    pub fn conf(
        &self,
        id: FunctionId,
        app: AppId,
        definition: DefinitionId,
        generation: u64,
    ) -> FunctionConf {
        let function = &self.function;
        let timeout = positive(function.timeout_secs).unwrap_or(TIMEOUT_SECS_DEFAULT);
        let mut startup = positive(function.startup_timeout_secs).unwrap_or(timeout);
        let concurrency = function.max_concurrent_inputs.max(1);
        let target = positive(function.target_concurrent_inputs).unwrap_or(concurrency);
        let mut slots = Slots { timeout, concurrency, target };
        if let Some(http) = function.http_config.as_ref().filter(|_| function.is_server) {
            startup = positive(http.startup_timeout).unwrap_or(startup);
            slots = self.slots_of_server(http);
        }
        // What a function that makes an image wrote is taken when its container ends.
        let single_use =
            function.single_use_containers || function.max_inputs == 1 || function.is_builder_function;
        FunctionConf {
            id,
            app_id: app,
            environment_id: None,
            definition_id: definition,
            generation,
            autoscaler: self.autoscaler(),
            max_concurrent_inputs: slots.concurrency,
            target_concurrent_inputs: slots.target,
            batch_max_size: function.batch_max_size,
            batch_linger_ms: function.batch_linger_ms,
            single_use,
            max_inputs_per_container: positive(function.max_inputs),
            retry: self.retry(),
            timeout_ms: u64::from(slots.timeout) * 1000,
            startup_timeout_ms: u64::from(startup) * 1000,
            is_generator: function.function_type() == api::function::FunctionType::Generator,
            is_server: function.is_server,
            resources: self.resources(),
            gpus: Vec::new(),
            unsatisfiable: None,
        }
    }

    /// What a container with a server of the user's takes at a time: the server itself bounds that. How many
    /// containers there are follows from the target; what is under way when one is let go has the grace period.
    fn slots_of_server(&self, http: &api::HttpConfig) -> Slots {
        let settings = self.function.autoscaler_settings.unwrap_or_default();
        let asked = settings.target_concurrency_float.map(|target| target.ceil() as u32);
        let asked = asked.or(settings.target_concurrency).or(positive(http.target_concurrency));
        let target = asked.filter(|target| *target > 0).unwrap_or(SERVER_REQUESTS_MAX);
        let concurrency = SERVER_REQUESTS_MAX;
        Slots { timeout: http.exit_grace_period.max(1), concurrency, target: target.min(concurrency) }
    }

    /// What a container of this function reserves, GPUs apart.
    pub fn resources(&self) -> Resources {
        reserved(&self.function.resources.clone().unwrap_or_default())
    }

    /// The GPUs this function asks for, one of which will do, the most wanted first; none where it needs none.
    pub fn gpus(&self) -> Vec<api::GpuConfig> {
        let mut ranked: Vec<_> = self.data.ranked_functions.iter().collect();
        ranked.sort_by_key(|candidate| candidate.rank);
        let functions = ranked.into_iter().filter_map(|candidate| candidate.function.as_ref());
        let asked = functions.map(|function| function.resources.as_ref()?.gpu_config.clone());
        // A candidate that needs no GPU can run anywhere: what would come after it never counts.
        asked.map_while(|gpu| gpu.filter(|gpu| gpu.count > 0)).collect()
    }

    /// What the definition asks for and this server does not do yet, in words for its author.
    pub fn ignored(&self) -> Vec<&'static str> {
        let function = &self.function;
        let all = [(function.proxy_id.is_some(), "proxy= is not served by this Evoke version")];
        all.into_iter().filter(|(asked, _)| *asked).map(|(_, text)| text).collect()
    }

    fn retry(&self) -> RetryPolicy {
        let policy = self.function.retry_policy.unwrap_or_default();
        RetryPolicy {
            retries: policy.retries,
            backoff_coefficient: if policy.backoff_coefficient > 0.0 {
                policy.backoff_coefficient
            } else {
                1.0
            },
            initial_delay_ms: u64::from(policy.initial_delay_ms),
            max_delay_ms: u64::from(policy.max_delay_ms),
        }
    }

    /// The autoscaler's settings; the older fields stand in where a client does not send the newer message.
    fn autoscaler(&self) -> Autoscaler {
        let function = &self.function;
        let new = function.autoscaler_settings.unwrap_or_default();
        let window = new.scaledown_window.or_else(|| positive(function.task_idle_timeout_secs));
        Autoscaler {
            min: new.min_containers.unwrap_or(function.warm_pool_size),
            max: new.max_containers.or_else(|| positive(function.concurrency_limit)).filter(|max| *max > 0),
            buffer: new.buffer_containers.unwrap_or(function.experimental_buffer_containers),
            scaledown_window_ms: u64::from(window.unwrap_or(SCALEDOWN_WINDOW_SECS_DEFAULT)) * 1000,
        }
    }
}

/// What a container takes at a time, and for how long (seconds).
struct Slots {
    timeout: u32,
    concurrency: u32,
    target: u32,
}

/// The metadata of one method of a class's service function, or of a plain function's entry.
fn method_metadata(
    function: &api::Function,
    name: &str,
    method: &api::MethodDefinition,
) -> api::FunctionHandleMetadata {
    api::FunctionHandleMetadata {
        function_name: method.function_name.clone(),
        function_type: method.function_type,
        is_method: true,
        use_method_name: name.to_string(),
        function_schema: method.function_schema.clone(),
        web_url: method.web_url.clone(),
        max_async_object_size_bytes: Some(ASYNC_INLINE_BYTES_MAX),
        supported_input_formats: method.supported_input_formats.clone(),
        supported_output_formats: method.supported_output_formats.clone(),
        class_parameter_info: function.class_parameter_info.clone(),
        ..Default::default()
    }
}

/// The metadata of a function that only has been announced.
pub fn precreated_metadata(
    app: AppId,
    request: &api::FunctionPrecreateRequest,
) -> api::FunctionHandleMetadata {
    let bare = api::Function::default();
    let methods = request.method_definitions.iter();
    api::FunctionHandleMetadata {
        function_name: request.function_name.clone(),
        function_type: request.function_type,
        method_handle_metadata: methods
            .map(|(name, method)| (name.clone(), method_metadata(&bare, name, method)))
            .collect(),
        function_schema: request.function_schema.clone(),
        max_async_object_size_bytes: Some(ASYNC_INLINE_BYTES_MAX),
        supported_input_formats: request.supported_input_formats.clone(),
        supported_output_formats: request.supported_output_formats.clone(),
        app_id: app.to_string(),
        ..Default::default()
    }
}

/// `FunctionData` for a request that carried a plain `Function`: the same settings, and the function as the
/// only candidate.
pub fn data_of(function: &api::Function) -> api::FunctionData {
    api::FunctionData {
        module_name: function.module_name.clone(),
        function_name: function.function_name.clone(),
        implementation_name: function.implementation_name.clone(),
        function_type: function.function_type,
        warm_pool_size: function.warm_pool_size,
        concurrency_limit: function.concurrency_limit,
        task_idle_timeout_secs: function.task_idle_timeout_secs,
        timeout_secs: function.timeout_secs,
        startup_timeout_secs: function.startup_timeout_secs,
        web_url: function.web_url.clone(),
        webhook_config: function.webhook_config.clone(),
        method_definitions: function.method_definitions.clone(),
        method_definitions_set: function.method_definitions_set,
        is_class: function.is_class,
        class_parameter_info: function.class_parameter_info.clone(),
        is_method: function.is_method,
        schedule: function.schedule.clone(),
        untrusted: function.untrusted,
        autoscaler_settings: function.autoscaler_settings,
        function_schema: function.function_schema.clone(),
        experimental_options: function.experimental_options.clone(),
        supported_input_formats: function.supported_input_formats.clone(),
        supported_output_formats: function.supported_output_formats.clone(),
        http_config: function.http_config.clone(),
        is_server: function.is_server,
        routing_region: function.routing_region.clone(),
        ranked_functions: vec![api::function_data::RankedFunction {
            rank: 0,
            function: Some(function.clone()),
        }],
        ..Default::default()
    }
}

fn first_ranked(body: &Bytes) -> Option<Bytes> {
    let data = wire::field(body, field::CREATE_FUNCTION_DATA)?;
    let ranked = wire::first_field(&data, field::DATA_RANKED_FUNCTIONS)?;
    wire::field(&ranked, field::RANKED_FUNCTION)
}

/// What a container that asks for `asked` reserves, GPUs apart.
pub fn reserved(asked: &api::Resources) -> Resources {
    Resources {
        milli_cpu: positive(asked.milli_cpu).unwrap_or(MILLI_CPU_DEFAULT),
        memory_mib: positive(asked.memory_mb).unwrap_or(MEMORY_MIB_DEFAULT),
        gpus: Gpus::NONE,
    }
}

fn positive(value: u32) -> Option<u32> {
    (value > 0).then_some(value)
}
