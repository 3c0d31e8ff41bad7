//! evoke-worker
