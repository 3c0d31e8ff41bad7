//! The raw system calls of the helper, each behind a safe function. The helper has one thread, which is what
//! makes forking and moving between namespaces here sound.

use crate::RuntimeError;
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Turns an error into the failure of a step.
pub(super) trait Step<T> {
    fn step(self, what: impl Into<String>) -> Result<T, RuntimeError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, what: impl Into<String>) -> Result<T, RuntimeError> {
        self.map_err(|error| RuntimeError::step(what, error))
    }
}

/// A process of ours, by number and by descriptor.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
}

/// The kernel's `struct clone_args`.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Forks with `flags` of clone3 and runs `child` in the new process, which exits with what it returns.
pub(super) fn fork_with(
    flags: u64,
    cgroup: Option<BorrowedFd<'_>>,
    child: impl FnOnce() -> i32,
) -> io::Result<Child> {
    const CLONE_PIDFD: u64 = 0x1000;
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let mut pidfd: i32 = -1;
    let mut args = CloneArgs {
        flags: flags | CLONE_PIDFD,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM this is a fork: the child has its own copy of everything. This process has one
    // thread, so no lock is held by a thread that the child does not have.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let code = child();
            // SAFETY: ends the child without running the parent's exit handlers.
            unsafe { libc::_exit(code) }
        }
        // SAFETY: the kernel has stored a fresh descriptor, close-on-exec, that nobody else owns.
        pid => Ok(Child { pid: pid as i32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }),
    }
}

/// In a child: enters the user namespace of a process, and with `pids` has its own children born in the process's pid
/// namespace; becomes root there.
fn enter_namespaces(process: BorrowedFd<'_>, pids: bool) -> io::Result<()> {
    let kinds = libc::CLONE_NEWUSER | if pids { libc::CLONE_NEWPID } else { 0 };
    // SAFETY: this child has one thread, and nothing of it depends on who it is.
    if unsafe { libc::setns(process.as_raw_fd(), kinds) } != 0 {
        return Err(io::Error::last_os_error());
    }
    use rustix::thread::{Gid, Uid};
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)?;
    // Changing the user cleared it, and what this process makes could not be described by it.
    // SAFETY: changes one attribute of this process.
    if unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Forks a sibling of this process with `flags` of clone3, whose parent takes it for its own child, and runs `child` in
/// it. Its number as this process sees it, and its descriptor.
fn fork_sibling(flags: u64, child: impl FnOnce() -> i32) -> io::Result<Child> {
    const CLONE_PIDFD: u64 = 0x1000;
    let mut pidfd: i32 = -1;
    // Its parent gets the signal that this process's end would give it.
    let mut args = CloneArgs {
        flags: flags | libc::CLONE_PARENT as u64 | CLONE_PIDFD,
        pidfd: (&raw mut pidfd) as u64,
        ..CloneArgs::default()
    };
    // SAFETY: a fork of a process with one thread, as in `fork_with`.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: ends the child without running the parent's exit handlers.
        0 => unsafe { libc::_exit(child()) },
        // SAFETY: the kernel has stored a fresh descriptor, close-on-exec, that nobody else owns.
        pid => Ok(Child { pid: pid as i32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }),
    }
}

/// The number of a process as whoever mounted `/proc` counts.
fn number_of(pidfd: BorrowedFd<'_>) -> io::Result<i32> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    let number = info.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
    number.filter(|number| *number > 0).ok_or_else(|| io::Error::other("a process without a number"))
}

/// As [`fork_with`], in the user and pid namespaces of the process `around`: the new user namespace's parent is that
/// one's, and maps by `map`. The new process is a child of this one's all the same.
///
/// Two processes lead there, since only one that was born in a pid namespace may make others below it: the first enters
/// and forks, the second makes the namespaces and writes the maps. The new process waits for them: once it is another
/// program, nobody of their kind may describe it. Both tell by a pipe what they made, or which error they met.
pub(super) fn fork_inside(
    around: BorrowedFd<'_>,
    flags: u64,
    map: &str,
    child: impl FnOnce() -> i32,
) -> io::Result<Child> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let (waits, lets_go) = evoke_guest::packet::pair()?;
    let first = fork_with(0, None, || {
        die_with_parent();
        let second = enter_namespaces(around, true).and_then(|()| {
            fork_sibling(0, || {
                let made = fork_sibling(flags, || {
                    // Of the waiting end there is a copy wherever the other one is: nobody's end is seen here.
                    let told = evoke_guest::packet::recv(waits.as_fd(), false);
                    if told.is_ok_and(|told| told.is_some()) { child() } else { 1 }
                });
                let mut code = 0;
                let mapped = made.and_then(|made| {
                    let number = number_of(made.pidfd.as_fd()).inspect_err(|_| kill(made.pidfd.as_fd()))?;
                    code = tell(&writer, SECOND, Ok(number));
                    let mapped = super::ids::write_maps(number, map, map);
                    let let_go =
                        mapped.and_then(|()| evoke_guest::packet::send(lets_go.as_fd(), b"", &[], true));
                    let_go.map(|()| number).inspect_err(|_| kill(made.pidfd.as_fd()))
                });
                code | tell(&writer, MAPPED, mapped)
            })
        });
        tell(&writer, FIRST, second.map(|second| second.pid))
    })?;
    drop((writer, waits, lets_go));
    let told = hear(std::fs::File::from(reader));
    wait(first.pid);
    arrived(told)
}

