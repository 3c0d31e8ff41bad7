//! Nothing stays behind, whoever is killed.

use crate::machine::Machine;
use evoke_runtime::testing::contract::ended;
use evoke_runtime::{Layer, ListenerSpec, Network, Owner, Runtime};
use std::path::Path;

/// The installation's short name, as the helper derives it.
fn tag(data: &Path) -> String {
    let hash = data.as_os_str().as_encoded_bytes().iter();
    let hash = hash.fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    format!("{hash:08x}")
}

/// Everything of an installation that is on the machine: mounts, groups, interfaces, folders, processes. Others'
/// may be on the machine as well.
pub fn on_machine(data: &Path) -> Vec<String> {
    let tag = tag(data);
    let mut left = Vec::new();
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    left.extend(mounts.lines().filter(|line| line.contains(data.to_str().unwrap())).map(str::to_owned));
    find_groups(Path::new("/sys/fs/cgroup"), &format!("evoke-{tag}"), 0, &mut left);
    for link in std::fs::read_dir("/sys/class/net").unwrap().flatten() {
        let name = link.file_name().into_string().unwrap();
        if name == format!("evoke-{tag}") || name.starts_with(&format!("ev{}-", &tag[..6])) {
            left.push(format!("interface {name}"));
        }
    }
    for folder in ["containers", "containers/.trash", "containers/.unpack"] {
        let entries = std::fs::read_dir(data.join(folder)).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().into_string().unwrap());
        let shown = names.filter(|name| folder != "containers" || !name.starts_with('.'));
        left.extend(shown.map(|name| format!("{folder}/{name}")));
    }
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let groups = std::fs::read_to_string(process.path().join("cgroup")).unwrap_or_default();
        if groups.contains(&format!("evoke-{tag}/")) {
            left.push(format!("process {}", process.file_name().to_string_lossy()));
        }
    }
    left
}

fn find_groups(folder: &Path, name: &str, depth: usize, left: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if entry.file_name().to_string_lossy() == name {
                left.push(entry.path().display().to_string());
            }
            if depth < 4 {
                find_groups(&entry.path(), name, depth + 1, left);
            }
        }
    }
}

/// Waits for what the kernel and the helper do in the background.
async fn settles(machine: &Machine) -> Vec<String> {
    let mut left = Vec::new();
    for _ in 0..100 {
        left = on_machine(&machine.data);
        // The installation's own parent groups, bridge and pool stay for as long as its helper does.
        left.retain(|what| {
            !what.contains("interface")
                && !what.split('/').next_back().is_some_and(|n| n.starts_with("evoke-"))
        });
        if left.is_empty() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    left
}

fn busy(machine: &Machine, id: &str) -> evoke_runtime::ContainerSpec {
    let mut spec = machine.spec(id);
    spec.network = Network::Bridged;
    spec.limits.memory_max = Some(256 * 1024 * 1024);
    spec.listeners = vec![ListenerSpec::Tcp { port: 99 }, ListenerSpec::Unix { path: "/run/s".into() }];
    spec
}

async fn spawn_stubborn(container: &crate::machine::Box) {
    let script =
        "trap '' INT TERM; (trap '' INT TERM; setsid sleep 1000 & sleep 1000) & while :; do sleep 100; done";
    let null = || rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty()).unwrap();
    let argv = ["sh", "-c", script].map(str::to_owned).to_vec();
    container.guest.spawn(evoke_runtime::ProcessSpec::new(argv, null(), null())).await.unwrap();
}

