//! Layers: committed, stacked, unpacked over others, and archives that want out.

use crate::machine::{Machine, SERVICE, Tar};
use evoke_runtime::{Bind, CopySpec, Layer, Owner, ProcessSpec, Program, Runtime, RuntimeError};

fn canonical(machine: &Machine, names: &[&str]) -> Vec<Layer> {
    names.iter().map(|name| Layer { path: machine.layer(name), owner: Owner::Canonical }).collect()
}

pub async fn commit_and_unpack(machine: &Machine) {
    let a = machine.launch(machine.spec("a")).await;
    let script = "mkdir -p /opt/x/sub && echo one > /opt/x/f && ln /opt/x/f /opt/x/h && chown 5:6 /opt/x/f \
        && rm /etc/group && mv /var /renamed && chmod 4755 /opt/x/f";
    assert_eq!(a.sh(script).await.code, Some(0));
    let commit = machine.runtime.commit_layer("a", &machine.layer("one")).await;
    assert!(matches!(commit, Err(RuntimeError::StillRunning(_))), "{commit:?}");
    a.guest.shutdown(std::time::Duration::ZERO).await.unwrap();
    evoke_runtime::testing::contract::ended(a.pidfd).await;
    let stats = machine.runtime.commit_layer("a", &machine.layer("one")).await.unwrap();
    assert!(stats.entries >= 6 && stats.bytes >= 8, "{stats:?}");
    machine.runtime.destroy("a").await.unwrap();

    let mut spec = machine.spec("b");
    spec.layers = canonical(machine, &["base", "one"]);
    let b = machine.launch(spec).await;
    let look = "stat -c %u:%g:%a:%h /opt/x/f; ls /etc/group /var 2>&1 | grep -c 'No such'; ls -d /renamed; ls /opt/x | wc -l";
    assert_eq!(b.sh(look).await.out, "5:6:4755:2\n2\n/renamed\n3");
    machine.runtime.destroy("b").await.unwrap();

    // An archive with the marks of the image format, over both.
    let mut tar = Tar::default();
    tar.file("opt/x/.wh.h", "");
    tar.folder("etc");
    tar.file("etc/.wh..wh..opq", "");
    tar.file("etc/only", "new");
    tar.owned_file("opt/x/owned", 42, 0o600);
    tar.hard_link("opt/x/linked", "opt/x/f");
    let lower = canonical(machine, &["base", "one"]);
    let stats = machine.runtime.unpack_layer(&machine.layer("two"), &lower, tar.finish()).await.unwrap();
    assert_eq!(stats.entries, 4, "{stats:?}");
    let again = machine.runtime.unpack_layer(&machine.layer("two"), &[], Tar::default().finish()).await;
    assert!(matches!(again, Err(RuntimeError::Exists(_))), "{again:?}");

    let mut spec = machine.spec("c");
    spec.layers = canonical(machine, &["base", "one", "two"]);
    let c = machine.launch(spec).await;
    let look = "ls /opt/x; stat -c %u /opt/x/owned; ls /etc | grep -v -e hosts -e hostname -e resolv; cat /opt/x/linked";
    assert_eq!(c.sh(look).await.out, "f\nlinked\nowned\nsub\n42\nonly\none");
    machine.runtime.destroy("c").await.unwrap();
    machine.runtime.remove_tree(&machine.layer("two")).await.unwrap();
    machine.runtime.remove_tree(&machine.layer("two")).await.unwrap();
    assert!(!machine.layer("two").exists());
}

