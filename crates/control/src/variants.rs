//! Variants of a function: bound to class parameters, or with options of their own. Each is a pool of its own
//! that follows its base when that is published again.

use crate::definition::{Definition, data_of};
use crate::functions::function_row;
use crate::registry::Function;
use crate::{Control, parse_id, stored};
use bytes::Bytes;
use evoke_core::FunctionId;
use evoke_proto::api::function_data::RankedFunction;
use evoke_proto::{CallContext, Status, api};
use evoke_store::{FunctionRow, FunctionWrite, Grade};
use prost::Message;
use sha2::{Digest, Sha256};
use std::cmp::Reverse;
use std::sync::Arc;

/// Variants that are ordered by their containers; a client that asks for more gets them by age, in pages.
const RANKED_MAX: usize = 1_000;
/// Variants of one page.
const PAGE_MAX: usize = 500;

impl Control {
    pub(crate) async fn function_bind_params(
        self: Arc<Self>,
        context: CallContext,
        request: api::FunctionBindParamsRequest,
    ) -> Result<api::FunctionBindParamsResponse, Status> {
        let mut base = self.function(&request.function_id)?;
        let mut options = request.function_options.clone().unwrap_or_default();
        if let Some(version) = options.pinned_app_version.take().filter(|_| base.pinned.is_none()) {
            let app = self.app(&base.app_id.to_string())?;
            base = self.pin(base.id, &self.pinned_version(&app, version).await?).await?;
        }
        if request.serialized_params.is_empty() && options == api::FunctionOptions::default() {
            return Ok(self.bound_reply(&context, &base));
        }
        let variant = variant_key(&request);
        let id = bound_id(base.id, &variant);
        let existing = self.registry.function(id).filter(|found| found.definition_id == base.definition_id);
        if let Some(existing) = existing {
            return Ok(self.bound_reply(&context, &existing));
        }
        let function = self.variant(&base, id, &request.serialized_params, Arc::new(options))?;
        if let Some(reason) = &function.fit.refusal {
            context.warn(format!("{}: {reason}", function.tag));
        }
        let row = function_row(&function, Some(variant), request.encode_to_vec(), self.now());
        let reply = self.bound_reply(&context, &function);
        self.commit(&context, vec![FunctionWrite::Put(row).into()], Grade::Synced, &reply).await?;
        self.registry.lock().functions.insert(id, Arc::new(function));
        self.make_live(id).await?;
        Ok(reply)
    }

    /// Makes the variant `id` of `base` that `request`, which names no options, asks for.
    pub(crate) async fn make_variant(
        &self,
        base: &Function,
        id: FunctionId,
        request: &api::FunctionBindParamsRequest,
    ) -> Result<(), Status> {
        let function = self.variant(base, id, &request.serialized_params, Arc::default())?;
        let row = function_row(&function, Some(variant_key(request)), request.encode_to_vec(), self.now());
        self.submit(vec![FunctionWrite::Put(row).into()], Grade::Synced).await?;
        self.registry.lock().functions.insert(id, Arc::new(function));
        self.make_live(id).await
    }

    /// A variant of `base`: its own pool, its options over the base's settings.
    pub(crate) fn variant(
        &self,
        base: &Function,
        id: FunctionId,
        params: &Bytes,
        options: Arc<api::FunctionOptions>,
    ) -> Result<Function, Status> {
        let definition = with_options(&base.definition, &options);
        let fit = self.machine.fit(&definition)?;
        let mut metadata = base.metadata.clone();
        metadata.base_function_id = base.id.to_string();
        Ok(Function {
            id,
            metadata,
            base: Some(base.id),
            serialized_params: params.clone(),
            options,
            scaling: api::AutoscalerConfiguration::default(),
            fit,
            definition: Arc::new(definition),
            ..base.clone()
        })
    }

    fn bound_reply(&self, context: &CallContext, function: &Function) -> api::FunctionBindParamsResponse {
        api::FunctionBindParamsResponse {
            bound_function_id: function.id.to_string(),
            handle_metadata: Some(self.handle(&self.registry.lock(), &context.origin, function)),
        }
    }

