//! Signals as a readable descriptor (`signalfd(2)`), and signal masks of threads.

use std::os::fd::{AsFd, BorrowedFd};
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::error::{Error, Result, errno_of};
pub use crate::signal_number::Signal;

/// The sender of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The kernel, for example when a terminal is closed (`SI_KERNEL`).
    Kernel,
    /// The process with this pid.
    Process(u32),
}

/// A received signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceivedSignal {
    /// The signal.
    pub signal: Signal,
    /// Its sender.
    pub origin: Origin,
}

/// A descriptor that becomes readable when one of the chosen signals arrives.
#[derive(Debug)]
pub struct Signals {
    descriptor: SignalFd,
}

impl Signals {
    /// Blocks `signals` in this thread and in threads it starts later, and receives them here.
    ///
    /// # Errors
    /// Descriptors are exhausted.
    pub fn receive(signals: &[Signal]) -> Result<Self> {
        let set = set_of(signals);
        set.thread_block().map_err(|errno| Error::system("block signals", errno))?;
        SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map(|descriptor| Self { descriptor })
            .map_err(|errno| Error::system("receive signals", errno))
    }

    /// The next signal, if one has arrived.
    ///
    /// # Errors
    /// The descriptor cannot be read, which does not happen on a healthy kernel.
    pub fn next_signal(&mut self) -> Result<Option<ReceivedSignal>> {
        let information =
            self.descriptor.read_signal().map_err(|errno| Error::system("read a signal", errno))?;
        Ok(information.and_then(|information| {
            let number = i32::try_from(information.ssi_signo).ok()?;
            let origin = match information.ssi_code {
                libc::SI_KERNEL => Origin::Kernel,
                _ => Origin::Process(information.ssi_pid),
            };
            Signal::from_raw(number).map(|signal| ReceivedSignal { signal, origin })
        }))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// A set of blocked signals.
#[derive(Clone, Copy, Debug)]
pub struct BlockedSignals(SigSet);

impl BlockedSignals {
    /// The empty set.
    #[must_use]
    pub fn none() -> Self {
        Self(SigSet::empty())
    }

    /// The set of the calling thread.
    ///
    /// # Errors
    /// The kernel refused, which it never does.
    pub fn of_this_thread() -> Result<Self> {
        SigSet::thread_get_mask()
            .map(Self)
            .map_err(|errno| Error::system("read the blocked signals", errno))
    }

    /// Installs the set in the calling thread, with a single system call and without allocating.
    ///
    /// # Errors
    /// The kernel refused the mask, which it never does.
    pub fn install(self) -> std::result::Result<(), Errno> {
        self.0.thread_set_mask()
    }
}

/// Starts a thread with all signals blocked, so that they are delivered to the thread that waits
/// for them. SIGSYS, which a seccomp filter raises in the thread itself, would end the process if
/// it were blocked.
///
/// # Errors
/// Too many threads.
pub fn spawn_without_signals<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>> {
    let masked = |errno| Error::system("block signals", errno);
    // The new thread inherits the current mask.
    let mut blocked = SigSet::all();
    blocked.remove(nix::sys::signal::Signal::SIGSYS);
    let before = blocked.thread_swap_mask(SigmaskHow::SIG_BLOCK).map_err(masked)?;
    let thread = thread::Builder::new().name(name.into()).spawn(body);
    before.thread_set_mask().map_err(masked)?;
    thread.map_err(|error| Error::system(format!("start the thread {name}"), errno_of(&error)))
}

/// Blocks `signals` in this thread and in threads it starts later.
///
/// # Errors
/// The kernel refused the mask, which it never does for valid signals.
pub fn block(signals: &[Signal]) -> Result<()> {
    let set = set_of(signals);
    set.thread_block().map_err(|errno| Error::system("block signals", errno))
}

fn set_of(signals: &[Signal]) -> SigSet {
    signals.iter().map(|signal| nix::sys::signal::Signal::from(*signal)).collect()
}
