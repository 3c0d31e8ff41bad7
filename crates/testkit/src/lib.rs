//! evoke-testkit
