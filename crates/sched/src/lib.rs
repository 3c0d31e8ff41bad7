//! evoke-sched
