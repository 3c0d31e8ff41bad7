//! Plays seeds of the simulated world.
// Helpers of tests may fail a test as well as the tests themselves.
#![allow(clippy::unwrap_used)]

use evoke_sim::{Summary, run};

/// Seeds played by default.
const SEEDS: u64 = 2_000;

/// The first seed and how many, from the environment where somebody wants others.
fn wanted() -> (u64, u64) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    (number("EVOKE_SIM_FIRST").unwrap_or(1), number("EVOKE_SIM_SEEDS").unwrap_or(SEEDS))
}

#[test]
fn many_seeds() {
    let (first, count) = wanted();
    let mut failures = Vec::new();
    let mut total = Summary::default();
    for seed in first..first + count {
        match run(seed) {
            Ok(summary) => {
                total.events += summary.events;
                total.inputs += summary.inputs;
                total.runs += summary.runs;
                total.containers += summary.containers;
                total.crashes += summary.crashes;
            }
            Err(text) => failures.push(text),
        }
    }
    println!("{count} seeds: {total:?}");
    let shown: Vec<_> = failures.iter().take(5).cloned().collect();
    assert!(failures.is_empty(), "{} of {count} seeds failed:\n{}", failures.len(), shown.join("\n\n"));
    assert!(total.crashes > 0 && total.runs > total.inputs / 2, "the worlds are too quiet: {total:?}");
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in [3, 77, 4_242] {
        assert_eq!(run(seed), run(seed));
    }
    assert_ne!(run(3).map(|s| s.trace), run(4).map(|s| s.trace));
}

/// For running one failing seed again.
#[test]
fn one_seed() {
    if let Some(seed) = std::env::var("EVOKE_SIM_SEED").ok().and_then(|text| text.parse().ok()) {
        println!("{:?}", run(seed).unwrap());
    }
}
