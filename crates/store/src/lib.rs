//! evoke-store
