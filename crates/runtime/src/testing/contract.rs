//! What every [`Runtime`] does, as tests that run on any of them. A failed expectation panics.
#![allow(clippy::expect_used, clippy::unwrap_used)]

use crate::{
    ContainerSpec, Guest, GuestEvent, Layer, ListenerSpec, Network, ProcessSpec, Runtime, RuntimeError,
};
use rustix::pipe::{PipeFlags, pipe_with};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// No step of the contract may take longer.
const STEP_TIMEOUT: Duration = Duration::from_secs(30);

/// Runs the whole contract. `root` is a stack in which `true_argv` exits with 0.
pub async fn run(runtime: &dyn Runtime, root: Vec<Layer>, true_argv: Vec<String>) {
    starting_running_and_destroying(runtime, &root, &true_argv).await;
    names_are_unique_and_destroy_is_idempotent(runtime, &root).await;
    a_container_ends_when_nobody_holds_its_control(runtime, &root).await;
    unknown_ids_are_not_found(runtime).await;
}

fn spec(id: &str, root: &[Layer]) -> ContainerSpec {
    let mut spec = ContainerSpec::new(id, root.to_vec());
    spec.network = Network::Loopback;
    spec.grace_ms = 500;
    spec
}

/// Two ends of a pipe, for output.
fn output() -> (OwnedFd, OwnedFd, OwnedFd) {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let second = write.try_clone().unwrap();
    (read, write, second)
}

/// Waits until a pidfd says that the container has ended.
pub async fn ended(pidfd: OwnedFd) {
    let pidfd = crate::fds::watch(pidfd, tokio::io::Interest::READABLE).unwrap();
    let ready = tokio::time::timeout(STEP_TIMEOUT, pidfd.readable()).await;
    ready.expect("the container ends in time").unwrap().retain_ready();
}

async fn starting_running_and_destroying(runtime: &dyn Runtime, root: &[Layer], true_argv: &[String]) {
    let mut spec = spec("contract-a", root);
    spec.listeners =
        vec![ListenerSpec::Tcp { port: 4321 }, ListenerSpec::Unix { path: "/run/x/s".to_owned() }];
    let started = runtime.start(spec).await.expect("a container starts");
    assert_eq!(started.listeners.len(), 2);
    assert_eq!(runtime.list().await.unwrap(), ["contract-a"]);

    let control = started.control.as_fd().try_clone_to_owned().unwrap();
    let guest = Guest::new(started.control).unwrap();
    let (_read, stdout, stderr) = output();
    let proc =
        guest.spawn(ProcessSpec::new(true_argv.to_vec(), stdout, stderr)).await.expect("a program starts");
    let event = tokio::time::timeout(STEP_TIMEOUT, guest.next_event()).await.expect("an exit in time");
    let Some(GuestEvent::Exited { proc: ended_proc, exit }) = event else { panic!("the container ended") };
    assert_eq!((ended_proc, exit.code), (proc, Some(0)));
    drop(guest);

    // A later server takes over the descriptor and learns what happened before.
    let guest = Guest::new(control).unwrap();
    let status = guest.status().await.unwrap();
    assert_eq!(status.len(), 1);
    assert_eq!(status[0].exit.and_then(|e| e.code), Some(0));

    runtime.usage("contract-a").await.unwrap();
    runtime.destroy("contract-a").await.unwrap();
    assert!(guest.status().await.is_err(), "its init is gone");
    ended(started.pidfd).await;
    assert!(runtime.list().await.unwrap().is_empty());
}

async fn names_are_unique_and_destroy_is_idempotent(runtime: &dyn Runtime, root: &[Layer]) {
    let started = runtime.start(spec("contract-b", root)).await.unwrap();
    let again = runtime.start(spec("contract-b", root)).await;
    assert!(matches!(again, Err(RuntimeError::Exists(_))), "{again:?}");
    runtime.destroy("contract-b").await.unwrap();
    runtime.destroy("contract-b").await.unwrap();
    drop(started);
    let started = runtime.start(spec("contract-b", root)).await.expect("the name is free again");
    runtime.destroy("contract-b").await.unwrap();
    drop(started);
    let none = runtime.start(ContainerSpec::new("contract-b", Vec::new())).await;
    assert!(matches!(none, Err(RuntimeError::Refused(_))), "{none:?}");
    assert!(runtime.list().await.unwrap().is_empty());
}

async fn a_container_ends_when_nobody_holds_its_control(runtime: &dyn Runtime, root: &[Layer]) {
    let started = runtime.start(spec("contract-c", root)).await.unwrap();
    drop(started.control);
    ended(started.pidfd).await;
    assert_eq!(runtime.list().await.unwrap(), ["contract-c"], "it is listed until it is destroyed");
    runtime.destroy("contract-c").await.unwrap();
}

async fn unknown_ids_are_not_found(runtime: &dyn Runtime) {
    assert!(matches!(runtime.usage("contract-none").await, Err(RuntimeError::NotFound(_))));
    let commit = runtime.commit_layer("contract-none", "/nowhere".as_ref()).await;
    assert!(matches!(commit, Err(RuntimeError::NotFound(_) | RuntimeError::Refused(_))), "{commit:?}");
}
