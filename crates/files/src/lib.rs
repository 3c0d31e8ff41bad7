//! evoke-files