/// What is told on the way into namespaces, by who tells it: the last word is the second process's.
fn hear(mut reader: std::fs::File) -> [Option<io::Result<i32>>; 3] {
    use io::Read;
    let mut told = [None, None, None];
    while !matches!(told, [Some(Err(_)), ..] | [Some(_), _, Some(_)]) {
        let mut word = [0u8; 8];
        if reader.read_exact(&mut word).is_err() {
            break;
        }
        let [who, what] =
            [0, 4].map(|at| i32::from_ne_bytes([word[at], word[at + 1], word[at + 2], word[at + 3]]));
        let what = if what > 0 { Ok(what) } else { Err(io::Error::from_raw_os_error(-what)) };
        if let Some(place) = usize::try_from(who).ok().and_then(|who| told.get_mut(who)) {
            *place = Some(what);
        }
    }
    told
}

/// The process that was made, or why there is none; waits for what led there.
fn arrived([second, made, mapped]: [Option<io::Result<i32>>; 3]) -> io::Result<Child> {
    let silent = || io::Error::other("a process on the way ended without a word");
    wait(second.ok_or_else(silent)??);
    let mapped = mapped.ok_or_else(silent).and_then(|mapped| mapped);
    match (made.transpose()?, mapped) {
        (Some(pid), Ok(_)) => {
            let number = rustix::process::Pid::from_raw(pid).ok_or_else(silent)?;
            // It is a child that was not waited for, so that the number is its own.
            let pidfd = rustix::process::pidfd_open(number, rustix::process::PidfdFlags::empty())?;
            Ok(Child { pid, pidfd })
        }
        (made, mapped) => {
            // Killed by whoever failed; a namespace does not end before the last of its processes is waited for.
            if let Some(pid) = made {
                // SAFETY: a plain system call; the number is a child's that was not waited for.
                unsafe { libc::kill(pid, libc::SIGKILL) };
                wait(pid);
            }
            Err(mapped.err().unwrap_or_else(silent))
        }
    }
}

/// Who tells, of the two on the way into namespaces.
const FIRST: i32 = 0;
const SECOND: i32 = 1;
const MAPPED: i32 = 2;

/// Tells the helper what was made; the exit code.
fn tell(to: &OwnedFd, who: i32, made: io::Result<i32>) -> i32 {
    let what = made.unwrap_or_else(|error| -error.raw_os_error().unwrap_or(libc::EIO));
    let word = [who.to_ne_bytes(), what.to_ne_bytes()].concat();
    // So short a message is written as a whole.
    i32::from(rustix::io::write(to, &word).is_err())
}

/// A new network namespace that belongs to the user namespace of a process.
pub(super) fn network_of(process: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    use io::{Read, Write};
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let child = fork_with(0, None, || {
        die_with_parent();
        let made = enter_namespaces(process, false).and_then(|()| unshare_network());
        let told = made.err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO));
        if std::fs::File::from(writer).write_all(&told.to_ne_bytes()).is_err() {
            return 1;
        }
        loop {
            // SAFETY: waits for the signal that ends this child.
            unsafe { libc::pause() };
        }
    })?;
    let mut told = [0u8; 4];
    let made =
        std::fs::File::from(reader).read_exact(&mut told).and_then(|()| match i32::from_ne_bytes(told) {
            0 => open(&format!("/proc/{}/ns/net", child.pid), OFlags::RDONLY),
            errno => Err(io::Error::from_raw_os_error(errno)),
        });
    kill(child.pidfd.as_fd());
    wait(child.pid);
    made
}

