//! The system calls that programs in containers may make: an allow-list as a classic BPF program.
//!
//! It follows Docker's default list, without what a container here does not need and what has let containers
//! out before: keyrings, ptrace and its relatives, new namespaces and joining others, io_uring, bpf,
//! userfaultfd, perf events, every mount call. What is not on the list gives EPERM; calls that a kernel may
//! not have yet give ENOSYS, so that libraries use their fallbacks. `clone3` gives ENOSYS because its flags
//! lie in memory where a filter cannot see them; C libraries then use `clone`, whose flags are looked at.

mod table;

use std::io;

/// Loads, compares, returns: the few instructions the list needs.
const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JUMP_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const JUMP_ANY_BIT: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// Where the fields of the kernel's `struct seccomp_data` lie.
const NUMBER_AT: u32 = 0;
const ARCH_AT: u32 = 4;
const ARGUMENTS_AT: u32 = 16;

#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xC000_00B7;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const DENY: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
const MISSING: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

/// The namespace flags of `clone`.
const CLONE_NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWCGROUP
    | 0x80) as u32;
/// `personality` values that only ask, or choose plain Linux with or without a 32-bit name.
const PERSONALITIES: [u32; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xFFFF_FFFF];
/// Requests that put characters into a terminal's input.
const TERMINAL_INJECTION: [u32; 2] = [0x5412, 0x541C];
/// Address families that reach the hypervisor or the kernel's own parsers.
const REFUSED_FAMILIES: [u32; 2] = [40, 38];

/// A ready program.
#[derive(Debug, Clone)]
pub(crate) struct Filter {
    program: Vec<libc::sock_filter>,
}

impl Filter {
    /// The list of this architecture.
    pub(crate) fn new() -> Self {
        Self { program: compile(&table::allowed(), table::HIGHEST_KNOWN) }
    }

    /// The same list with joining namespaces, for templates. What they fork refuses it by [`refuse_joining`].
    pub(crate) fn of_templates() -> Self {
        let mut allowed = table::allowed();
        allowed.push(libc::SYS_setns);
        Self { program: compile(&allowed, table::HIGHEST_KNOWN) }
    }

