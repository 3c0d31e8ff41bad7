//! The contract of every runtime, on the one that runs nothing.
#![allow(clippy::unwrap_used)]

use evoke_runtime::testing::{FakeRuntime, contract};
use evoke_runtime::{Layer, Owner};

#[tokio::test]
async fn the_fake_fulfils_the_contract() {
    let runtime = FakeRuntime::idle();
    let root = vec![Layer { path: "/nowhere".into(), owner: Owner::Canonical }];
    contract::run(&runtime, root, vec!["true".to_owned()]).await;
}
