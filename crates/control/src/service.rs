//! The table of what is served: every RPC with its handler. What is not here answers UNIMPLEMENTED by name.

use crate::Control;
use bytes::Bytes;
use evoke_engine::Direction;
use evoke_proto::api::rpc;
use evoke_proto::{CallContext, Dispatcher, DispatcherBuilder, Reply, Service, Status, api};
use std::sync::{Arc, Weak};

/// Handlers that get the context and the decoded request.
macro_rules! serve {
    ($builder:ident, $me:ident, { $($method:ident => $handler:ident,)* }) => {
        $(let $builder = {
            let me = $me.clone();
            $builder.unary(rpc::$method, move |context, request| {
                let me = me.clone();
                async move { alive(&me)?.$handler(context, request).await }
            })
        };)*
    };
}

fn alive(me: &Weak<Control>) -> Result<Arc<Control>, Status> {
    me.upgrade().ok_or_else(|| Status::unavailable("The server is shutting down"))
}

/// The dispatcher over all handlers of `me`.
pub(crate) fn dispatcher(me: Weak<Control>) -> Dispatcher {
    let builder = images(data(unary(Dispatcher::builder(), &me), &me), &me);
    streams(volumes(builder, &me), &me).build()
}

fn unary(builder: DispatcherBuilder, me: &Weak<Control>) -> DispatcherBuilder {
    serve!(builder, me, {
        AppClientDisconnect => app_client_disconnect,
        AppCountLogs => app_count_logs,
        AppCreate => app_create,
        AppDeploymentHistory => app_deployment_history,
        AppFetchLogs => app_fetch_logs,
        AppGetByDeploymentName => app_get_by_deployment_name,
        AppGetInfo => app_get_info,
        AppGetLayout => app_get_layout,
        AppGetLifecycle => app_get_lifecycle,
        AppGetOrCreate => app_get_or_create,
        AppGetTags => app_get_tags,
        AppGetTimeRangeStats => app_get_time_range_stats,
        AppHeartbeat => app_heartbeat,
        AppList => app_list,
        AppPromote => app_promote,
        AppPublish => app_publish,
        AppRollback => app_rollback,
        AppRollover => app_rollover,
        AppSetTags => app_set_tags,
        AppStop => app_stop,
        AuthTokenGet => auth_token_get,
        BlobCreate => blob_create,
        BlobGet => blob_get,
        ClassCreate => class_create,
        ClassGet => class_get,
        ClientHello => client_hello,
        ContainerHeartbeat => container_heartbeat,
        ContainerHello => container_hello,
        ContainerServerLifecycleReady => container_server_lifecycle_ready,
        ContainerStop => container_stop,
        FunctionBindParams => function_bind_params,
        FunctionCallCancel => function_call_cancel,
        FunctionCallCount => function_call_count,
        FunctionCallFetch => function_call_fetch,
        FunctionCallFromId => function_call_from_id,
        FunctionCallGetInfo => function_call_get_info,
        FunctionCallPutDataOut => put_data_out,
        FunctionFinishInputs => function_finish_inputs,
        FunctionGet => function_get,
        FunctionGetById => function_get_by_id,
        FunctionGetCallGraph => function_get_call_graph,
        FunctionGetCurrentStats => function_get_current_stats,
        FunctionGetDynamicConcurrency => function_get_dynamic_concurrency,
        FunctionGetInputs => function_get_inputs,
        FunctionGetOutputs => function_get_outputs,
        FunctionGetSchedulingParams => function_get_scheduling_params,
        FunctionGetTimeRangeStats => function_get_time_range_stats,
        FunctionListVariants => function_list_variants,
        FunctionMap => function_map,
        FunctionPrecreate => function_precreate,
        FunctionPutInputs => function_put_inputs,
        FunctionPutOutputs => function_put_outputs,
        FunctionRetryInputs => function_retry_inputs,
        FunctionUpdateSchedulingParams => function_update_scheduling_params,
        MountBatchedCheckExistence => mount_batched_check_existence,
        MountGetOrCreate => mount_get_or_create,
        MountPutFile => mount_put_file,
        TaskGetInfo => task_get_info,
        TaskList => task_list,
        TaskResult => task_result,
    });
    let me = me.clone();
    builder.unary_with_body(rpc::FunctionCreate, move |context, request, body| {
        let me = me.clone();
        async move { alive(&me)?.function_create(context, request, body).await }
    })
}

