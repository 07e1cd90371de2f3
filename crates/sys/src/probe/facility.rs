//! Kernel facilities that a run needs in addition to io_uring, each tried once.

use std::num::NonZero;
use std::process::Command;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

use nix::errno::Errno;
use nix::libc;
use nix::sys::epoll::{Epoll, EpollCreateFlags};
use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};

use super::ring_at_once;
use crate::error::{Error, Result, errno_of};
use crate::limits::without_locked_memory;
use crate::process::own_program;
use crate::shared::SharedPage;
use crate::signal::Signals;
use crate::waker::Waker;
use crate::{fdpass, process};

/// Processes and threads of a run in addition to its workers: threads of the primary, the guard,
/// and a successor during a reload.
const TASKS_BASE: usize = 7;
/// What a thread needs that only waits.
const STACK_BYTES: usize = 64 * 1024;

/// A facility that a run cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Facility {
    /// Waiting for workers and channels.
    Epoll,
    /// Waking a thread.
    Eventfd,
    /// Receiving signals.
    Signalfd,
    /// Deadlines.
    Timerfd,
    /// Watching a process.
    Pidfd,
    /// Counters shared by two processes.
    Memfd,
    /// Channels that carry descriptors.
    SocketPair,
    /// Threads, and starting this program again as a worker.
    Process,
}

impl Facility {
    /// All facilities.
    pub const ALL: [Self; 8] = [
        Self::Epoll,
        Self::Eventfd,
        Self::Signalfd,
        Self::Timerfd,
        Self::Pidfd,
        Self::Memfd,
        Self::SocketPair,
        Self::Process,
    ];

    /// Display name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Epoll => "epoll",
            Self::Eventfd => "eventfd",
            Self::Signalfd => "signalfd",
            Self::Timerfd => "timerfd",
            Self::Pidfd => "pidfd_open",
            Self::Memfd => "memfd_create",
            Self::SocketPair => "socketpair",
            Self::Process => "processes",
        }
    }

    /// Tries it.
    ///
    /// # Errors
    /// It does not work on this machine.
    pub fn attempt(self) -> Result<()> {
        match self {
            Self::Epoll => Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
                .map(drop)
                .map_err(|errno| Error::system("create an epoll set", errno)),
            Self::Eventfd => Waker::new().map(drop),
            Self::Signalfd => Signals::receive(&[]).map(drop),
            Self::Timerfd => TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC)
                .map(drop)
                .map_err(|errno| Error::system("create a timer (timerfd)", errno)),
            Self::Pidfd => process::try_pidfd(),
            Self::Memfd => SharedPage::create().map(drop),
            Self::SocketPair => {
                fdpass::packet_pair()?;
                fdpass::stream_pair().map(drop)
            }
            Self::Process => {
                attempt_process()?;
                attempt_threads()
            }
        }
    }
}

/// Starts this program with the option that prints its version.
fn attempt_process() -> Result<()> {
    let failed = |errno| Error::system("start this program again (fork, exec)", errno);
    let mut command = Command::new(own_program());
    command.arg("--version").stdout(std::process::Stdio::null());
    let status = command.status().map_err(|error| failed(errno_of(&error)))?;
    if status.success() { Ok(()) } else { Err(failed(Errno::ENOEXEC)) }
}

/// Starts as many threads at once as a run has processes and threads with a worker for each CPU:
/// the kernel counts them alike (`ulimit -u`).
fn attempt_threads() -> Result<()> {
    let wanted = TASKS_BASE + thread::available_parallelism().map_or(1, NonZero::get);
    let (end, ended) = mpsc::channel::<()>();
    let ended = Arc::new(Mutex::new(ended));
    let mut threads = Vec::new();
    let mut outcome = Ok(());
    while threads.len() < wanted && outcome.is_ok() {
        let ended = Arc::clone(&ended);
        // Each waits for the one before it.
        let body = move || drop(ended.lock().map(|ended| ended.recv()));
        match thread::Builder::new().stack_size(STACK_BYTES).spawn(body) {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                let step = format!("start {wanted} processes and threads");
                outcome = Err(Error::system(step, errno_of(&error)));
            }
        }
    }
    drop(end);
    for thread in threads {
        // It does not panic.
        let _ = thread.join();
    }
    outcome
}

/// Whether this process may pin its threads.
#[must_use]
pub fn may_pin() -> bool {
    // SAFETY: a set of CPUs is plain numbers, for which all bits zero are none.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes at most the size that is given.
    let read = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) };
    if read < 0 {
        return false;
    }
    // SAFETY: the kernel reads the set that it has just written.
    let result =
        unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) };
    result == 0
}

/// Whether rings count against the limit of locked memory. Use it only in a process without other
/// threads.
#[must_use]
pub fn counts_locked_memory() -> bool {
    let refused = without_locked_memory(|| {
        ring_at_once(&[]).is_err_and(|error| errno_of(&error) == Errno::ENOMEM)
    });
    refused.unwrap_or(false)
}
