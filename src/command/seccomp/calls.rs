//! The system calls of each role under `--seccomp`, each with the reason for it.
//!
//! Owns the lists. What a C library may use instead of a call is listed beside it.

use clusterlb::EngineKind;
use clusterlb_sys::seccomp::Call;
use nix::libc;

type Listed = (Call, &'static str);

const fn call(number: libc::c_long, reason: &'static str) -> Listed {
    (Call { number, without: None }, reason)
}

/// A call without these bits in this argument.
const fn without(number: libc::c_long, place: u8, bits: i32, reason: &'static str) -> Listed {
    (Call { number, without: Some((place, bits.cast_unsigned())) }, reason)
}

/// Every process.
const ALWAYS: [Listed; 27] = [
    call(libc::SYS_brk, "memory"),
    call(libc::SYS_clock_gettime, "the time, where the kernel's page for it cannot be read"),
    call(libc::SYS_clock_nanosleep, "--work block, pauses"),
    call(libc::SYS_close, "descriptors"),
    call(libc::SYS_exit, "the end of a thread"),
    call(libc::SYS_exit_group, "the end"),
    call(libc::SYS_fcntl, "flags and copies of descriptors"),
    call(libc::SYS_futex, "locks"),
    call(libc::SYS_getpid, "messages to the primary, abort(3)"),
    call(libc::SYS_getrandom, "seeds of hash tables"),
    call(libc::SYS_gettid, "abort(3)"),
    call(libc::SYS_madvise, "memory"),
    call(libc::SYS_mremap, "memory"),
    call(libc::SYS_munmap, "memory"),
    call(libc::SYS_nanosleep, "--work block, pauses"),
    call(libc::SYS_prlimit64, "the limit of descriptors, which may change at run time"),
    call(libc::SYS_read, "eventfds, signals, files"),
    call(libc::SYS_recvmsg, "messages between primary and worker, with descriptors"),
    call(libc::SYS_restart_syscall, "a wait, continued after SIGCONT"),
    call(libc::SYS_rt_sigaction, "abort(3), signal handlers"),
    call(libc::SYS_rt_sigprocmask, "abort(3), signal masks"),
    call(libc::SYS_rt_sigreturn, "the end of a signal handler"),
    call(libc::SYS_sendmsg, "messages between primary and worker, with descriptors"),
    call(libc::SYS_sigaltstack, "the start and the end of a thread"),
    call(libc::SYS_tgkill, "abort(3)"),
    call(libc::SYS_write, "eventfds, a worker's own errors, output"),
    call(libc::SYS_writev, "a worker's own errors, output"),
];

/// A built-in worker's own memory: nothing in it becomes code.
const MEMORY: [Listed; 2] = [
    without(libc::SYS_mmap, 2, libc::PROT_EXEC, "memory, without code"),
    without(libc::SYS_mprotect, 2, libc::PROT_EXEC, "memory, without code"),
];

/// An engine of io_uring. Its ring is restricted to operations on descriptors that are there.
const RING: [Listed; 2] = [
    call(libc::SYS_io_uring_enter, "the ring"),
    call(libc::SYS_io_uring_register, "the end of operations; the ring refuses most of the others"),
];

/// An engine of epoll, and waiting by epoll with `--policy none`.
const EPOLL: [Listed; 12] = [
    call(libc::SYS_accept4, "--policy none, --dispatch kernel, admin clients"),
    call(libc::SYS_epoll_create1, "the engine"),
    call(libc::SYS_epoll_ctl, "the engine"),
    call(libc::SYS_epoll_pwait, "the engine"),
    call(libc::SYS_epoll_pwait2, "the engine"),
    call(libc::SYS_ppoll, "waiting for a message"),
    call(libc::SYS_recvfrom, "connections"),
    call(libc::SYS_sendto, "connections"),
    call(libc::SYS_shutdown, "connections"),
    call(libc::SYS_timerfd_create, "deadlines"),
    call(libc::SYS_timerfd_settime, "deadlines"),
    call(libc::SYS_eventfd2, "wake-ups"),
];

/// Sockets that are there.
const SOCKETS: [Listed; 5] = [
    call(libc::SYS_getpeername, "a client's address"),
    call(libc::SYS_getsockname, "a listener's address"),
    call(libc::SYS_getsockopt, "a listener's kind and queue"),
    call(libc::SYS_setsockopt, "TCP_NODELAY, the queue of a listener"),
    call(libc::SYS_ioctl, "bytes that a client has not read, the terminal"),
];

/// The primary: processes, listeners, files, names.
const PRIMARY: [Listed; 95] = [
    call(libc::SYS_bind, "listeners: one more for each worker with --accept reuseport"),
    call(libc::SYS_bpf, "--dispatch kernel: the kernel's choice of a worker"),
    call(libc::SYS_capget, "--user: workers without rights"),
    call(libc::SYS_capset, "--user: workers without rights"),
    call(libc::SYS_chdir, "--chdir"),
    call(libc::SYS_clone, "workers, the guard"),
    call(libc::SYS_clone3, "workers, threads"),
    call(libc::SYS_close_range, "a worker gets no descriptor but its own"),
    call(libc::SYS_connect, "names, the service manager"),
    call(libc::SYS_dup, "descriptors of a worker"),
    call(libc::SYS_dup3, "descriptors of a worker"),
    call(libc::SYS_execve, "workers"),
    call(libc::SYS_faccessat, "the C library's start"),
    call(libc::SYS_faccessat2, "the C library's start"),
    call(libc::SYS_fchdir, "the folder of a unix socket"),
    call(libc::SYS_fchmod, "mode of a unix socket"),
    call(libc::SYS_fchmodat, "mode of a unix socket"),
    call(libc::SYS_fchown, "owner of a unix socket"),
    call(libc::SYS_fchownat, "owner of a unix socket"),
    call(libc::SYS_fstat, "files"),
    call(libc::SYS_fstatfs, "files"),
    call(libc::SYS_ftruncate, "a worker's page of counters"),
    call(libc::SYS_futex_waitv, "locks"),
    call(libc::SYS_getcwd, "paths of unix sockets"),
    call(libc::SYS_getdents64, "files in /proc and /sys"),
    call(libc::SYS_getegid, "the user"),
    call(libc::SYS_geteuid, "the user"),
    call(libc::SYS_getgid, "the user"),
    call(libc::SYS_getgroups, "the user"),
    call(libc::SYS_getpgid, "processes"),
    call(libc::SYS_getppid, "a worker whose primary is gone"),
    call(libc::SYS_getpriority, "processes"),
    call(libc::SYS_getresgid, "the user"),
    call(libc::SYS_getresuid, "the user"),
    call(libc::SYS_getsid, "the terminal"),
    call(libc::SYS_getuid, "the user"),
    call(libc::SYS_io_uring_setup, "the rings of workers"),
    call(libc::SYS_kill, "--companion and workers of old kernels"),
    call(libc::SYS_linkat, "a unix socket appears with its mode"),
    call(libc::SYS_listen, "listeners: one more for each worker with --accept reuseport"),
    call(libc::SYS_lseek, "files"),
    call(libc::SYS_membarrier, "queues between threads"),
    call(libc::SYS_memfd_create, "a worker's page of counters"),
    call(libc::SYS_mkdirat, "the folder of a unix socket"),
    call(libc::SYS_mlock, "rings"),
    call(libc::SYS_mmap, "memory, libraries"),
    call(libc::SYS_mprotect, "memory, libraries"),
    call(libc::SYS_newfstatat, "files"),
    call(libc::SYS_openat, "--config, --log-file, /proc"),
    call(libc::SYS_openat2, "the folder of a unix socket"),
    call(libc::SYS_pidfd_open, "workers"),
    call(libc::SYS_pidfd_send_signal, "workers"),
    call(libc::SYS_pipe2, "output of workers with --prefix, errors before an exec"),
    call(libc::SYS_prctl, "names of processes, no_new_privs, the parent's end"),
    call(libc::SYS_pread64, "the C library's start"),
    call(libc::SYS_preadv2, "wake-ups that do not wait"),
    call(libc::SYS_pwrite64, "files"),
    call(libc::SYS_readlinkat, "files in /proc"),
    call(libc::SYS_readv, "admin clients"),
    call(libc::SYS_recvmmsg, "names"),
    call(libc::SYS_renameat, "a unix socket appears with its mode"),
    call(libc::SYS_renameat2, "a unix socket appears with its mode"),
    call(libc::SYS_rseq, "threads"),
    call(libc::SYS_rt_sigpending, "signals"),
    call(libc::SYS_rt_sigtimedwait, "signals"),
    call(libc::SYS_sched_getaffinity, "CPUs"),
    call(libc::SYS_sched_setaffinity, "--pin"),
    call(libc::SYS_sched_yield, "locks"),
    call(libc::SYS_seccomp, "the filter of a worker"),
    call(libc::SYS_sendmmsg, "names"),
    call(libc::SYS_set_robust_list, "threads"),
    call(libc::SYS_set_tid_address, "the C library's start"),
    call(libc::SYS_setgid, "--user"),
    call(libc::SYS_setgroups, "--user"),
    call(libc::SYS_setpgid, "groups of workers"),
    call(libc::SYS_setregid, "--user"),
    call(libc::SYS_setresgid, "--user"),
    call(libc::SYS_setresuid, "--user"),
    call(libc::SYS_setreuid, "--user"),
    call(libc::SYS_setrlimit, "the limit of descriptors of workers"),
    call(libc::SYS_setsid, "groups of workers"),
    call(libc::SYS_setuid, "--user"),
    call(libc::SYS_signalfd4, "signals"),
    call(libc::SYS_socket, "listeners, names, the service manager"),
    call(libc::SYS_socketpair, "channels of workers"),
    call(libc::SYS_statfs, "files"),
    call(libc::SYS_statx, "files"),
    call(libc::SYS_symlinkat, "a unix socket appears with its mode"),
    call(libc::SYS_sysinfo, "CPUs"),
    call(libc::SYS_umask, "modes of files"),
    call(libc::SYS_uname, "names, the kernel's version"),
    without(libc::SYS_unshare, 0, !libc::CLONE_FS, "a thread in the folder of a unix socket"),
    call(libc::SYS_unlinkat, "the file of a unix socket"),
    call(libc::SYS_wait4, "workers"),
    call(libc::SYS_waitid, "workers"),
];

/// Calls that only this architecture has.
#[cfg(target_arch = "x86_64")]
mod own {
    use super::{Listed, call, libc};

    pub(super) const EPOLL: [Listed; 2] =
        [call(libc::SYS_epoll_wait, "the engine"), call(libc::SYS_poll, "waiting for a message")];
    pub(super) const PRIMARY: [Listed; 16] = [
        call(libc::SYS_access, "the C library's start"),
        call(libc::SYS_arch_prctl, "the C library's start"),
        call(libc::SYS_chmod, "mode of a unix socket"),
        call(libc::SYS_dup2, "descriptors of a worker"),
        call(libc::SYS_fork, "workers"),
        call(libc::SYS_getpgrp, "the terminal"),
        call(libc::SYS_link, "a unix socket appears with its mode"),
        call(libc::SYS_lstat, "files"),
        call(libc::SYS_open, "files"),
        call(libc::SYS_pipe, "output of workers"),
        call(libc::SYS_readlink, "files in /proc"),
        call(libc::SYS_rename, "a unix socket appears with its mode"),
        call(libc::SYS_stat, "files"),
        call(libc::SYS_time, "names"),
        call(libc::SYS_unlink, "the file of a unix socket"),
        call(libc::SYS_vfork, "workers"),
    ];
}

#[cfg(not(target_arch = "x86_64"))]
mod own {
    use super::Listed;

    pub(super) const EPOLL: [Listed; 0] = [];
    pub(super) const PRIMARY: [Listed; 0] = [];
}

/// What a worker may call once it has its engine.
pub(super) fn of_worker(engine: EngineKind) -> impl Iterator<Item = Call> {
    let ring: &[Listed] = if engine == EngineKind::IoUring { &RING } else { &[] };
    // Workers on a ring use epoll with `--accept epoll`.
    let lists = [&ALWAYS[..], &MEMORY, ring, &EPOLL, &own::EPOLL, &SOCKETS];
    lists.into_iter().flatten().map(|(call, _)| *call)
}

/// What a primary may call, and a worker until it has its engine.
pub(super) fn of_primary() -> impl Iterator<Item = Call> {
    let lists = [&ALWAYS[..], &RING, &EPOLL, &own::EPOLL, &SOCKETS, &PRIMARY, &own::PRIMARY];
    lists.into_iter().flatten().map(|(call, _)| *call)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_call_is_listed_once_and_with_a_reason() {
        let lists = [&ALWAYS[..], &RING, &EPOLL, &own::EPOLL, &SOCKETS, &PRIMARY, &own::PRIMARY];
        let mut seen = BTreeSet::new();
        for (call, reason) in lists.into_iter().flatten() {
            assert!(seen.insert(call.number), "{} twice: {reason}", call.number);
            assert!(!reason.is_empty(), "{} without a reason", call.number);
        }
    }

    #[test]
    fn a_worker_may_call_nothing_that_the_primary_may_not() {
        let primary: BTreeSet<_> = of_primary().map(|call| call.number).collect();
        for engine in [EngineKind::IoUring, EngineKind::Epoll] {
            let own: BTreeSet<_> = of_worker(engine).map(|call| call.number).collect();
            assert!(own.is_subset(&primary), "{:?}", own.difference(&primary));
            for number in [
                libc::SYS_bind,
                libc::SYS_bpf,
                libc::SYS_clone,
                libc::SYS_clone3,
                libc::SYS_connect,
                libc::SYS_execve,
                libc::SYS_io_uring_setup,
                libc::SYS_kill,
                libc::SYS_openat,
                libc::SYS_ptrace,
                libc::SYS_socket,
            ] {
                assert!(!own.contains(&number), "{engine:?}: {number}");
            }
        }
    }
}
