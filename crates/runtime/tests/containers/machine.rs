//! A data folder with a helper of its own, and short ways to run things in it.

use evoke_runtime::{
    Bind, ContainerSpec, Guest, GuestBinary, GuestEvent, HelperConfig, HelperRuntime, Layer, Network, Owner,
    ProcessSpec, Runtime, Started, fds, helper,
};
use std::future::Future;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;
use tokio::io::AsyncReadExt;

/// No step of a test may take longer.
pub const STEP: Duration = Duration::from_secs(60);
/// A user that exists nowhere.
pub const SERVICE: u32 = 64_087;

pub struct Machine {
    pub runtime: HelperRuntime,
    pub data: PathBuf,
    folder: tempfile::TempDir,
    tokio: tokio::runtime::Runtime,
    helper: Mutex<Option<(Child, OwnedFd)>>,
}

/// What the helper's process does.
pub fn run_helper() -> ! {
    let data = PathBuf::from(std::env::var_os("TEST_DATA").unwrap());
    let control = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    let specifications = data.join("cdi");
    crate::gpus::specification(&specifications);
    let mut config = HelperConfig::new(data, SERVICE, SERVICE, GuestBinary::File(guest_binary()));
    config.read_only_roots = vec!["/usr".into()];
    config.gpus.cdi = vec![specifications];
    helper::main(control, config)
}

/// The guest, built static by cargo into a folder beside this program.
fn guest_binary() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let build = || {
        let exe = std::env::current_exe().unwrap();
        let target = exe.ancestors().nth(3).unwrap().join("guest");
        let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
        cargo.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
        cargo.args([
            "build",
            "-q",
            "-p",
            "evoke-guest",
            "--bin",
            "evoke-guest",
            "--release",
            "--target",
            &triple,
        ]);
        cargo.arg("--target-dir").arg(&target).env("RUSTFLAGS", "-C target-feature=+crt-static");
        assert!(cargo.status().unwrap().success(), "the guest builds");
        target.join(triple).join("release/evoke-guest")
    };
    if let Some(path) = std::env::var_os("TEST_GUEST") {
        return path.into();
    }
    BUILT.get_or_init(build).clone()
}

fn start_helper(data: &Path) -> (Child, OwnedFd) {
    let (ours, theirs) = fds::pair().unwrap();
    let mut command = Command::new("/proc/self/exe");
    command.arg("__helper").env("TEST_DATA", data).env("TEST_GUEST", guest_binary()).stdin(theirs);
    (command.stdout(Stdio::null()).process_group(0).spawn().unwrap(), ours)
}

impl Machine {
    pub fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("evoke-test-").tempdir_in("/var/tmp").unwrap();
        let data = folder.path().join("data");
        for name in ["", "mounts", "mounts/files"] {
            std::fs::create_dir(data.join(name)).unwrap();
            std::os::unix::fs::chown(data.join(name), Some(SERVICE), Some(SERVICE)).unwrap();
        }
        let tokio = tokio::runtime::Runtime::new().unwrap();
        let helper = start_helper(&data);
        let runtime = tokio.block_on(async { attach(&helper.1) });
        let machine = Self { runtime, data, folder, tokio, helper: Mutex::new(Some(helper)) };
        machine.block_on(machine.make_base());
        machine
    }

    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.tokio.block_on(future)
    }

    /// A tree with the folders and links of a usual root; programs come in by a bind.
    async fn make_base(&self) {
        let mut tar = Tar::default();
        for folder in ["usr", "etc", "tmp", "var", "root", "run"] {
            tar.folder(folder);
        }
        for link in ["bin", "sbin", "lib", "lib64"] {
            tar.link(link, &format!("usr/{link}"));
        }
        tar.file("etc/passwd", "root:x:0:0::/root:/bin/sh\nweb:x:1000:1000::/:/bin/sh\n");
        tar.file("etc/group", "root:x:0:\nweb:x:1000:\nextra:x:1001:web\n");
        self.runtime.unpack_layer(&self.layer("base"), &[], tar.finish()).await.unwrap();
    }

    pub fn layer(&self, name: &str) -> PathBuf {
        self.data.join("layers").join(name)
    }

    pub fn base(&self) -> Vec<Layer> {
        vec![Layer { path: self.layer("base"), owner: Owner::Canonical }]
    }

    /// A container with the machine's programs.
    pub fn spec(&self, id: &str) -> ContainerSpec {
        let mut spec = ContainerSpec::new(id, self.base());
        spec.binds.push(Bind {
            source: "/usr".into(),
            target: "/usr".into(),
            read_only: true,
            owner: Owner::Single { uid: 0, gid: 0 },
        });
        spec.network = Network::Loopback;
        spec.grace_ms = 1000;
        spec
    }

    pub async fn launch(&self, spec: ContainerSpec) -> Box {
        let id = spec.id.clone();
        let started = tokio::time::timeout(STEP, self.runtime.start(spec)).await.unwrap().unwrap();
        let Started { pidfd, control, listeners, .. } = started;
        Box { id, guest: Guest::new(control).unwrap(), pidfd, listeners }
    }

    /// Sockets of other servers to the same helper.
    pub fn attach(&self) -> HelperRuntime {
        attach(&self.helper.lock().unwrap().as_ref().unwrap().1)
    }

    pub fn helper_pid(&self) -> u32 {
        self.helper.lock().unwrap().as_ref().unwrap().0.id()
    }

    /// Kills the helper and starts another one on the same data folder.
    pub fn replace_helper(&self) -> HelperRuntime {
        let mut helper = self.helper.lock().unwrap();
        let (mut child, _control) = helper.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        *helper = Some(start_helper(&self.data));
        attach(&helper.as_ref().unwrap().1)
    }

    /// Ends the helper as its holder's end would, and looks that nothing is left.
    pub fn stop(self) {
        self.end_helper();
        drop(self.runtime);
        assert_eq!(crate::leftovers::on_machine(&self.data), Vec::<String>::new());
        drop(self.folder);
    }

    pub fn end_helper(&self) {
        let Some((mut child, control)) = self.helper.lock().unwrap().take() else { return };
        drop(control);
        let status = child.wait().unwrap();
        assert!(status.success(), "the helper ended with {status}");
    }
}

