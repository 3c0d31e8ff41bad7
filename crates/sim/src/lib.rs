//! evoke-sim