/// In a child: puts `control` at the guest's number, `/dev/null` at the standard ones, closes everything else
/// and executes `program`. Returns the exit code if that fails.
pub(super) fn execute_guest(program: BorrowedFd<'_>, control: BorrowedFd<'_>, null: BorrowedFd<'_>) -> i32 {
    const FAILED: i32 = 127;
    // Above every number that is replaced below.
    const SAFE: i32 = 64;
    // SAFETY: only descriptors of this child are changed, and nothing of Rust's runs after it but the exec.
    unsafe {
        let program = libc::fcntl(program.as_raw_fd(), libc::F_DUPFD_CLOEXEC, SAFE);
        let control = libc::fcntl(control.as_raw_fd(), libc::F_DUPFD, SAFE);
        if program < 0 || control < 0 {
            return FAILED;
        }
        for number in 0..3 {
            if libc::dup2(null.as_raw_fd(), number) < 0 {
                return FAILED;
            }
        }
        if libc::dup2(control, evoke_guest::CONTROL_FD) < 0 || libc::dup3(program, 4, libc::O_CLOEXEC) < 0 {
            return FAILED;
        }
        libc::syscall(libc::SYS_close_range, 5, u32::MAX, 0);
        for signal in 1..=64 {
            if signal != libc::SIGKILL && signal != libc::SIGSTOP {
                libc::signal(signal, libc::SIG_DFL);
            }
        }
        if keep_capabilities_over_exec().is_err() {
            return FAILED;
        }
        let arguments = [c"evoke-guest".as_ptr(), std::ptr::null()];
        let environment = [std::ptr::null::<libc::c_char>()];
        libc::execveat(
            4,
            c"".as_ptr(),
            arguments.as_ptr().cast::<*mut libc::c_char>(),
            environment.as_ptr().cast::<*mut libc::c_char>(),
            libc::AT_EMPTY_PATH,
        );
    }
    FAILED
}

/// In a child that is in a new user namespace: keeps its capabilities there although, as long as there are no id
/// maps, it is nobody's root. Its first act is to become root, and programs lose all of this again.
fn keep_capabilities_over_exec() -> rustix::io::Result<()> {
    use rustix::thread::{
        CapabilitySet, capabilities, configure_capability_in_ambient_set, set_capabilities,
    };
    let mut sets = capabilities(None)?;
    sets.inheritable = sets.permitted;
    set_capabilities(None, sets)?;
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if sets.permitted.contains(capability) {
            configure_capability_in_ambient_set(capability, true)?;
        }
    }
    Ok(())
}

/// In a child: closes all descriptors from 3 on but those listed.
pub(super) fn close_all_but(keep: &[i32]) {
    let mut keep: Vec<u32> =
        keep.iter().filter_map(|fd| u32::try_from(*fd).ok()).filter(|fd| *fd >= 3).collect();
    keep.sort_unstable();
    let mut first = 3u32;
    for fd in keep.into_iter().chain([u32::MAX]) {
        if fd > first {
            // SAFETY: the child uses none of the closed descriptors.
            unsafe { libc::syscall(libc::SYS_close_range, first, fd - 1, 0) };
        }
        first = fd.saturating_add(1);
    }
}

/// In a child: be killed when the helper ends.
pub(super) fn die_with_parent() {
    // SAFETY: changes one attribute of this process.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
}

/// Reaps a child of ours that has ended, and says how: exit code or -signal. `None` while it runs or if it is not ours.
pub(super) fn reap(pid: i32) -> Option<i32> {
    let mut status = 0;
    // SAFETY: writes one integer of this function's own.
    let reaped = unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) };
    if reaped != pid {
        return None;
    }
    Some(if libc::WIFSIGNALED(status) { -libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) })
}

/// Waits until a child that is about to end has ended, and reaps it.
pub(super) fn wait(pid: i32) {
    // SAFETY: no status is asked for.
    while unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) } < 0
        && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
    {}
}

/// Sends SIGKILL; a process that has ended is fine.
pub(super) fn kill(pidfd: BorrowedFd<'_>) {
    // SAFETY: a plain system call without further information.
    unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), libc::SIGKILL, 0, 0) };
}

/// The kernel's `struct mount_attr`.
#[repr(C)]
#[derive(Default)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

const MOUNT_ATTR_IDMAP: u64 = 0x10_0000;

/// Changes a detached mount: sets `flags` and, with a user namespace, translates owners by its map.
pub(super) fn set_attributes(
    mount: BorrowedFd<'_>,
    flags: MountAttrFlags,
    idmap: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let mut attr = MountAttr { set: u64::from(flags.bits()), ..MountAttr::default() };
    if let Some(idmap) = idmap {
        attr.set |= MOUNT_ATTR_IDMAP;
        attr.userns_fd = idmap.as_raw_fd() as u64;
    }
    // SAFETY: the path is an empty C string, the attributes are a live structure of the stated size.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A detached copy of what `path` names.
pub(super) fn clone_mount(path: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    Ok(open_tree(path, "", flags)?)
}

/// A new file system, not attached anywhere.
pub(super) fn new_mount(kind: &str, options: &[(&str, &str)], flags: MountAttrFlags) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        if value.is_empty() {
            rustix::mount::fsconfig_set_flag(context.as_fd(), *key)?;
        } else {
            fsconfig_set_string(context.as_fd(), *key, *value)?;
        }
    }
    if let Err(error) = fsconfig_create(context.as_fd()) {
        return Err(explained(context.as_fd(), error.into()));
    }
    Ok(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, flags)?)
}

