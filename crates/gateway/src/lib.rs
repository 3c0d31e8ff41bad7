//! evoke-gateway
