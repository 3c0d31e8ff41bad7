//! Starts one program: forks, gives up everything it may not have, executes.

use crate::copy;
use crate::privileges;
use crate::seccomp::Filter;
use crate::step::invalid;
use crate::survey;
use crate::users::{self, Identity};
use crate::wire::{Program, Spawn, Way};
use std::ffi::CString;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// Where programs are looked for when the environment has no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Bytes of the child's complaint that are read.
const COMPLAINT_MAX: u64 = 1024;
/// What a child that could not execute exits with; nobody sees it but the kernel.
const EXIT_NOT_EXECUTED: i32 = 127;

/// What a child needs, made before the fork so that nothing can fail for lack of it afterwards.
struct Prepared {
    candidates: Vec<CString>,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    identity: Identity,
    cwd: String,
}

/// Starts what is asked for and returns its pid once it is executed.
pub(crate) fn spawn(request: &Spawn, stdio: [OwnedFd; 3], filter: &Filter) -> Result<i32, String> {
    let prepared = prepare(request).map_err(|error| error.to_string())?;
    let (complaint, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|error| format!("making a pipe: {error}"))?;
    // SAFETY: this process has one thread, so the child may do whatever the parent may.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(format!("starting a process: {}", io::Error::last_os_error()));
    }
    if pid == 0 {
        let code = run_child(request, &prepared, &stdio, writer, filter);
        // SAFETY: ends the child at once, without running the parent's exit handlers.
        unsafe { libc::_exit(code) }
    }
    drop(writer);
    drop(stdio);
    let mut text = Vec::new();
    let read = std::fs::File::from(complaint).take(COMPLAINT_MAX).read_to_end(&mut text);
    match read {
        Ok(0) => Ok(pid),
        Ok(_) => {
            reap(pid);
            Err(String::from_utf8_lossy(&text).into_owned())
        }
        Err(error) => Err(format!("waiting for the program to be executed: {error}")),
    }
}

pub(crate) fn reap(pid: i32) {
    // SAFETY: no status is asked for. A failure means that there is nothing left to reap.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
}

fn prepare(request: &Spawn) -> io::Result<Prepared> {
    let text =
        |value: &str| CString::new(value).map_err(|_| invalid("an argument or variable holds a zero byte"));
    let environment = request
        .env
        .iter()
        .map(|(name, value)| {
            if name.is_empty() || name.contains('=') {
                return Err(invalid(format!("'{name}' is not the name of a variable")));
            }
            text(&format!("{name}={value}"))
        })
        .collect::<io::Result<_>>()?;
    let identity = users::resolve(&request.user)?;
    let cwd = if request.cwd.is_empty() { "/".to_owned() } else { request.cwd.clone() };
    let (candidates, arguments) = match &request.program {
        Program::Copy(_) | Program::Survey(_) => (Vec::new(), Vec::new()),
        Program::Exec { argv } => {
            let program = argv.first().filter(|program| !program.is_empty());
            let program = program.ok_or_else(|| invalid("there is no program to run"))?;
            let arguments = argv.iter().map(|argument| text(argument)).collect::<io::Result<_>>()?;
            (candidates(program, &request.env)?, arguments)
        }
    };
    Ok(Prepared { candidates, arguments, environment, identity, cwd })
}

fn candidates(program: &str, env: &[(String, String)]) -> io::Result<Vec<CString>> {
    let text =
        |value: String| CString::new(value).map_err(|_| invalid("the program's name holds a zero byte"));
    if program.contains('/') {
        return Ok(vec![text(program.to_owned())?]);
    }
    let path = env.iter().rev().find(|(name, _)| name == "PATH").map_or(DEFAULT_PATH, |(_, value)| value);
    path.split(':')
        .map(|folder| {
            text(if folder.is_empty() { format!("./{program}") } else { format!("{folder}/{program}") })
        })
        .collect()
}