/// Adds what the kernel wrote about a failed mount to its error, keeping the number where there is nothing.
fn explained(context: BorrowedFd<'_>, error: io::Error) -> io::Error {
    let mut text = [0u8; 512];
    match rustix::io::read(context, &mut text[..]) {
        Ok(length) if length > 0 && error.raw_os_error() != Some(libc::ENOSPC) => {
            let said = String::from_utf8_lossy(&text[..length]);
            io::Error::new(error.kind(), format!("{error} ({})", said.trim_end()))
        }
        _ => error,
    }
}

/// Attaches a mount at `target`.
pub(super) fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(mount, "", target, "", flags)?)
}

/// Gives this process a mount namespace of its own, from which nothing reaches the host's.
pub(super) fn own_mount_namespace() -> io::Result<()> {
    // SAFETY: only the mount namespace is unshared; this process has one thread.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }?;
    use rustix::mount::{MountPropagationFlags, mount_change};
    // Downstream, so that what is mounted on the host later is still seen here, and never the reverse.
    Ok(mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?)
}

/// A new network namespace, in which this process then is.
pub(super) fn unshare_network() -> io::Result<()> {
    // SAFETY: only the network namespace is unshared; this process has one thread.
    Ok(unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }?)
}

/// Moves this process into a network namespace.
pub(super) fn enter_network(namespace: BorrowedFd<'_>) -> io::Result<()> {
    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
    Ok(move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))?)
}

/// Runs `work` with files belonging to host user and group `id`, with every capability kept.
pub(super) fn as_file_user<T>(id: u32, work: impl FnOnce() -> T) -> io::Result<T> {
    /// Changing the user does not change capabilities.
    const NO_SETUID_FIXUP: libc::c_ulong = 1 << 2;
    let set = |bits: libc::c_ulong, user: u32| {
        // SAFETY: attributes of this thread alone, which is the process's only one.
        unsafe {
            if libc::prctl(libc::PR_SET_SECUREBITS, NO_SETUID_FIXUP) != 0 {
                return Err(io::Error::last_os_error());
            }
            libc::setfsuid(user);
            libc::setfsgid(user);
            // The call tells its former value only; asking for an impossible one tells the present.
            let same = libc::setfsuid(u32::MAX) as u32 == user && libc::setfsgid(u32::MAX) as u32 == user;
            if !same || libc::prctl(libc::PR_SET_SECUREBITS, bits) != 0 {
                return Err(io::Error::other("the file user could not be changed"));
            }
        }
        Ok(())
    };
    if let Err(error) = set(NO_SETUID_FIXUP, id) {
        return set(0, 0).and(Err(error));
    }
    let done = work();
    if set(0, 0).is_err() {
        // Going on as somebody else would make files that belong to a container; a new helper is started.
        std::process::abort();
    }
    Ok(done)
}

/// Opens a file of this process's own choosing.
pub(super) fn open(path: &str, flags: OFlags) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())?)
}

/// Times that sealing is tried again. The kernel refuses it (EBUSY) after having waited some 150 ms for a page that
/// its own memory management holds at that moment (`memfd_wait_for_pins`).
const SEAL_TRIES: usize = 20;

/// Copies a program into memory that can no longer be changed.
pub(super) fn sealed_program(bytes: &[u8]) -> io::Result<OwnedFd> {
    /// Since 6.3; older kernels refuse it and need it not.
    const EXECUTABLE: u32 = 0x10;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let executable = flags | MemfdFlags::from_bits_retain(EXECUTABLE);
    let file = match rustix::fs::memfd_create("evoke-guest", executable) {
        Err(rustix::io::Errno::INVAL) => rustix::fs::memfd_create("evoke-guest", flags)?,
        other => other?,
    };
    let mut written = 0;
    while written < bytes.len() {
        written += rustix::io::pwrite(&file, &bytes[written..], written as u64)?;
    }
    rustix::fs::fchmod(&file, Mode::from_raw_mode(0o555))?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    let mut tries_left = SEAL_TRIES;
    loop {
        match rustix::fs::fcntl_add_seals(&file, seals) {
            Err(rustix::io::Errno::BUSY) if tries_left > 0 => tries_left -= 1,
            sealed => return Ok(sealed.map(|()| file)?),
        }
    }
}

/// Ignores the signals that a terminal sends to all of us: the helper ends when its holder does.
pub(super) fn ignore_signals() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGPIPE, libc::SIGQUIT] {
        // SAFETY: a constant disposition.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}
