//! What is inside stays inside.

use crate::machine::{Machine, SERVICE};
use evoke_runtime::testing::contract;
use evoke_runtime::{Bind, Layer, Owner, Runtime, RuntimeError};
use std::os::unix::fs::MetadataExt;

pub async fn fulfils_the_contract(machine: &Machine) {
    // A program in the layer itself, since the contract knows no binds: one that fits in an empty root.
    let mut tar = crate::machine::Tar::default();
    tar.folder("usr");
    machine.runtime.unpack_layer(&machine.layer("empty"), &[], tar.finish()).await.unwrap();
    let static_true = machine.data.join("mounts/files/true");
    std::fs::write(&static_true, TRUE_ELF).unwrap();
    std::os::unix::fs::chown(&static_true, Some(SERVICE), Some(SERVICE)).unwrap();
    std::fs::set_permissions(&static_true, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let root = vec![
        Layer { path: machine.layer("empty"), owner: Owner::Canonical },
        Layer {
            path: machine.data.join("mounts/files"),
            owner: Owner::Single { uid: SERVICE, gid: SERVICE },
        },
    ];
    contract::run(&machine.runtime, root, vec!["/true".to_owned()]).await;
}

/// The smallest program of this machine's kind that exits with 0.
#[cfg(target_arch = "x86_64")]
const TRUE_ELF: &[u8] = &{
    let mut elf = [0u8; 132];
    let head: [u8; 64] = [
        0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0x3e, 0, 1, 0, 0, 0, 0x78, 0, 0x40,
        0, 0, 0, 0, 0, 0x40, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x40, 0, 0x38, 0, 1, 0,
        0, 0, 0, 0, 0, 0,
    ];
    let segment: [u8; 56] = [
        1, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x40, 0, 0, 0, 0, 0, 0, 0, 0x40, 0, 0, 0, 0, 0,
        132, 0, 0, 0, 0, 0, 0, 0, 132, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0,
    ];
    // xor edi, edi; mov eax, 231 (exit_group); syscall
    let code: [u8; 9] = [0x31, 0xff, 0xb8, 231, 0, 0, 0, 0x0f, 0x05];
    let mut at = 0;
    while at < 64 {
        elf[at] = head[at];
        at += 1;
    }
    while at < 120 {
        elf[at] = segment[at - 64];
        at += 1;
    }
    while at < 129 {
        elf[at] = code[at - 120];
        at += 1;
    }
    elf
};
#[cfg(not(target_arch = "x86_64"))]
const TRUE_ELF: &[u8] = b"#!/true\n";

pub async fn root_inside_is_nobody_outside(machine: &Machine) {
    let a = machine.launch(machine.spec("a")).await;
    let b = machine.launch(machine.spec("b")).await;
    let mut users = Vec::new();
    for container in [&a, &b] {
        assert_eq!(container.run(&["id", "-u"]).await.out, "0");
        let status = std::fs::read_to_string(format!("/proc/{}/status", container.pid())).unwrap();
        let uid: u32 = status
            .lines()
            .find_map(|l| l.strip_prefix("Uid:\t"))
            .unwrap()
            .split('\t')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        assert!((0x7000_0000..0xB000_0000).contains(&uid), "{uid:#x}");
        users.push(uid / 65_536);
    }
    assert_ne!(users[0], users[1], "no two containers share a user");

    // What root inside writes is stored as root's own in the layer, and belongs to it again in the next start.
    assert_eq!(
        a.sh("echo x > /made && chown 7:8 /made && stat -c %u:%g / /etc /made /usr /dev/null").await.out,
        "0:0\n0:0\n7:8\n0:0\n0:0"
    );
    let stored = machine.data.join("containers/a/upper/made");
    let stored = std::fs::metadata(stored).unwrap();
    assert_eq!((stored.uid(), stored.gid()), (7, 8));
    for id in ["a", "b"] {
        machine.runtime.destroy(id).await.unwrap();
    }
}

pub async fn sees_only_itself(machine: &Machine) {
    let mut spec = machine.spec("a");
    spec.hostname = "box-1".to_owned();
    let a = machine.launch(spec).await;
    assert_eq!(a.run(&["hostname"]).await.out, "box-1");
    assert_eq!(a.sh("cat /etc/hostname").await.out, "box-1");
    let pids = a.sh("echo /proc/[0-9]*").await.out;
    assert_eq!(pids, "/proc/1 /proc/2".replace('2', pids.rsplit('/').next().unwrap()), "{pids}");
    let mounts = a.sh("cat /proc/self/mounts").await.out;
    assert!(
        !mounts.contains("/dev/vd")
            || mounts.lines().filter(|l| l.starts_with("/dev/")).all(|l| l.contains(" /usr ")),
        "{mounts}"
    );
    assert!(!mounts.contains("/var/tmp") && mounts.contains("evoke / overlay"), "{mounts}");
    let folders = a.sh("ls /").await.out;
    assert!(!folders.contains("work") && !folders.contains("home"), "{folders}");
    // Masked and read-only parts.
    assert_eq!(a.sh("cat /proc/kcore 2>/dev/null | wc -c; ls /sys/firmware | wc -l").await.out, "0\n0");
    assert_ne!(a.sh("echo 1 > /proc/sys/kernel/panic").await.code, Some(0));
    assert_ne!(a.sh("echo c > /proc/sysrq-trigger 2>&1; grep -c . /proc/sysrq-trigger").await.out, "1");
    assert_ne!(a.sh("touch /sys/x").await.code, Some(0));
    assert_eq!(a.sh("ls /sys/class/net").await.out, "lo");
    assert_ne!(a.sh("touch /usr/x").await.code, Some(0), "the machine's programs are read-only");
    let devices = a.sh("ls /dev").await.out;
    let expected = "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero";
    assert_eq!(devices.split_whitespace().collect::<Vec<_>>().join(" "), expected);
    assert_eq!(
        a.sh("echo x > /dev/null && head -c 4 /dev/urandom | wc -c && echo y > /dev/shm/f && cat /dev/shm/f")
            .await
            .out,
        "4\ny"
    );
    assert_eq!(
        a.sh("cut -d: -f3 /proc/self/cgroup | sort -u")
            .await
            .out
            .lines()
            .filter(|l| l.contains("evoke"))
            .count(),
        0
    );
    machine.runtime.destroy("a").await.unwrap();
}

pub async fn privileged_calls_are_refused(machine: &Machine) {
    let a = machine.launch(machine.spec("a")).await;
    let status =
        a.sh("grep -E 'CapPrm|CapEff|CapBnd|CapInh|NoNewPrivs|Seccomp:' /proc/self/status").await.out;
    let fields: Vec<_> = status.split_whitespace().collect();
    let caps = "00000000a00425fb".to_owned();
    assert!(
        fields.contains(&"NoNewPrivs:")
            && status.contains("NoNewPrivs:\t1")
            && status.contains("Seccomp:\t2"),
        "{status}"
    );
    let expected = format!("CapInh:\t0000000000000000\nCapPrm:\t{caps}\nCapEff:\t{caps}\nCapBnd:\t{caps}");
    // Docker's default is a80425fb; without mknod (bit 27) it is a00425fb.
    assert!(status.starts_with(&expected), "{status}");
    for script in [
        "mount -t tmpfs x /tmp",
        "mount --bind /etc /tmp",
        "umount /proc",
        "mknod /tmp/null c 1 3",
        "mknod /tmp/disk b 254 0",
        "unshare -U true",
        "unshare -m true",
        "nsenter -t 1 -m true",
        "hostname other",
        "date -s 2020-01-01",
        "chroot /proc/1/root true",
        "ls /proc/1/root/",
        "dd if=/dev/vda of=/dev/null count=1",
        "echo 0 > /proc/self/oom_score_adj && echo -500 > /proc/self/oom_score_adj",
        "renice -n -5 $$",
    ] {
        let ran = a.sh(script).await;
        assert_ne!(ran.code, Some(0), "{script}: {}", ran.out);
    }
    // What root in a container is for still works.
    let fine =
        "touch /tmp/f && chown 1000:1000 /tmp/f && chmod 4755 /tmp/f && mkfifo /tmp/p && chroot / true";
    assert_eq!(a.sh(fine).await.code, Some(0));
    assert_eq!(a.sh("setpriv --reuid 1000 --regid 1000 --clear-groups id -u").await.out, "1000");
    machine.runtime.destroy("a").await.unwrap();
}

pub async fn the_init_cannot_be_touched(machine: &Machine) {
    let a = machine.launch(machine.spec("a")).await;
    for script in [
        "cat /proc/1/environ",
        "readlink /proc/1/fd/3",
        "readlink /proc/1/exe",
        "cat /proc/1/maps",
        "head -c 1 /proc/1/mem",
    ] {
        assert_ne!(a.sh(script).await.code, Some(0), "{script}");
    }
    a.sh("for s in 1 2 3 9 10 12 15 19; do kill -$s 1; done").await;
    assert_eq!(a.run(&["true"]).await.code, Some(0), "it is still there");
    // A program has no descriptor but its own three, and none of the container's sockets.
    let fds = a.sh("ls -l /proc/self/fd").await.out;
    assert!(!fds.contains("socket") && !fds.contains("memfd"), "{fds}");
    // Orphans are reaped.
    a.sh("(sh -c 'sleep 0.05 & exec true' &) ; sleep 0.3").await;
    assert_eq!(a.sh("grep -l 'State:.Z' /proc/[0-9]*/status | wc -l").await.out, "0");
    machine.runtime.destroy("a").await.unwrap();
}

pub async fn programs_get_what_they_are_given(machine: &Machine) {
    let a = machine.launch(machine.spec("a")).await;
    let ran = a.run_with(&["sh", "-c", "echo $A; pwd; id -u; id -G; ulimit -c"], |spec| {
        spec.env = vec![("A".to_owned(), "ä".to_owned())];
        spec.cwd = "/made/here".to_owned();
        spec.user = "web".to_owned();
    });
    assert_eq!(ran.await.out, "ä\n/made/here\n1000\n1000 1001\n0");
    assert_eq!(a.sh("exit 7").await.code, Some(7));
    assert_eq!(a.sh("kill -9 $$").await.signal, Some(9));
    // An interrupt has its default effect, and a program's group can be signalled.
    let (_r, w) = rustix::pipe::pipe().unwrap();
    let spec = evoke_runtime::ProcessSpec::new(vec!["sleep".into(), "100".into()], w.try_clone().unwrap(), w);
    let proc = a.guest.spawn(spec).await.unwrap();
    a.guest.signal(proc, 2, true).await.unwrap();
    loop {
        let evoke_runtime::GuestEvent::Exited { proc: ended, exit } = a.guest.next_event().await.unwrap();
        if ended == proc {
            assert_eq!(exit.signal, Some(2));
            break;
        }
    }
    let (_r, w) = rustix::pipe::pipe().unwrap();
    let spec = evoke_runtime::ProcessSpec::new(vec!["no-such-program".into()], w.try_clone().unwrap(), w);
    let error = a.guest.spawn(spec).await.unwrap_err().to_string();
    assert!(error.contains("no-such-program") && error.contains("No such file"), "{error}");
    // What Python needs of the kernel is allowed: threads, forks, semaphores, sockets.
    let pool = "import multiprocessing as m, threading as t, socket, subprocess as s; x = t.Thread(target=print, args=('t',)); \
        x.start(); x.join(); socket.socketpair(); print(m.Pool(2).map(abs, [-1, 2]), s.run(['echo', 's'], capture_output=True).stdout)";
    assert_eq!(a.run(&["python3", "-c", pool]).await.out, "t\n[1, 2] b's\\n'");
    // Large environments travel.
    let big = "x".repeat(100_000);
    let ran = a.run_with(&["sh", "-c", "echo ${#A}"], |spec| spec.env = vec![("A".to_owned(), big)]).await;
    assert_eq!(ran.out, "100000");
    machine.runtime.destroy("a").await.unwrap();
}

pub async fn requests_that_break_the_rules_are_refused(machine: &Machine) {
    let single = Owner::Single { uid: SERVICE, gid: SERVICE };
    let link = machine.data.join("mounts/link");
    std::os::unix::fs::symlink("/etc", &link).unwrap();
    let layer = |path: std::path::PathBuf, owner| vec![Layer { path, owner }];
    for layers in [
        layer("/etc".into(), single),
        layer("/etc".into(), Owner::Canonical),
        layer("/usr/../etc".into(), Owner::Single { uid: 0, gid: 0 }),
        layer(link.clone(), single),
        layer(link.join("ssl"), single),
        layer(machine.data.join("mounts/../../.."), single),
        layer(machine.data.join("mounts/files"), Owner::Single { uid: 0, gid: 0 }),
        layer(machine.data.join("mounts/files"), Owner::Canonical),
        layer(machine.data.join("layers/../mounts"), Owner::Canonical),
        layer(machine.data.join("layers/absent"), Owner::Canonical),
    ] {
        let mut spec = machine.spec("a");
        let shown = format!("{layers:?}");
        spec.layers = layers;
        assert!(machine.runtime.start(spec).await.is_err(), "{shown}");
    }
    let bind = Bind {
        source: "/usr/share".into(),
        target: "/x".into(),
        read_only: false,
        owner: Owner::Single { uid: 0, gid: 0 },
    };
    let mut spec = machine.spec("a");
    spec.binds.push(bind);
    assert!(matches!(machine.runtime.start(spec).await, Err(RuntimeError::Refused(_))));
    for path in ["mounts", "layers", "layers/..", "containers/.lock", "layers/../key", "db"] {
        let removed = machine.runtime.remove_tree(&machine.data.join(path)).await;
        assert!(matches!(removed, Err(RuntimeError::Refused(_))), "{path}: {removed:?}");
    }
    assert!(machine.runtime.remove_tree("/etc".as_ref()).await.is_err());
    assert!(machine.runtime.destroy("../x").await.is_err());
    assert!(machine.runtime.list().await.unwrap().is_empty());
    // The inside of layers and containers is closed to the service user.
    let mode = std::fs::metadata(machine.layer("base")).unwrap();
    assert_eq!((mode.uid(), mode.mode() & 0o777), (0, 0o700));
}