/// Everything between fork and exec. Returns the exit code if the program is not executed.
fn run_child(
    request: &Spawn,
    prepared: &Prepared,
    stdio: &[OwnedFd; 3],
    writer: OwnedFd,
    filter: &Filter,
) -> i32 {
    let mut complaint = std::fs::File::from(writer);
    let mut complain = |what: &str, error: &io::Error| {
        // If even this fails, the parent reports a process that ended at once.
        let _ = write!(complaint, "{what}: {error}");
        EXIT_NOT_EXECUTED
    };
    if let Err(error) = rearrange(stdio) {
        return complain("arranging descriptors", &error);
    }
    reset_signals();
    // SAFETY: plain system calls on this process alone.
    unsafe {
        libc::setsid();
        libc::umask(0o022);
    }
    if let Err(error) = enter(&prepared.cwd) {
        return complain(&format!("entering {}", prepared.cwd), &error);
    }
    if matches!(request.program, Program::Copy(_) | Program::Survey(_)) {
        if let Err((what, error)) = privileges::drop_to(&prepared.identity, false, None) {
            return complain(what, &error);
        }
    }
    match &request.program {
        Program::Copy(job) => {
            drop(complaint);
            return copy::run(job);
        }
        Program::Survey(job) => {
            drop(complaint);
            return survey::run(job);
        }
        Program::Exec { .. } => {}
    }
    let is_template = request.way == Way::Template;
    if let Err((what, error)) = privileges::drop_to(&prepared.identity, is_template, Some(filter)) {
        return complain(what, &error);
    }
    let error = execute(prepared);
    let name = prepared.arguments.first().map(|name| name.to_string_lossy()).unwrap_or_default();
    complain(&format!("executing '{name}'"), &error)
}

/// Standard input, output and error; everything else closes at the exec.
fn rearrange(stdio: &[OwnedFd; 3]) -> io::Result<()> {
    for (target, fd) in stdio.iter().enumerate() {
        // Received descriptors lie above the control socket's, so none is overwritten before it is copied.
        // SAFETY: replaces the standard descriptors of this process, which nothing of Rust's owns here.
        if unsafe { libc::dup2(fd.as_fd().as_raw_fd(), target as i32) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    let flags = libc::CLOSE_RANGE_CLOEXEC as i32;
    // SAFETY: marks descriptors to be closed at exec; none is closed now.
    if unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, flags) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Every signal back to its default and none blocked, whatever the guest itself needs.
fn reset_signals() {
    // SAFETY: constant dispositions and an empty mask; handlers of this process do not exist.
    unsafe {
        for signal in 1..=64 {
            if signal != libc::SIGKILL && signal != libc::SIGSTOP {
                libc::signal(signal, libc::SIG_DFL);
            }
        }
        let mut empty = std::mem::zeroed();
        libc::sigemptyset(&raw mut empty);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const empty, std::ptr::null_mut());
    }
}

fn enter(cwd: &str) -> io::Result<()> {
    match rustix::process::chdir(cwd) {
        Err(rustix::io::Errno::NOENT) => {
            std::fs::create_dir_all(cwd)?;
            Ok(rustix::process::chdir(cwd)?)
        }
        other => Ok(other?),
    }
}

fn execute(prepared: &Prepared) -> io::Error {
    let pointers = |list: &[CString]| {
        list.iter().map(|item| item.as_ptr()).chain([std::ptr::null()]).collect::<Vec<_>>()
    };
    let arguments = pointers(&prepared.arguments);
    let environment = pointers(&prepared.environment);
    let mut refused = None;
    for candidate in &prepared.candidates {
        // SAFETY: null-terminated arrays of C strings that outlive the call.
        unsafe { libc::execve(candidate.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => {}
            Some(libc::EACCES) => refused = Some(error),
            _ => return error,
        }
    }
    refused.unwrap_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))
}

/// Takes descriptor `number` over, if it is open.
pub(crate) fn take_descriptor(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: the number was given to this program by whoever executed it and nothing else owns it; whether it
    // is open is checked before it is used.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    match rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC) {
        Ok(()) => Ok(fd),
        Err(error) => {
            std::mem::forget(fd);
            Err(error.into())
        }
    }
}
