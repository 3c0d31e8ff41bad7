//! evoke-control