    /// Puts the calling thread and all it will start under the list, for good.
    pub(crate) fn install(&self) -> io::Result<()> {
        let program = libc::sock_fprog {
            len: u16::try_from(self.program.len()).map_err(io::Error::other)?,
            filter: self.program.as_ptr().cast_mut(),
        };
        // SAFETY: the structure and the instructions it points to outlive the call, which only reads them.
        let result =
            unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// A filter that refuses joining namespaces and nothing else. Other interfaces of the processor are refused by the
/// list that lies below.
pub(crate) fn refuse_joining() -> Vec<(u16, u8, u8, u32)> {
    let program = [
        statement(LOAD_WORD, NUMBER_AT),
        jump(JUMP_EQUAL, libc::SYS_setns as u32, 0, 1),
        statement(RETURN, DENY),
        statement(RETURN, ALLOW),
    ];
    program.map(|one| (one.code, one.jt, one.jf, one.k)).to_vec()
}

fn statement(code: u16, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt: 0, jf: 0, k }
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

/// The low word of argument `index`.
fn argument(index: u32) -> libc::sock_filter {
    statement(LOAD_WORD, ARGUMENTS_AT + 8 * index)
}

/// "If this is call `number`, then `body`, which always returns."
fn only_for(number: i64, body: Vec<libc::sock_filter>, program: &mut Vec<libc::sock_filter>) {
    // The bodies below are a dozen instructions at most, far below a jump's reach of 255.
    let length = body.len() as u8;
    program.push(jump(JUMP_EQUAL, number as u32, 0, length));
    program.extend(body);
}

/// "Argument `index` is one of `values`: then the first verdict, else the second."
fn by_value(index: u32, values: &[u32], listed: u32, otherwise: u32) -> Vec<libc::sock_filter> {
    let mut body = vec![argument(index)];
    for value in values {
        body.push(jump(JUMP_EQUAL, *value, 0, 1));
        body.push(statement(RETURN, listed));
    }
    body.push(statement(RETURN, otherwise));
    body
}

fn compile(allowed: &[i64], highest_known: i64) -> Vec<libc::sock_filter> {
    let mut program = vec![
        statement(LOAD_WORD, ARCH_AT),
        jump(JUMP_EQUAL, ARCH, 1, 0),
        statement(RETURN, MISSING),
        statement(LOAD_WORD, NUMBER_AT),
        // Newer calls, and on x86_64 those of the x32 interface.
        jump(JUMP_AT_LEAST, highest_known as u32 + 1, 0, 1),
        statement(RETURN, MISSING),
    ];
    only_for(libc::SYS_clone3, vec![statement(RETURN, MISSING)], &mut program);
    let clone = vec![
        argument(0),
        jump(JUMP_ANY_BIT, CLONE_NAMESPACES & !0x80, 0, 1),
        statement(RETURN, DENY),
        statement(RETURN, ALLOW),
    ];
    only_for(libc::SYS_clone, clone, &mut program);
    only_for(libc::SYS_personality, by_value(0, &PERSONALITIES, ALLOW, DENY), &mut program);
    only_for(libc::SYS_ioctl, by_value(1, &TERMINAL_INJECTION, DENY, ALLOW), &mut program);
    only_for(libc::SYS_socket, by_value(0, &REFUSED_FAMILIES, DENY, ALLOW), &mut program);
    for (first, last) in ranges(allowed) {
        program.push(jump(JUMP_AT_LEAST, last as u32 + 1, 3, 0));
        program.push(jump(JUMP_AT_LEAST, first as u32, 0, 1));
        program.push(statement(RETURN, ALLOW));
        program.push(statement(RETURN, DENY));
    }
    program.push(statement(RETURN, DENY));
    program
}

/// Sorted numbers as inclusive ranges.
fn ranges(numbers: &[i64]) -> Vec<(i64, i64)> {
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable();
    let mut ranges: Vec<(i64, i64)> = Vec::new();
    for number in sorted {
        match ranges.last_mut() {
            Some((_, last)) if number <= *last + 1 => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would answer, by running the program as the kernel does.
    fn verdict(program: &[libc::sock_filter], arch: u32, number: u32, arguments: [u64; 2]) -> u32 {
        let mut data = [0u8; 64];
        data[0..4].copy_from_slice(&number.to_ne_bytes());
        data[4..8].copy_from_slice(&arch.to_ne_bytes());
        for (index, argument) in arguments.iter().enumerate() {
            let at = ARGUMENTS_AT as usize + 8 * index;
            data[at..at + 8].copy_from_slice(&argument.to_ne_bytes());
        }
        let mut accumulator = 0u32;
        let mut at = 0;
        loop {
            let instruction = &program[at];
            at += 1;
            let taken = match instruction.code {
                LOAD_WORD => {
                    let k = instruction.k as usize;
                    accumulator = u32::from_ne_bytes(data[k..k + 4].try_into().unwrap());
                    continue;
                }
                RETURN => return instruction.k,
                JUMP_EQUAL => accumulator == instruction.k,
                JUMP_AT_LEAST => accumulator >= instruction.k,
                JUMP_ANY_BIT => accumulator & instruction.k != 0,
                other => panic!("an instruction that is not expected: {other:#x}"),
            };
            at += usize::from(if taken { instruction.jt } else { instruction.jf });
        }
    }

    #[test]
    fn every_number_gets_the_verdict_of_the_list() {
        let allowed = table::allowed();
        let looked_at = [libc::SYS_clone, libc::SYS_personality, libc::SYS_ioctl, libc::SYS_socket];
        let program = Filter::new().program;
        assert!(program.len() < 4096, "the kernel's bound");
        for number in 0..table::HIGHEST_KNOWN + 600 {
            let expected = if number > table::HIGHEST_KNOWN || number == libc::SYS_clone3 {
                MISSING
            } else if allowed.contains(&number) || looked_at.contains(&number) {
                ALLOW
            } else {
                DENY
            };
            assert_eq!(verdict(&program, ARCH, number as u32, [0; 2]), expected, "call {number}");
        }
    }

    #[test]
    fn templates_may_join_namespaces_and_what_they_fork_may_not() {
        let (programs, templates) = (Filter::new().program, Filter::of_templates().program);
        for number in 0..table::HIGHEST_KNOWN + 1 {
            let ask = |program: &[libc::sock_filter]| verdict(program, ARCH, number as u32, [0; 2]);
            if number == libc::SYS_setns {
                assert_eq!((ask(&programs), ask(&templates)), (DENY, ALLOW));
            } else {
                assert_eq!(ask(&programs), ask(&templates), "call {number}");
            }
        }
        let further = refuse_joining().into_iter();
        let further: Vec<_> =
            further.map(|(code, jt, jf, k)| libc::sock_filter { code, jt, jf, k }).collect();
        assert_eq!(verdict(&further, ARCH, libc::SYS_setns as u32, [0; 2]), DENY);
        assert_eq!(verdict(&further, ARCH, libc::SYS_read as u32, [0; 2]), ALLOW);
    }

    #[test]
    fn arguments_foreign_interfaces_and_the_forbidden_are_refused() {
        let program = Filter::new().program;
        let ask = |number: i64, arguments| verdict(&program, ARCH, number as u32, arguments);
        assert_eq!(ask(libc::SYS_clone, [libc::CLONE_NEWUSER as u64, 0]), DENY);
        assert_eq!(ask(libc::SYS_clone, [libc::CLONE_NEWNS as u64 | 17, 0]), DENY);
        assert_eq!(ask(libc::SYS_clone, [(libc::CLONE_VM | libc::CLONE_THREAD) as u64, 0]), ALLOW);
        assert_eq!(ask(libc::SYS_ioctl, [0, 0x5412]), DENY);
        assert_eq!(ask(libc::SYS_socket, [40, 1]), DENY);
        assert_eq!(ask(libc::SYS_personality, [0x40_0000, 0]), DENY);
        assert_eq!(verdict(&program, 0x4000_0003, 1, [0; 2]), MISSING, "32-bit calls");
        assert_eq!(verdict(&program, ARCH, 0x4000_0001, [0; 2]), MISSING, "x32 calls");
        for forbidden in [
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_request_key,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_io_uring_setup,
            libc::SYS_bpf,
            libc::SYS_userfaultfd,
            libc::SYS_perf_event_open,
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_pivot_root,
            libc::SYS_open_tree,
            libc::SYS_move_mount,
            libc::SYS_fsopen,
            libc::SYS_mount_setattr,
            libc::SYS_pidfd_getfd,
            libc::SYS_open_by_handle_at,
            libc::SYS_kexec_load,
            libc::SYS_init_module,
            libc::SYS_reboot,
        ] {
            assert_eq!(ask(forbidden, [0; 2]), DENY, "call {forbidden}");
        }
    }
}