fn data(builder: DispatcherBuilder, me: &Weak<Control>) -> DispatcherBuilder {
    serve!(builder, me, {
        DictClear => dict_clear,
        DictContains => dict_contains,
        DictDelete => dict_delete,
        DictGet => dict_get,
        DictGetById => dict_get_by_id,
        DictGetOrCreate => dict_get_or_create,
        DictHeartbeat => dict_heartbeat,
        DictLen => dict_len,
        DictList => dict_list,
        DictPop => dict_pop,
        DictUpdate => dict_update,
        EnvironmentCreate => environment_create,
        EnvironmentDelete => environment_delete,
        EnvironmentGetOrCreate => environment_get_or_create,
        EnvironmentList => environment_list,
        EnvironmentUpdate => environment_update,
        ObjectSuggest => object_suggest,
        QueueClear => queue_clear,
        QueueDelete => queue_delete,
        QueueGet => queue_get,
        QueueGetById => queue_get_by_id,
        QueueGetOrCreate => queue_get_or_create,
        QueueHeartbeat => queue_heartbeat,
        QueueLen => queue_len,
        QueueList => queue_list,
        QueueNextItems => queue_next_items,
        QueuePut => queue_put,
        SecretDelete => secret_delete,
        SecretGetInfo => secret_get_info,
        SecretGetOrCreate => secret_get_or_create,
        SecretList => secret_list,
        SecretUpdate => secret_update,
        TokenDelete => token_delete,
        TokenDisable => token_disable,
        TokenEnable => token_enable,
        TokenFlowCreate => token_flow_create,
        TokenFlowWait => token_flow_wait,
        TokenInfoGet => token_info_get,
        TokensList => tokens_list,
        TunnelStart => tunnel_start,
        TunnelStop => tunnel_stop,
        WebhookTokenCreate => webhook_token_create,
        WebhookTokenDelete => webhook_token_delete,
        WebhookTokenEnvironmentAdd => webhook_token_environment_add,
        WebhookTokenEnvironmentList => webhook_token_environment_list,
        WebhookTokenEnvironmentRemove => webhook_token_environment_remove,
        WebhookTokenList => webhook_token_list,
        WebhookTokenListForEnvironment => webhook_token_list_for_environment,
        WebhookTokenUpdate => webhook_token_update,
        WorkspaceDashboardUrlGet => workspace_dashboard_url_get,
        WorkspaceNameLookup => workspace_name_lookup,
        WorkspaceSetDefaultEnvironment => workspace_set_default_environment,
        WorkspaceSettings => workspace_settings,
    });
    builder
}

fn images(builder: DispatcherBuilder, me: &Weak<Control>) -> DispatcherBuilder {
    serve!(builder, me, {
        ImageBuildChainGet => image_build_chain_get,
        ImageDelete => image_delete,
        ImageFromId => image_from_id,
        ImageGetByTag => image_get_by_tag,
        ImageGetOrCreate => image_get_or_create,
        ImageListTags => image_list_tags,
        ImageNameDelete => image_name_delete,
        ImagePublish => image_publish,
        ImageTagRevisions => image_tag_revisions,
    });
    builder
}

