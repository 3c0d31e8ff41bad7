//! Hard limits hold, and what is used is counted.

use crate::machine::Machine;
use evoke_runtime::Runtime;

pub async fn memory(machine: &Machine) {
    let mut spec = machine.spec("a");
    spec.limits.memory_max = Some(64 * 1024 * 1024);
    let a = machine.launch(spec).await;
    let ran = a.run(&["sh", "-c", "head -c 300000000 /dev/zero | tail | wc -c"]).await;
    assert_ne!(ran.out, "300000000", "{ran:?}");
    let usage = machine.runtime.usage("a").await.unwrap();
    assert!(usage.oom_kills >= 1, "{usage:?}");
    assert!(
        usage.memory_peak_bytes > 32 * 1024 * 1024 && usage.memory_peak_bytes <= 65 * 1024 * 1024,
        "{usage:?}"
    );
    assert_eq!(a.run(&["true"]).await.code, Some(0), "the container goes on");
    // Memory files count as well.
    let ran = a.sh("head -c 200000000 /dev/zero > /dev/shm/x; true").await;
    assert!(ran.code.is_some() || ran.signal.is_some());
    let ended = machine.runtime.destroy("a").await.unwrap();
    assert!(ended.usage.oom_kills >= 1);
}

pub async fn processes(machine: &Machine) {
    let mut spec = machine.spec("a");
    spec.limits.pids_max = 20;
    let a = machine.launch(spec).await;
    let ran = a.sh("for i in $(seq 60); do sleep 5 & done 2>&1 | tail -1; jobs -p | wc -l").await;
    assert!(ran.out.contains("fork") || ran.out.contains("Cannot") || ran.code != Some(0), "{ran:?}");
    machine.runtime.destroy("a").await.unwrap();
}

pub async fn usage_is_counted(machine: &Machine) {
    let a = machine.launch(machine.spec("a")).await;
    let before = machine.runtime.usage("a").await.unwrap().cpu_ns;
    a.sh("i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done").await;
    let after = machine.runtime.usage("a").await.unwrap();
    assert!(after.cpu_ns > before + 20_000_000 && after.memory_bytes > 0, "{before} {after:?}");
    let ended = machine.runtime.destroy("a").await.unwrap();
    assert!(ended.usage.cpu_ns >= after.cpu_ns);
}
