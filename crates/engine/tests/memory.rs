//! What an unfinished input costs in memory. A test binary of its own, because it measures the process.
// Helpers of tests may fail a test as well as the tests themselves.
#![allow(clippy::unwrap_used)]

mod support;

use bytes::Bytes;
use evoke_core::{FunctionId, SeededEntropy, UnixMs};
use evoke_engine::{
    Autoscaler, CallType, Engine, EngineConf, FunctionConf, Invocation, MapRequest, NewInput,
};

#[test]
fn fifty_thousand_inputs_cost_less_than_a_kibibyte_each() {
    let resident = || -> u64 {
        let text = std::fs::read_to_string("/proc/self/statm").unwrap();
        text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    };
    let conf = FunctionConf {
        autoscaler: Autoscaler { max: Some(1), ..Autoscaler::default() },
        ..support::function(1)
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
