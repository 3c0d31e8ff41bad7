//! evoke-engine