fn volumes(builder: DispatcherBuilder, me: &Weak<Control>) -> DispatcherBuilder {
    serve!(builder, me, {
        SharedVolumeDelete => shared_volume_delete,
        SharedVolumeGetFile => shared_volume_get_file,
        SharedVolumeGetOrCreate => shared_volume_get_or_create,
        SharedVolumeHeartbeat => shared_volume_heartbeat,
        SharedVolumeList => shared_volume_list,
        SharedVolumeListFiles => shared_volume_list_files,
        SharedVolumePutFile => shared_volume_put_file,
        SharedVolumeRemoveFile => shared_volume_remove_file,
        VolumeCommit => volume_commit,
        VolumeCopyFiles => volume_copy_files,
        VolumeCopyFiles2 => volume_copy_files2,
        VolumeDelete => volume_delete,
        VolumeGetById => volume_get_by_id,
        VolumeGetFile => volume_get_file,
        VolumeGetFile2 => volume_get_file2,
        VolumeGetOrCreate => volume_get_or_create,
        VolumeHeartbeat => volume_heartbeat,
        VolumeList => volume_list,
        VolumePutFiles => volume_put_files,
        VolumePutFiles2 => volume_put_files2,
        VolumeReload => volume_reload,
        VolumeRemoveFile => volume_remove_file,
        VolumeRemoveFile2 => volume_remove_file2,
        VolumeRename => volume_rename,
    });
    builder
}

fn streams(builder: DispatcherBuilder, me: &Weak<Control>) -> DispatcherBuilder {
    let [logs, build, data_out, data_in, files, files2, shared, entries] =
        std::array::from_fn(|_| me.clone());
    builder
        .server_stream(rpc::AppGetLogs, move |context, request| {
            let me = logs.clone();
            async move { alive(&me)?.app_get_logs(context, request).await }
        })
        .server_stream(rpc::ImageJoinStreaming, move |context, request| {
            let me = build.clone();
            async move { alive(&me)?.image_join_streaming(context, request).await }
        })
        .server_stream(rpc::FunctionCallGetDataOut, move |_context, request| {
            let me = data_out.clone();
            async move { alive(&me)?.chunk_stream(request, Direction::Out).await }
        })
        .server_stream(rpc::FunctionCallGetDataIn, move |_context, request| {
            let me = data_in.clone();
            async move { alive(&me)?.chunk_stream(request, Direction::In).await }
        })
        .server_stream(rpc::SharedVolumeListFilesStream, move |context, request| {
            let me = shared.clone();
            async move { alive(&me)?.shared_volume_list_files_stream(context, request).await }
        })
        .server_stream(rpc::VolumeListFiles, move |context, request| {
            let me = files.clone();
            async move { alive(&me)?.volume_list_files(context, request).await }
        })
        .server_stream(rpc::VolumeListFiles2, move |context, request| {
            let me = files2.clone();
            async move { alive(&me)?.volume_list_files2(context, request).await }
        })
        .server_stream(rpc::DictContents, move |_context, request| {
            let me = entries.clone();
            async move { alive(&me)?.dict_contents(request).await }
        })
}

impl Control {
    /// Serves one call. A request that the client says it repeats gets the answer it got before, if there
    /// was one.
    pub(crate) async fn serve(&self, context: CallContext, body: Bytes) -> Result<Reply, Status> {
        context.rpc.authorize(&context.principal)?;
        if let Some(answer) = self.answered_before(&context).await? {
            return Ok(Reply::Unary(answer));
        }
        self.dispatcher.call(context, body).await
    }

    /// The RPCs that are served, in the order of the table.
    pub fn served() -> Vec<&'static str> {
        dispatcher(Weak::new()).served().map(|rpc| rpc.name).collect()
    }

    pub(crate) async fn client_hello(
        self: Arc<Self>,
        _context: CallContext,
        _request: (),
    ) -> Result<api::ClientHelloResponse, Status> {
        let image_builder_version = self.config.builder_version.clone();
        Ok(api::ClientHelloResponse { image_builder_version, ..Default::default() })
    }
}
