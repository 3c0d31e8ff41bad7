//! What the tests of the engine have in common.

use evoke_core::{AppId, DefinitionId, FunctionId, Gpus, Resources};
use evoke_engine::{Autoscaler, FunctionConf, RetryPolicy};

/// The app of all functions.
pub const APP: u128 = 7;

/// A plain function: one input at a time, no retries, no GPU.
pub fn function(n: u128) -> FunctionConf {
    FunctionConf {
        id: FunctionId::from_bits(n),
        app_id: AppId::from_bits(APP),
        definition_id: DefinitionId::from_bits(n),
        environment_id: None,
        generation: 1,
        autoscaler: Autoscaler::default(),
        max_concurrent_inputs: 1,
        target_concurrent_inputs: 1,
        batch_max_size: 0,
        batch_linger_ms: 0,
        single_use: false,
        max_inputs_per_container: None,
        retry: RetryPolicy::NEVER,
        timeout_ms: 300_000,
        startup_timeout_ms: 30_000,
        is_generator: false,
        is_server: false,
        resources: Resources { milli_cpu: 125, memory_mib: 128, gpus: Gpus::NONE },
        gpus: Vec::new(),
        unsatisfiable: None,
    }
}
