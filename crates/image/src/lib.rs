//! evoke-image