    pub(crate) async fn function_list_variants(
        self: Arc<Self>,
        _context: CallContext,
        request: api::FunctionListVariantsRequest,
    ) -> Result<api::FunctionListVariantsResponse, Status> {
        let base: FunctionId = parse_id(&request.function_id)?;
        let mut rows = self.store.functions().variants(base).await.map_err(stored)?;
        let limit = request.limit as usize;
        let ranked = limit > 0 && limit.max(rows.len()) <= RANKED_MAX && request.cursor.is_none();
        let mut next_cursor = None;
        if ranked {
            let containers =
                |id| self.calls.look(|engine| engine.pool_info(id)).unwrap_or_default().containers;
            rows.sort_by_cached_key(|row| (Reverse(containers(row.id)), Reverse(row.created_at), row.id));
            rows.truncate(limit);
        } else {
            rows.sort_by_key(|row| (Reverse(row.created_at), row.id));
            if let Some(cursor) = &request.cursor {
                let after = |row: &FunctionRow| {
                    let at = row.created_at.as_secs_f64();
                    at < cursor.created_before
                        || at <= cursor.created_before && row.id.to_string() > cursor.function_id
                };
                rows.retain(after);
            }
            if rows.len() > PAGE_MAX {
                rows.truncate(PAGE_MAX);
                next_cursor = rows.last().map(|row| api::FunctionVariantCursor {
                    created_before: row.created_at.as_secs_f64(),
                    function_id: row.id.to_string(),
                });
            }
        }
        let infos = rows.iter().map(variant_info).collect::<Result<_, _>>()?;
        Ok(api::FunctionListVariantsResponse { infos, next_cursor, ordered_by_task_count: ranked })
    }
}

fn variant_info(row: &FunctionRow) -> Result<api::FunctionVariantInfo, Status> {
    let request = api::FunctionBindParamsRequest::decode(row.body.as_slice())
        .map_err(|error| Status::new(evoke_proto::Code::DataLoss, format!("stored variant: {error}")))?;
    let options = request.function_options.filter(|options| *options != api::FunctionOptions::default());
    Ok(api::FunctionVariantInfo {
        function_id: row.id.to_string(),
        serialized_params: request.serialized_params,
        function_options: options,
    })
}

/// What tells a variant from others of the same base.
pub(crate) fn variant_key(request: &api::FunctionBindParamsRequest) -> Vec<u8> {
    let mut hash = Sha256::new();
    hash.update((request.serialized_params.len() as u64).to_le_bytes());
    hash.update(&request.serialized_params);
    hash.update(request.function_options.clone().unwrap_or_default().encode_to_vec());
    hash.finalize().to_vec()
}

/// The same base, parameters and options give the same id, as the client expects.
pub(crate) fn bound_id(base: FunctionId, variant: &[u8]) -> FunctionId {
    let digest = Sha256::new().chain_update(base.suffix()).chain_update(variant).finalize();
    let mut bits = [0u8; 16];
    bits.copy_from_slice(&digest[..16]);
    FunctionId::from_bits(u128::from_be_bytes(bits))
}

/// A definition with options over its settings.
fn with_options(base: &Definition, options: &api::FunctionOptions) -> Definition {
    let mut definition = base.clone();
    if *options == api::FunctionOptions::default() {
        return definition;
    }
    let patch = apply_options(&mut definition.function, options);
    let replaces = (options.replace_volume_mounts && !base.function.volume_mounts.is_empty())
        || (options.replace_cloud_bucket_mounts && !base.function.cloud_bucket_mounts.is_empty());
    if replaces {
        // A list cannot be replaced by what is appended. Fields of a newer client are lost here.
        definition.raw = definition.function.encode_to_vec().into();
    } else if patch != api::Function::default() {
        // Protobuf merges what is appended into what is there, field by field.
        let mut raw = definition.raw.to_vec();
        raw.extend_from_slice(&patch.encode_to_vec());
        definition.raw = raw.into();
    }
    definition.data = data_of(&definition.function);
    let other_gpu = options.resources.as_ref().and_then(|asked| asked.gpu_config.as_ref());
    if other_gpu.is_none_or(|gpu| gpu.count == 0) {
        definition.data.ranked_functions = with_gpus_of(&base.data.ranked_functions, &definition.function);
    }
    definition
}

