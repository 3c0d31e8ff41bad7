//! evoke-runtime