pub async fn archives_cannot_escape(machine: &Machine) {
    let outside = machine.data.join("outside");
    std::fs::write(&outside, "before").unwrap();
    let mut archives: Vec<Tar> = Vec::new();
    let mut add = |build: &dyn Fn(&mut Tar)| {
        let mut tar = Tar::default();
        build(&mut tar);
        archives.push(tar);
    };
    add(&|tar| tar.file("../outside", "x"));
    add(&|tar| {
        tar.link("l", "../../../..");
        tar.file("l/outside", "x");
    });
    let absolute = machine.data.to_str().unwrap().to_owned();
    add(&|tar| {
        tar.link("l", &absolute);
        tar.file("l/outside", "x");
    });
    add(&|tar| tar.hard_link("h", "../../../../outside"));
    add(&|tar| tar.hard_link("h", "/etc/passwd"));
    let count = archives.len();
    for (index, tar) in archives.into_iter().enumerate() {
        let name = format!("bad{index}");
        let unpacked = machine.runtime.unpack_layer(&machine.layer(&name), &[], tar.finish()).await;
        // The second one stays inside: its link leads to the new layer's own root.
        assert_eq!(unpacked.is_ok(), index == 1, "{index}: {unpacked:?}");
        assert_eq!(machine.layer(&name).exists(), index == 1);
    }
    assert_eq!(count, 5);
    assert_eq!(std::fs::read_to_string(&outside).unwrap(), "before");
    let cut = Tar::default();
    let mut bytes = std::fs::File::from(cut.finish());
    drop(std::io::copy(&mut bytes, &mut std::io::sink()));
    let garbage = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut &garbage, &[7u8; 4096]).unwrap();
    rustix::fs::seek(&garbage, rustix::fs::SeekFrom::Start(0)).unwrap();
    assert!(machine.runtime.unpack_layer(&machine.layer("garbage"), &[], garbage.into()).await.is_err());
    assert!(!machine.layer("garbage").exists());
}

pub async fn copies_as_a_dockerfile_does(machine: &Machine) {
    let context = machine.data.join("mounts/context");
    std::fs::create_dir_all(context.join("folder/deep")).unwrap();
    std::fs::write(context.join("file"), "f").unwrap();
    std::fs::write(context.join("folder/deep/inner"), "i").unwrap();
    std::os::unix::fs::symlink("deep/inner", context.join("folder/link")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", context.join("out")).unwrap();
    for entry in ["", "file", "folder", "folder/deep", "folder/deep/inner"] {
        std::os::unix::fs::chown(context.join(entry), Some(SERVICE), Some(SERVICE)).unwrap();
    }
    let mut spec = machine.spec("a");
    spec.binds.push(Bind {
        source: context,
        target: "/__evoke/context".into(),
        read_only: true,
        owner: Owner::Single { uid: SERVICE, gid: SERVICE },
    });
    let a = machine.launch(spec).await;
    let copy = |sources: &[&str], destination: &str, owner: &str| {
        let job = CopySpec {
            from: "/__evoke/context".into(),
            sources: sources.iter().map(|source| (*source).to_owned()).collect(),
            destination: destination.into(),
            owner: owner.into(),
            mode: None,
        };
        move |spec: &mut ProcessSpec| spec.program = Program::Copy(job)
    };
    for (sources, destination, owner) in [
        (&["file"][..], "/renamed", ""),
        (&["file"][..], "/into/", "web"),
        (&["folder"][..], "/tree", "7:8"),
        (&["file", "folder"][..], "/both/", ""),
    ] {
        let ran = a.run_with(&[], copy(sources, destination, owner)).await;
        assert_eq!((ran.code, &*ran.out), (Some(0), ""), "{sources:?}");
    }
    let look = "cat /renamed /into/file /tree/link /both/file /both/deep/inner; echo; stat -c %u:%g /renamed /into/file /tree/deep/inner";
    assert_eq!(a.sh(look).await.out, "ffifi\n0:0\n1000:1000\n7:8");
    let missing = a.run_with(&[], copy(&["absent"], "/x", "")).await;
    assert!(missing.code == Some(1) && missing.out.contains("absent"), "{missing:?}");
    // A link of the context is resolved inside the context.
    let escaping = a.run_with(&[], copy(&["../../etc/passwd"], "/y", "")).await;
    assert_eq!(escaping.code, Some(1), "{escaping:?}");
    machine.runtime.destroy("a").await.unwrap();
}
