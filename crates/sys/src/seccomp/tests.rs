//! The filter in processes of their own: a filter stays for good.

use std::os::fd::AsRawFd as _;

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork, pipe};

use super::*;

static RECORD_OF_TEST: AtomicU64 = AtomicU64::new(0);

const NEEDED: [libc::c_long; 12] = [
    libc::SYS_close,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_tgkill,
    libc::SYS_write,
];

fn listed() -> impl Iterator<Item = Call> {
    let all = NEEDED.iter().map(|number| Call { number: *number, without: None });
    let no_code = Some((2, libc::PROT_EXEC.cast_unsigned()));
    all.chain([Call { number: libc::SYS_mprotect, without: no_code }])
}

/// How a process ends that is confined and makes this call, and what it writes as an error. It ends
/// with 0 if the call succeeds, and with 1 if it fails with EPERM.
fn end_of(refusal: Refusal, attempt: fn() -> libc::c_long) -> (WaitStatus, String) {
    let (ours, theirs) = pipe().expect("descriptors");
    // SAFETY: the new process makes system calls, and allocates only what `program` needs; the test
    // harness's other threads hold no lock of the allocator across a fork, which glibc sees to.
    match unsafe { fork() }.expect("a process") {
        ForkResult::Child => {
            // SAFETY: two numbers; the process ends below.
            unsafe { libc::dup2(theirs.as_raw_fd(), libc::STDERR_FILENO) };
            let code = match confine(listed(), refusal) {
                Ok(()) => match attempt() {
                    -1 if Errno::last() == Errno::EPERM => 1,
                    -1 => 2,
                    _ => 0,
                },
                Err(_) => 3,
            };
            // SAFETY: it takes a number, and the child has nothing to clean up.
            unsafe { libc::_exit(code) }
        }
        ForkResult::Parent { child } => {
            drop(theirs);
            let status = waitpid(child, None).expect("it is a child");
            let mut text = String::new();
            io::Read::read_to_string(&mut std::fs::File::from(ours), &mut text).expect("text");
            (status, text)
        }
    }
}

/// The name of a call, and a function that makes it.
type Attempt = (&'static str, fn() -> libc::c_long);

/// Attempts at what a hostile worker would do. None of them takes a pointer.
const FORBIDDEN: [Attempt; 6] = [
    // SAFETY: numbers and null pointers alone.
    ("(execve)", || unsafe { libc::syscall(libc::SYS_execve, 0, 0, 0) }),
    // SAFETY: as above.
    ("(socket)", || unsafe { libc::syscall(libc::SYS_socket, libc::AF_INET, 1, 0) }),
    // SAFETY: as above.
    ("(openat)", || unsafe { libc::syscall(libc::SYS_openat, -100, 0, 0) }),
    // SAFETY: as above.
    ("(ptrace)", || unsafe { libc::syscall(libc::SYS_ptrace, 0, 0, 0, 0) }),
    // SAFETY: as above; the kernel refuses rings without parameters.
    ("(io_uring_setup)", || unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, 0) }),
    // SAFETY: as above; nothing is mapped at 0.
    ("(mprotect)", || unsafe { libc::syscall(libc::SYS_mprotect, 0, 4096, libc::PROT_EXEC) }),
];

#[test]
fn a_call_that_is_not_listed_ends_the_process_and_is_named() {
    for (name, attempt) in FORBIDDEN {
        let (status, text) = end_of(Refusal::Ends(&RECORD_OF_TEST), attempt);
        let ended = matches!(status, WaitStatus::Signaled(_, Signal::SIGSYS, _));
        assert!(ended, "{name}: {status:?}, {text:?}");
        assert!(text.starts_with("clusterlb: --seccomp refuses the system call "), "{text:?}");
        assert!(text.ends_with(&format!(" {name}\n")), "{text:?}");
    }
}

#[test]
fn a_call_that_is_not_listed_fails_where_the_process_must_go_on() {
    for (name, attempt) in FORBIDDEN {
        let (status, text) = end_of(Refusal::Fails, attempt);
        assert!(matches!(status, WaitStatus::Exited(_, 1)), "{name}: {status:?}, {text:?}");
        assert!(text.ends_with(&format!(" {name}\n")), "{text:?}");
    }
}

#[test]
fn listed_calls_are_as_before() {
    // SAFETY: no arguments.
    let (status, text) =
        end_of(Refusal::Ends(&RECORD_OF_TEST), || unsafe { libc::syscall(libc::SYS_getpid) });
    assert!(matches!(status, WaitStatus::Exited(_, 0)), "{status:?}, {text:?}");
    assert_eq!(text, "");
}