pub async fn nothing_is_left_after_destroy(machine: &Machine) {
    for round in 0..3 {
        let mut held = Vec::new();
        for n in 0..5 {
            let container = machine.launch(busy(machine, &format!("r{round}-{n}"))).await;
            spawn_stubborn(&container).await;
            container.sh("mkdir -p /d/e && head -c 1000000 /dev/zero > /d/e/f").await;
            held.push(container);
        }
        let mut tasks = tokio::task::JoinSet::new();
        for container in &held {
            let (runtime, id) = (machine.runtime.clone(), container.id.clone());
            tasks.spawn(async move { runtime.destroy(&id).await.unwrap() });
        }
        tasks.join_all().await;
        assert!(machine.runtime.list().await.unwrap().is_empty());
        for container in held {
            ended(container.pidfd).await;
        }
    }
    assert_eq!(settles(machine).await, Vec::<String>::new());
    let fds = std::fs::read_dir(format!("/proc/{}/fd", machine.helper_pid())).unwrap().count();
    assert!(fds < 60, "the helper holds {fds} descriptors");
}

pub async fn survives_a_killed_helper(machine: &Machine) {
    let a = machine.launch(busy(machine, "a")).await;
    spawn_stubborn(&a).await;
    let b = machine.launch(busy(machine, "b")).await;
    let runtime = machine.replace_helper();
    // Containers live on, and the new helper knows them.
    assert_eq!(a.run(&["true"]).await.code, Some(0));
    assert_eq!(runtime.list().await.unwrap(), ["a", "b"]);
    assert!(runtime.usage("a").await.unwrap().cpu_ns > 0);
    let again = runtime.start(busy(machine, "a")).await;
    assert!(again.is_err(), "the name is still taken");
    // Ids and addresses of what lives are not given away.
    let c = runtime.start(busy(machine, "c")).await.unwrap();
    let uid = |pid: u32| {
        std::fs::read_to_string(format!("/proc/{pid}/uid_map"))
            .unwrap()
            .split_whitespace()
            .nth(1)
            .unwrap()
            .to_owned()
    };
    assert_ne!(uid(a.pid()), uid(b.pid()));
    drop(c);
    for id in ["a", "b", "c"] {
        let ended = runtime.destroy(id).await.unwrap();
        assert!(id == "c" || ended.usage.cpu_ns > 0);
    }
    ended(a.pidfd).await;
    ended(b.pidfd).await;
    assert!(runtime.list().await.unwrap().is_empty());
    assert_eq!(settles(machine).await, Vec::<String>::new());
}

pub async fn ends_with_its_holder(machine: &Machine) {
    let a = machine.launch(busy(machine, "a")).await;
    spawn_stubborn(&a).await;
    let crate::machine::Box { guest, pidfd, .. } = a;
    drop(guest);
    machine.end_helper();
    ended(pidfd).await;
    assert_eq!(on_machine(&machine.data), Vec::<String>::new());
}

pub async fn failed_starts_leave_nothing(machine: &Machine) {
    // An image in which the kernel's folders are links, and one that has files where folders must be.
    for (name, link) in [("linked", true), ("filed", false)] {
        let mut tar = crate::machine::Tar::default();
        if link {
            tar.link("proc", "etc");
            tar.folder("etc");
        } else {
            tar.file("dev", "x");
        }
        machine.runtime.unpack_layer(&machine.layer(name), &[], tar.finish()).await.unwrap();
        let mut spec = busy(machine, "bad");
        spec.layers = vec![Layer { path: machine.layer(name), owner: Owner::Canonical }];
        let failed = machine.runtime.start(spec).await;
        assert!(failed.is_err(), "{failed:?}");
        assert!(machine.runtime.list().await.unwrap().is_empty());
    }
    let mut spec = busy(machine, "bad");
    spec.listeners.push(ListenerSpec::Tcp { port: 99 });
    assert!(machine.runtime.start(spec).await.is_err(), "a port can be listened on once");
    // A server that goes away in the middle.
    let other = machine.attach();
    let spec = busy(machine, "gone");
    let _ = tokio::time::timeout(std::time::Duration::from_millis(1), other.start(spec)).await;
    drop(other);
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    machine.runtime.destroy("gone").await.unwrap();
    assert_eq!(settles(machine).await, Vec::<String>::new());
}
