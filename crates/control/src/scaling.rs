//! How functions are scaled, as clients see and change it while they are live.
//!
//! A change holds until the next deployment, and over restarts. It is of one pool: a variant's settings are
//! its own.

use crate::registry::{Function, Live};
use crate::{Control, stored};
use evoke_core::{AppId, FunctionId};
use evoke_engine::Autoscaler;
use evoke_proto::{CallContext, Code, Status, api};
use evoke_store::{Grade, ScalingWrite};
use prost::Message;
use std::collections::HashMap;
use std::sync::Arc;

/// Longest idle time that may be asked for (seconds): a day, well above what the client lets through.
const SCALEDOWN_WINDOW_SECS_MAX: u32 = 86_400;
/// Most containers that a minimum or buffer may ask for: what a machine may have.
const CONTAINERS_MAX: u32 = 4_096;

impl Control {
    pub(crate) async fn function_update_scheduling_params(
        self: Arc<Self>,
        _context: CallContext,
        request: api::FunctionUpdateSchedulingParamsRequest,
    ) -> Result<api::FunctionUpdateSchedulingParamsResponse, Status> {
        let id = self.function(&request.function_id)?.id;
        let asked = request.settings.unwrap_or(api::AutoscalerSettings {
            min_containers: Some(request.warm_pool_size_override),
            ..Default::default()
        });
        let action = api::UserActionInfo {
            // There is one workspace and one token.
            user_id: crate::WORKSPACE.to_string(),
            timestamp: self.now().as_secs_f64(),
            requested_by: crate::WORKSPACE.to_string(),
            ..Default::default()
        };
        // A publication takes back what was changed before it, and no more.
        let _turn = self.publishing.lock().await;
        let (settings, ticket) = {
            let mut live = self.registry.lock();
            let gone = || Status::not_found(format!("The function {id} does not exist: its app was stopped"));
            let mut function = (**live.functions.get(&id).ok_or_else(gone)?).clone();
            merge(&mut function.scaling, &asked, &action);
            let settings = effective(&function);
            check(&settings)?;
            let write = ScalingWrite::Put {
                function_id: id,
                app_id: function.app_id,
                body: function.scaling.encode_to_vec(),
            };
            live.functions.insert(id, Arc::new(function));
            // Inside the lock: two changes are stored in the order in which they were made.
            (settings, self.store.submit(vec![write.into()], Grade::Synced))
        };
        ticket.await.map_err(stored)?;
        self.make_live(id).await?;
        Ok(api::FunctionUpdateSchedulingParamsResponse { current_settings: Some(settings) })
    }

    pub(crate) async fn function_get_scheduling_params(
        self: Arc<Self>,
        _context: CallContext,
        request: api::FunctionGetSchedulingParamsRequest,
    ) -> Result<api::FunctionGetSchedulingParamsResponse, Status> {
        let function = self.function(&request.function_id)?;
        let fixed = function.definition.function.autoscaler_settings;
        let configuration = api::AutoscalerConfiguration {
            settings: Some(effective(&function)),
            default_settings: Some(settings_of(&Autoscaler::default())),
            static_settings: Some(fixed.unwrap_or_default()),
            ..function.scaling.clone()
        };
        Ok(api::FunctionGetSchedulingParamsResponse { autoscaler_configuration: Some(configuration) })
    }

    pub(crate) async fn function_get_current_stats(
        self: Arc<Self>,
        _context: CallContext,
        request: api::FunctionGetCurrentStatsRequest,
    ) -> Result<api::FunctionStats, Status> {
        let function = self.function(&request.function_id)?;
        let pool = self.calls.look(|engine| engine.pool_info(function.id)).unwrap_or_default();
        Ok(api::FunctionStats {
            backlog: pool.backlog,
            num_total_tasks: pool.containers,
            num_running_inputs: pool.running_inputs,
            input_headroom: pool.headroom,
        })
    }

    /// What was changed live of an app's functions, at start.
    pub(crate) async fn stored_scaling(
        &self,
        app: AppId,
    ) -> Result<HashMap<FunctionId, api::AutoscalerConfiguration>, Status> {
        let rows = self.store.scaling().of_app(app).await.map_err(stored)?;
        let decode = |(id, body): (FunctionId, Vec<u8>)| {
            let decoded = api::AutoscalerConfiguration::decode(body.as_slice());
            let damaged = |error| Status::new(Code::DataLoss, format!("stored scaling of {id}: {error}"));
            decoded.map(|scaling| (id, scaling)).map_err(damaged)
        };
        rows.into_iter().map(decode).collect()
    }
}

impl Live {
    /// Takes back what was changed live of an app's functions, which have been published; whose it was.
    pub(crate) fn scale_as_published(&mut self, app: AppId) -> Vec<FunctionId> {
        let mut reset = Vec::new();
        for function in self.functions.values_mut() {
            if function.app_id == app && function.scaling != api::AutoscalerConfiguration::default() {
                Arc::make_mut(function).scaling = api::AutoscalerConfiguration::default();
                reset.push(function.id);
            }
        }
        reset
    }
}

