//! Devices in containers, on stand-ins: nodes like `/dev/null`, and a library that is no driver's.

use crate::machine::Machine;
use evoke_runtime::{Layer, Owner, Runtime, RuntimeError};
use std::path::Path;

/// Two cards, a shared node, and a "driver" of one library of this machine's.
pub fn specification(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let library = ["/lib/x86_64-linux-gnu/libm.so.6", "/lib/aarch64-linux-gnu/libm.so.6", "/lib64/libm.so.6"];
    let library = library.iter().find(|path| Path::new(path).exists()).unwrap();
    let text = format!(
        "kind: nvidia.com/gpu\ncdiVersion: 0.6.0\ndevices:\n\
         - name: \"0\"\n  containerEdits:\n    deviceNodes:\n    - {{path: /dev/nvidia0, hostPath: /dev/null}}\n\
         - name: \"1\"\n  containerEdits:\n    deviceNodes:\n    - {{path: /dev/nvidia1, hostPath: /dev/zero}}\n\
         \x20   - {{path: /dev/nvidia-caps/nvidia-cap1, hostPath: /dev/full}}\n\
         - name: broken\n  containerEdits:\n    deviceNodes:\n    - {{path: /dev/nvidia2, hostPath: /nonexistent}}\n\
         containerEdits:\n  deviceNodes:\n  - {{path: /dev/nvidiactl, hostPath: /dev/null}}\n\
         \x20 env: [NVIDIA_VISIBLE_DEVICES=void, FAKE_DRIVER=1]\n\
         \x20 mounts:\n  - {{hostPath: {library}, containerPath: /driver/libm.so.6.550.1, options: [ro]}}\n\
         \x20 hooks:\n  - hookName: createContainer\n    path: /bin/false\n\
         \x20   args: [nvidia-cdi-hook, create-symlinks, --link, libm.so.6::/driver/libm.so]\n"
    );
    std::fs::write(folder.join("nvidia.yaml"), text).unwrap();
}

pub async fn a_container_sees_its_own_device_and_no_other(machine: &Machine) {
    let with = |id: &str, gpus: &[&str]| {
        let mut spec = machine.spec(id);
        spec.gpus = gpus.iter().map(|gpu| (*gpu).to_owned()).collect();
        spec
    };
    let a = machine.launch(with("a", &["1"])).await;
    assert_eq!(
        a.sh("cd /dev; ls -d nvidia* nvidia-caps/*").await.out,
        "nvidia-caps\nnvidia-caps/nvidia-cap1\nnvidia1\nnvidiactl"
    );
    assert_eq!(
        a.sh("stat -c '%F %u:%g %a %t:%T' /dev/nvidia1").await.out,
        "character special file 0:0 666 1:5"
    );
    assert_eq!(a.sh("head -c 3 /dev/nvidia1 | od -An -tx1").await.out.trim(), "00 00 00");
    // The nodes of other cards can't be made either.
    assert_ne!(a.sh("mknod /dev/nvidia0 c 1 3").await.code, Some(0));
    // The driver: read-only, under the names that a loader asks for.
    assert_eq!(
        a.sh("readlink /driver/libm.so /driver/libm.so.6 /__modal/driver/libm.so.6").await.out,
        "libm.so.6\nlibm.so.6.550.1\n/driver/libm.so.6.550.1"
    );
    assert_eq!(
        a.sh(
            "cmp /driver/libm.so /usr/lib/*-linux-gnu/libm.so.6 || cmp /driver/libm.so /usr/lib64/libm.so.6"
        )
        .await
        .code,
        Some(0)
    );
    assert_ne!(a.sh("echo x >> /driver/libm.so.6.550.1").await.code, Some(0));

    let taken = machine.runtime.start(with("b", &["0", "1"])).await.unwrap_err();
    assert!(matches!(&taken, RuntimeError::Refused(text) if text.contains("container a")), "{taken}");
    let b = machine.launch(with("b", &["0"])).await;
    assert_eq!(b.sh("cd /dev; ls -d nvidia*").await.out, "nvidia0\nnvidiactl");
    let none = machine.launch(with("c", &[])).await;
    assert_eq!(none.sh("ls -d /dev/nvidia* /driver 2>/dev/null").await.out, "");

    // A helper that comes later knows whose they are.
    let later = machine.replace_helper();
    let taken = later.start(with("d", &["1"])).await.unwrap_err();
    assert!(matches!(&taken, RuntimeError::Refused(text) if text.contains("container a")), "{taken}");
    for id in ["a", "b", "c"] {
        later.destroy(id).await.unwrap();
    }
    let d = later.start(with("d", &["1", "0"])).await.unwrap();
    assert!(d.env.contains(&("FAKE_DRIVER".to_owned(), "1".to_owned())), "{:?}", d.env);
    assert!(d.env.contains(&("NVIDIA_VISIBLE_DEVICES".to_owned(), "1,0".to_owned())), "{:?}", d.env);
    later.destroy("d").await.unwrap();
}

pub async fn only_devices_of_this_machine_can_be_asked_for(machine: &Machine) {
    for name in ["7", "GPU-nowhere", "/dev/sda", "broken"] {
        let mut spec = machine.spec("a");
        spec.gpus = vec![name.to_owned()];
        let error = machine.runtime.start(spec).await.unwrap_err();
        let text = error.to_string();
        let wanted = if name == "broken" { "nvidia-ctk" } else { "GPU" };
        assert!(text.contains(wanted), "{name}: {text}");
        // What had begun is being taken away; this waits for it.
        machine.runtime.destroy("a").await.unwrap();
    }
    assert_eq!(machine.runtime.list().await.unwrap(), Vec::<String>::new());
}

pub async fn a_layer_has_no_traces_of_devices(machine: &Machine) {
    let mut spec = machine.spec("a");
    spec.gpus = vec!["0".to_owned()];
    let a = machine.launch(spec).await;
    assert_eq!(a.sh("echo kept > /kept; ls /driver | wc -l").await.out, "3");
    a.guest.shutdown(std::time::Duration::ZERO).await.unwrap();
    evoke_runtime::testing::contract::ended(a.pidfd).await;
    let layer = machine.layer("made");
    machine.runtime.commit_layer("a", &layer).await.unwrap();
    machine.runtime.destroy("a").await.unwrap();
    let mut spec = machine.spec("b");
    spec.layers.push(Layer { path: layer, owner: Owner::Canonical });
    let b = machine.launch(spec).await;
    assert_eq!(
        b.sh("cat /kept; ls /driver /__modal/driver").await.out.trim(),
        "kept\n/__modal/driver:\n\n/driver:"
    );
    machine.runtime.destroy("b").await.unwrap();
}
