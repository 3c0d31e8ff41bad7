//! How long a start takes; printed, and bounded so loosely that only something broken exceeds it.

use crate::machine::Machine;
use evoke_runtime::{Network, Runtime};
use std::time::{Duration, Instant};

const STARTS: usize = 40;
const BOUND: Duration = Duration::from_secs(1);

fn middle(mut values: Vec<Duration>) -> (Duration, Duration) {
    values.sort();
    (values[values.len() / 2], values[values.len() * 95 / 100])
}

pub async fn measures_a_start(machine: &Machine) {
    for pause_ms in [0, 50] {
        let (mut ready, mut exited, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        let mut last = None;
        for n in 0..STARTS {
            let mut spec = machine.spec(&format!("s{n}"));
            spec.network = Network::Bridged;
            spec.limits.memory_max = Some(512 * 1024 * 1024);
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
            let began = Instant::now();
            let started = machine.runtime.start(spec).await.unwrap();
            ready.push(began.elapsed());
            last = Some(started.timings);
            let guest = evoke_runtime::Guest::new(started.control).unwrap();
            let container = crate::machine::Box {
                id: format!("s{n}"),
                guest,
                pidfd: started.pidfd,
                listeners: started.listeners,
            };
            assert_eq!(container.run(&["/bin/true"]).await.code, Some(0));
            exited.push(began.elapsed());
            let ending = Instant::now();
            machine.runtime.destroy(&container.id).await.unwrap();
            gone.push(ending.elapsed());
        }
        let (ready, exited, gone) = (middle(ready), middle(exited), middle(gone));
        eprintln!(
            "\n  pause {pause_ms} ms: ready p50 {:?} p95 {:?}, /bin/true exited p50 {:?} p95 {:?}, destroyed p50 {:?} p95 {:?}",
            ready.0, ready.1, exited.0, exited.1, gone.0, gone.1
        );
        eprintln!("  {:?}", last.unwrap());
        assert!(exited.0 < BOUND);
    }
}