/// Enters what was asked for, and who asked, into what was changed before.
fn merge(
    scaling: &mut api::AutoscalerConfiguration,
    asked: &api::AutoscalerSettings,
    action: &api::UserActionInfo,
) {
    let settings = scaling.override_settings.get_or_insert_default();
    let mut set = |field: &str, asked: bool| {
        if asked {
            scaling.override_events.insert(field.to_string(), action.clone());
        }
    };
    macro_rules! merge {
        ($($field:ident),*) => {
            $(
                set(stringify!($field), asked.$field.is_some());
                settings.$field = asked.$field.or(settings.$field);
            )*
        };
    }
    merge!(min_containers, max_containers, buffer_containers, scaleup_window, scaledown_window);
    merge!(target_concurrency, scaledown_rate_limit, target_concurrency_float);
}

/// The settings in force, in full; a maximum of 0 is none.
fn effective(function: &Function) -> api::AutoscalerSettings {
    let fixed = function.definition.function.autoscaler_settings.unwrap_or_default();
    let changed = function.scaling.override_settings.unwrap_or_default();
    api::AutoscalerSettings {
        scaleup_window: changed.scaleup_window.or(fixed.scaleup_window),
        target_concurrency: changed.target_concurrency.or(fixed.target_concurrency),
        scaledown_rate_limit: changed.scaledown_rate_limit.or(fixed.scaledown_rate_limit),
        target_concurrency_float: changed.target_concurrency_float.or(fixed.target_concurrency_float),
        ..settings_of(&function.conf().autoscaler)
    }
}

fn settings_of(autoscaler: &Autoscaler) -> api::AutoscalerSettings {
    api::AutoscalerSettings {
        min_containers: Some(autoscaler.min),
        max_containers: Some(autoscaler.max.unwrap_or(0)),
        buffer_containers: Some(autoscaler.buffer),
        scaledown_window: Some((autoscaler.scaledown_window_ms / 1000) as u32),
        ..Default::default()
    }
}

fn check(settings: &api::AutoscalerSettings) -> Result<(), Status> {
    let (min, max) = (settings.min_containers.unwrap_or(0), settings.max_containers.unwrap_or(0));
    if max > 0 && min > max {
        return Err(Status::invalid(format!(
            "min_containers ({min}) would be more than max_containers ({max}); change both together"
        )));
    }
    let buffer = settings.buffer_containers.unwrap_or(0);
    if min.max(buffer) > CONTAINERS_MAX {
        return Err(Status::invalid(format!(
            "min_containers and buffer_containers may be {CONTAINERS_MAX} at most"
        )));
    }
    let window = settings.scaledown_window.unwrap_or(0);
    if window == 0 || window > SCALEDOWN_WINDOW_SECS_MAX {
        return Err(Status::invalid(format!(
            "scaledown_window must be between 1 and {SCALEDOWN_WINDOW_SECS_MAX} seconds, not {window}"
        )));
    }
    Ok(())
}

/// Puts what was changed live over a function's own settings.
pub(crate) fn override_autoscaler(autoscaler: &mut Autoscaler, changed: &api::AutoscalerSettings) {
    autoscaler.min = changed.min_containers.unwrap_or(autoscaler.min);
    autoscaler.buffer = changed.buffer_containers.unwrap_or(autoscaler.buffer);
    if let Some(max) = changed.max_containers {
        autoscaler.max = (max > 0).then_some(max);
    }
    if let Some(seconds) = changed.scaledown_window {
        autoscaler.scaledown_window_ms = u64::from(seconds) * 1000;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_add_up_and_name_what_they_changed() {
        let mut scaling = api::AutoscalerConfiguration::default();
        let action = api::UserActionInfo { timestamp: 7.0, ..Default::default() };
        let first = api::AutoscalerSettings { min_containers: Some(2), ..Default::default() };
        merge(&mut scaling, &first, &action);
        let second = api::AutoscalerSettings { max_containers: Some(0), ..Default::default() };
        merge(&mut scaling, &second, &action);
        let mut events: Vec<_> = scaling.override_events.keys().map(String::as_str).collect();
        events.sort_unstable();
        assert_eq!(events, ["max_containers", "min_containers"]);
        let mut autoscaler = Autoscaler { min: 0, max: Some(5), buffer: 1, scaledown_window_ms: 9_000 };
        override_autoscaler(&mut autoscaler, &scaling.override_settings.unwrap());
        assert_eq!(autoscaler, Autoscaler { min: 2, max: None, buffer: 1, scaledown_window_ms: 9_000 });
    }

    #[test]
    fn contradictions_are_refused() {
        let settings = |min, max, window| api::AutoscalerSettings {
            min_containers: Some(min),
            max_containers: Some(max),
            scaledown_window: Some(window),
            ..Default::default()
        };
        assert!(check(&settings(2, 0, 60)).is_ok());
        assert!(check(&settings(2, 2, 60)).is_ok());
        assert!(check(&settings(3, 2, 60)).unwrap_err().message.contains("min_containers (3)"));
        assert!(check(&settings(0, 0, 0)).is_err());
        assert!(check(&settings(CONTAINERS_MAX + 1, 0, 60)).is_err());
    }
}