fn attach(control: &OwnedFd) -> HelperRuntime {
    let (ours, theirs) = fds::pair().unwrap();
    fds::send(control.as_fd(), b"{}", &[theirs.as_fd()], false).unwrap();
    HelperRuntime::connect(ours).unwrap()
}

/// A running container.
pub struct Box {
    pub id: String,
    pub guest: Guest,
    pub pidfd: OwnedFd,
    pub listeners: Vec<OwnedFd>,
}

/// What a program said and how it ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Ran {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub out: String,
}

impl Box {
    pub async fn run(&self, argv: &[&str]) -> Ran {
        self.run_with(argv, |_| {}).await
    }

    pub async fn sh(&self, script: &str) -> Ran {
        self.run(&["/bin/sh", "-c", script]).await
    }

    pub async fn run_with(&self, argv: &[&str], change: impl FnOnce(&mut ProcessSpec)) -> Ran {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let argv = argv.iter().map(|argument| (*argument).to_owned()).collect();
        let mut spec = ProcessSpec::new(argv, write.try_clone().unwrap(), write);
        change(&mut spec);
        let proc = self.guest.spawn(spec).await.unwrap();
        let read = tokio::net::unix::pipe::Receiver::from_owned_fd_unchecked(nonblocking(read)).unwrap();
        let exit = async {
            loop {
                match self.guest.next_event().await {
                    Some(GuestEvent::Exited { proc: ended, exit }) if ended == proc => return exit,
                    Some(_) => {}
                    None => panic!("the container ended"),
                }
            }
        };
        let mut text = Vec::new();
        let mut read = read;
        let both = async { tokio::join!(exit, read.read_to_end(&mut text)) };
        let (exit, _) = tokio::time::timeout(STEP, both).await.expect("the program ends in time");
        Ran { code: exit.code, signal: exit.signal, out: String::from_utf8_lossy(&text).trim().to_owned() }
    }

    /// The host's number of the container's init.
    pub fn pid(&self) -> u32 {
        use std::os::fd::AsRawFd;
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", self.pidfd.as_raw_fd())).unwrap();
        let line = info.lines().find_map(|line| line.strip_prefix("Pid:")).unwrap();
        line.trim().parse().unwrap()
    }
}

fn nonblocking(fd: OwnedFd) -> OwnedFd {
    rustix::io::ioctl_fionbio(&fd, true).unwrap();
    fd
}

/// A small writer of archives.
#[derive(Default)]
pub struct Tar {
    bytes: Vec<u8>,
}

impl Tar {
    fn entry(&mut self, path: &str, kind: u8, mode: u32, uid: u32, link: &str, content: &[u8]) {
        let mut header = [0u8; 512];
        let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
        put(0, path);
        put(100, &format!("{mode:07o}"));
        put(108, &format!("{uid:07o}"));
        put(116, &format!("{uid:07o}"));
        put(124, &format!("{:011o}", content.len()));
        put(136, "00000000000");
        put(148, "        ");
        put(157, link);
        put(257, "ustar");
        put(263, "00");
        header[156] = kind;
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.bytes.extend_from_slice(&header);
        self.bytes.extend_from_slice(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
    }

    pub fn folder(&mut self, path: &str) {
        self.entry(path, b'5', 0o755, 0, "", b"");
    }

    pub fn file(&mut self, path: &str, content: &str) {
        self.entry(path, b'0', 0o644, 0, "", content.as_bytes());
    }

    pub fn owned_file(&mut self, path: &str, uid: u32, mode: u32) {
        self.entry(path, b'0', mode, uid, "", b"x");
    }

    pub fn link(&mut self, path: &str, target: &str) {
        self.entry(path, b'2', 0o777, 0, target, b"");
    }

    pub fn hard_link(&mut self, path: &str, target: &str) {
        self.entry(path, b'1', 0o644, 0, target, b"");
    }

    pub fn finish(mut self) -> OwnedFd {
        self.bytes.resize(self.bytes.len() + 1024, 0);
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        std::thread::spawn(move || {
            // A reader that refuses the archive closes its end, which is no failure here.
            let _ = std::fs::File::from(write).write_all(&self.bytes);
        });
        read
    }
}
