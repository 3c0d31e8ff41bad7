//! The descriptor store between a holder and the servers that come and go.
#![allow(clippy::unwrap_used)]

use evoke_runtime::fdstore::{FdStore, FdStoreClient};
use rustix::event::{PollFd, PollFlags, poll};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};

/// Serves the store from a thread of its own until its server is gone.
fn serve(store: &Arc<Mutex<FdStore>>) -> std::thread::JoinHandle<()> {
    let store = Arc::clone(store);
    std::thread::spawn(move || {
        loop {
            let (fd, write) = {
                let store = store.lock().unwrap();
                let Some((fd, write)) = store.poll_fd() else { return };
                (fd.try_clone_to_owned().unwrap(), write)
            };
            let wanted = if write { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            poll(&mut [PollFd::new(&fd, wanted)], None).unwrap();
            if !store.lock().unwrap().serve() {
                return;
            }
        }
    })
}

#[tokio::test]
async fn a_later_server_gets_what_a_former_one_put() {
    let store = Arc::new(Mutex::new(FdStore::new()));
    let socket = store.lock().unwrap().connect().unwrap();
    let served = serve(&store);
    let (client, initial) = FdStoreClient::connect(socket).await.unwrap();
    assert!(initial.is_empty());
    let file = tempfile::tempfile().unwrap();
    for n in 0..500 {
        client.put(&format!("task/{n}"), file.as_fd()).await.unwrap();
    }
    client.remove("task/7").await.unwrap();
    client.remove("task/never").await.unwrap();
    assert!(client.put(&"x".repeat(200), file.as_fd()).await.is_err());
    drop(client);
    tokio::task::spawn_blocking(|| served.join().unwrap()).await.unwrap();

    let socket = store.lock().unwrap().connect().unwrap();
    let served = serve(&store);
    let (client, initial) = FdStoreClient::connect(socket).await.unwrap();
    assert_eq!(initial.len(), 499);
    assert!(!initial.iter().any(|(name, _)| name == "task/7"));
    drop(client);
    tokio::task::spawn_blocking(|| served.join().unwrap()).await.unwrap();
}
