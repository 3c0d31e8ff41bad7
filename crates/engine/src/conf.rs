//! What the engine is told about limits and about functions.

use evoke_core::{AppId, DefinitionId, EnvironmentId, FunctionId, Gpus, Resources};
pub use evoke_sched::{Autoscaler, RetryPolicy};

/// The engine's bounds, each with a default that suits one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineConf {
    /// Unfinished inputs a call may have before more are refused.
    pub unfinished_inputs_per_call_max: usize,
    /// Unfinished inputs of all calls together before more are refused.
    pub unfinished_inputs_max: usize,
    /// Bytes of recent payloads kept in memory.
    pub payload_cache_bytes: usize,
    /// Payloads larger than this are not kept in memory.
    pub payload_cache_item_bytes: usize,
    /// Ended calls kept in memory for their client's last polls.
    pub ended_calls_kept: usize,
    /// References to outputs kept in memory per call; older ones are read from the store.
    pub outputs_window: usize,
    /// A map without unfinished inputs whose client has not asked for anything for so long is closed.
    pub idle_map_ms: u64,
    /// How long a cancelled input may go on before its container is killed.
    pub cancel_grace_ms: u64,
    /// How long a container that is told to stop has before it is killed.
    pub stop_grace_ms: u64,
    /// After so much more than the grace, a container that was told to stop is killed by the engine's own word.
    pub stop_slack_ms: u64,
    /// How long a container may take from the decision to the execution of its program.
    pub placement_timeout_ms: u64,
    /// So many failed starts in a row fail the inputs that wait.
    pub crash_loop_limit: u32,
    /// Delay before the next start after a failed one; doubles with each.
    pub crash_backoff_ms: u64,
    /// The longest such delay.
    pub crash_backoff_max_ms: u64,
    /// So many times may a container die under an input before the input fails.
    pub input_crashes_max: u32,
    /// So many times may a machine or server go away under an input before the input fails.
    pub input_losses_max: u32,
    /// A pool is planned at most once in this time, except for its first container.
    pub plan_debounce_ms: u64,
    /// A waiting container is told again that there is work after this time.
    pub rewake_ms: u64,
    /// Reasons kept per pool.
    pub reasons_kept: usize,
}

impl Default for EngineConf {
    fn default() -> Self {
        Self {
            unfinished_inputs_per_call_max: 100_000,
            unfinished_inputs_max: 1_000_000,
            payload_cache_bytes: 8 << 20,
            payload_cache_item_bytes: 1 << 20,
            ended_calls_kept: 1024,
            outputs_window: 4096,
            idle_map_ms: 60 * 60 * 1000,
            cancel_grace_ms: 5_000,
            stop_grace_ms: 30_000,
            stop_slack_ms: 10_000,
            placement_timeout_ms: 10 * 60 * 1000,
            crash_loop_limit: 3,
            crash_backoff_ms: 250,
            crash_backoff_max_ms: 30_000,
            input_crashes_max: 3,
            input_losses_max: 64,
            plan_debounce_ms: 10,
            rewake_ms: 1_000,
            reasons_kept: 64,
        }
    }
}

/// A function as the engine needs to know it.
#[derive(Debug, Clone, PartialEq)]
pub struct FunctionConf {
    /// Its id.
    pub id: FunctionId,
    /// Its app.
    pub app_id: AppId,
    /// Its app's environment, whose limits it keeps to; none where that is not known.
    pub environment_id: Option<EnvironmentId>,
    /// The definition that new containers run.
    pub definition_id: DefinitionId,
    /// Rises when containers must be replaced (a new definition, a rollover).
    pub generation: u64,
    /// How many containers.
    pub autoscaler: Autoscaler,
    /// Inputs a container works on at the same time, at most. At least 1.
    pub max_concurrent_inputs: u32,
    /// Inputs a container works on at the same time when there are containers enough. At least 1.
    pub target_concurrent_inputs: u32,
    /// Inputs handed out together; 0 for a function that is not batched.
    pub batch_max_size: u32,
    /// How long a batch that is not full waits for more.
    pub batch_linger_ms: u64,
    /// A container takes one input and ends.
    pub single_use: bool,
    /// A container takes so many inputs and ends.
    pub max_inputs_per_container: Option<u32>,
    /// How failures of user code are retried.
    pub retry: RetryPolicy,
    /// How long an input may run.
    pub timeout_ms: u64,
    /// How long a container may take from the execution of its program to its first poll.
    pub startup_timeout_ms: u64,
    /// A generator or web function; its failures are not retried.
    pub is_generator: bool,
    /// Its containers have a server of their own and ask for no inputs.
    pub is_server: bool,
    /// What a container reserves, GPUs apart.
    pub resources: Resources,
    /// What GPUs a container may have, the most wanted first; empty where it needs none.
    pub gpus: Vec<Gpus>,
    /// Why no machine of the pool can ever run it; its calls fail at once with this text.
    pub unsatisfiable: Option<String>,
}

impl FunctionConf {
    /// What a container may reserve, the most wanted first; never empty.
    pub(crate) fn needs(&self) -> Vec<Resources> {
        if self.gpus.is_empty() {
            return vec![self.resources];
        }
        self.gpus.iter().map(|gpus| Resources { gpus: *gpus, ..self.resources }).collect()
    }
}
