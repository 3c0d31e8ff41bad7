//! What an unfinished input costs in memory. A test binary of its own, because it measures the process.
// Helpers of tests may fail a test as well as the tests themselves.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use evoke_core::{AppId, DefinitionId, FunctionId, Resources, SeededEntropy, UnixMs};
use evoke_engine::{
    Autoscaler, CallType, Engine, EngineConf, FunctionConf, Invocation, MapRequest, NewInput, RetryPolicy,
};

#[test]
fn fifty_thousand_inputs_cost_less_than_a_kibibyte_each() {
    let resident = || -> u64 {
        let text = std::fs::read_to_string("/proc/self/statm").unwrap();
        text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    };
    let conf = FunctionConf {
        id: FunctionId::from_bits(1),
        app_id: AppId::from_bits(7),
        definition_id: DefinitionId::from_bits(1),
        generation: 1,
        autoscaler: Autoscaler { max: Some(1), ..Autoscaler::default() },
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
        resources: Resources { milli_cpu: 125, memory_mib: 128, gpus: evoke_core::Gpus::NONE },
        gpus: Vec::new(),
        unsatisfiable: None,
    };
    let mut engine = Engine::new(EngineConf::default(), Box::new(SeededEntropy::new(5)));
    let now = UnixMs(1);
    drop(engine.put_function(conf, now));
    drop(engine.adopt(&[], now));
    let request = MapRequest {
        function_id: FunctionId::from_bits(1),
        call_type: CallType::Map,
        invocation: Invocation::Sync,
        parent_input: None,
        inputs: Vec::new(),
        return_exceptions: false,
    };
    let call = engine.map(request, now).unwrap().reply.call_id;
    let before = resident();
    for batch in 0..1_000 {
        let inputs = (0..50)
            .map(|n| NewInput { idx: batch * 50 + n, group: 0, input: Bytes::from(vec![0; 300]) })
            .collect();
        drop(engine.put_inputs(call, inputs, now).unwrap());
    }
    let each = (resident().saturating_sub(before)) / 50_000;
    assert_eq!(engine.sizes().1, 50_000);
    println!("{each} bytes each");
    assert!(each < 1_024, "{each} bytes each");
}
