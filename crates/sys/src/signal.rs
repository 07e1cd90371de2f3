//! Signals as a readable descriptor (`signalfd(2)`), and the ones a worker must not die of.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::error::{Error, Result};

/// A descriptor that becomes readable when one of the chosen signals arrives.
#[derive(Debug)]
pub struct Signals {
    descriptor: SignalFd,
}

impl Signals {
    /// Blocks `signals` in this thread, and in those it starts later, and receives them here.
    ///
    /// # Errors
    /// Too few descriptors.
    pub fn receive(signals: &[Signal]) -> Result<Self> {
        let set: SigSet = signals.iter().copied().collect();
        set.thread_block().map_err(|errno| Error::system("block signals", errno))?;
        SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map(|descriptor| Self { descriptor })
            .map_err(|errno| Error::system("receive signals", errno))
    }

    /// The next signal, if one has arrived.
    ///
    /// # Errors
    /// The descriptor cannot be read, which a healthy kernel never says.
    pub fn next_signal(&mut self) -> Result<Option<Signal>> {
        let information =
            self.descriptor.read_signal().map_err(|errno| Error::system("read a signal", errno))?;
        Ok(information.and_then(|information| {
            let number = i32::try_from(information.ssi_signo).ok()?;
            Signal::try_from(number).ok()
        }))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Keeps `signals` from reaching this thread and those it starts later.
///
/// # Errors
/// The kernel refused the mask, which it never does for valid signals.
pub fn block(signals: &[Signal]) -> Result<()> {
    let set: SigSet = signals.iter().copied().collect();
    set.thread_block().map_err(|errno| Error::system("block signals", errno))
}
