//! What a measurement listens to besides its processes: the wish to end it.
//!
//! Owns the signals of the measuring process. Refuses to end it: whoever measures unwinds, ends
//! what it has started, and shows what there is so far.

use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use crate::error::{Error, Result};
use crate::sys::signal::Signals;

/// Why a measurement goes no further.
#[derive(Debug)]
pub enum Halt {
    /// A signal asked for it.
    Interrupted(Signal),
    /// Something failed.
    Failed(Error),
}

impl From<Error> for Halt {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Listens for signals that end a measurement.
#[derive(Debug)]
pub struct Interrupt {
    signals: Signals,
    arrived: Option<Signal>,
}

impl Interrupt {
    /// Listens from now on. To be called before anything is started.
    ///
    /// # Errors
    /// Too few descriptors.
    pub fn new() -> Result<Self> {
        let signals = Signals::receive(&[Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP])?;
        Ok(Self { signals, arrived: None })
    }

    /// Goes on, unless a signal has arrived.
    ///
    /// # Errors
    /// [`Halt::Interrupted`], from the first signal on.
    pub fn check(&mut self) -> std::result::Result<(), Halt> {
        if self.arrived.is_none() {
            self.arrived = self.signals.next_signal()?.map(|received| received.signal);
        }
        self.arrived.map_or(Ok(()), |signal| Err(Halt::Interrupted(signal)))
    }

    /// Waits, but not beyond a signal.
    ///
    /// # Errors
    /// [`Halt::Interrupted`] for a signal.
    pub fn sleep(&mut self, duration: Duration) -> std::result::Result<(), Halt> {
        let deadline = Instant::now() + duration;
        loop {
            self.check()?;
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            // Less than a millisecond rounds down to nothing, and would be polled away.
            let timeout = if left.as_millis() == 0 { PollTimeout::from(1_u8) } else { timeout };
            // An error means that a signal cut the wait short, which the next look finds.
            let _ = poll(&mut [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)], timeout);
        }
    }
}