/// The candidates of a list of GPUs, each as `function` is otherwise.
fn with_gpus_of(ranked: &[RankedFunction], function: &api::Function) -> Vec<RankedFunction> {
    let candidate = |ranked: &RankedFunction| {
        let mut function = function.clone();
        let gpu = ranked.function.as_ref().and_then(|f| f.resources.as_ref()?.gpu_config.clone());
        if let Some(resources) = &mut function.resources {
            resources.gpu_config = gpu;
        }
        RankedFunction { rank: ranked.rank, function: Some(function) }
    };
    ranked.iter().map(candidate).collect()
}

/// Applies options to `function` and gives the same changes as a message to append for the container.
fn apply_options(function: &mut api::Function, options: &api::FunctionOptions) -> api::Function {
    let mut patch = api::Function::default();
    let mut set = |apply: &dyn Fn(&mut api::Function)| {
        apply(function);
        apply(&mut patch);
    };
    if let Some(seconds) = options.timeout_secs {
        set(&|f| f.timeout_secs = seconds);
    }
    if let Some(count) = options.max_concurrent_inputs {
        set(&|f| f.max_concurrent_inputs = count);
        // A target belongs to its maximum: with a new one it is the maximum, unless it is given, too.
        set(&|f| f.target_concurrent_inputs = count);
    }
    if let Some(count) = options.target_concurrent_inputs {
        set(&|f| f.target_concurrent_inputs = count);
    }
    if let Some(size) = options.batch_max_size {
        set(&|f| f.batch_max_size = size);
    }
    if let Some(linger) = options.batch_linger_ms {
        set(&|f| f.batch_linger_ms = linger);
    }
    if let Some(policy) = options.retry_policy {
        set(&|f| f.retry_policy = Some(policy));
    }
    let mut autoscaler = function.autoscaler_settings.unwrap_or_default();
    autoscaler.min_containers = options.warm_pool_size.or(autoscaler.min_containers);
    autoscaler.max_containers = options.concurrency_limit.or(autoscaler.max_containers);
    autoscaler.buffer_containers = options.buffer_containers.or(autoscaler.buffer_containers);
    autoscaler.scaledown_window = options.task_idle_timeout_secs.or(autoscaler.scaledown_window);
    function.autoscaler_settings = Some(autoscaler);
    if let Some(asked) = &options.resources {
        let mut resources = function.resources.clone().unwrap_or_default();
        let keep = |new: u32, old: u32| if new > 0 { new } else { old };
        resources.memory_mb = keep(asked.memory_mb, resources.memory_mb);
        resources.memory_mb_max = keep(asked.memory_mb_max, resources.memory_mb_max);
        resources.milli_cpu = keep(asked.milli_cpu, resources.milli_cpu);
        resources.milli_cpu_max = keep(asked.milli_cpu_max, resources.milli_cpu_max);
        resources.ephemeral_disk_mb = keep(asked.ephemeral_disk_mb, resources.ephemeral_disk_mb);
        // A client that asks for no GPU here sends an empty one.
        let gpu = asked.gpu_config.clone().filter(|gpu| gpu.count > 0);
        resources.gpu_config = gpu.or(resources.gpu_config);
        function.resources = Some(resources);
    }
    // Where it may run is decided here alone; its container need not know.
    if let Some(placement) = &options.scheduler_placement {
        function.scheduler_placement = Some(placement.clone());
    }
    if let Some(cloud) = &options.cloud_provider_str {
        function.cloud_provider_str.clone_from(cloud);
    }
    if options.replace_volume_mounts {
        function.volume_mounts.clone_from(&options.volume_mounts);
        patch.volume_mounts.clone_from(&options.volume_mounts);
    }
    if options.replace_cloud_bucket_mounts {
        function.cloud_bucket_mounts.clone_from(&options.cloud_bucket_mounts);
        patch.cloud_bucket_mounts.clone_from(&options.cloud_bucket_mounts);
    }
    if options.replace_secret_ids {
        function.secret_ids.clone_from(&options.secret_ids);
    }
    patch
}
