//! SIGINT and SIGTERM, read from a descriptor between two steps instead of interrupting one.
//!
//! Threads started while [`Signals`] lives inherit its mask, so neither signal hits them.

use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::error::Error;

/// The signals that end a run early. Dropping it restores the mask.
#[derive(Debug)]
pub(crate) struct Signals {
    file: SignalFd,
    before: SigSet,
}

impl Signals {
    /// Takes over both signals, for the calling thread and those it will start.
    pub(crate) fn new() -> Result<Self, Error> {
        let failed = |errno| Error::system("take over SIGINT and SIGTERM", errno);
        let mut set = SigSet::empty();
        set.add(Signal::SIGINT);
        set.add(Signal::SIGTERM);
        let before = set.thread_swap_mask(SigmaskHow::SIG_BLOCK).map_err(failed)?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let file = SignalFd::with_flags(&set, flags).map_err(failed)?;
        Ok(Self { file, before })
    }

    /// True if one has arrived since the last look.
    pub(crate) fn arrived(&self) -> bool {
        matches!(self.file.read_signal(), Ok(Some(_)))
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // A second signal that is still pending would end the process as soon as it is
        // unblocked, before the results are printed.
        while self.arrived() {}
        let _ = self.before.thread_set_mask();
    }
}
