//! Lets a signal end a measurement.
//!
//! Owns the signal handling of the measuring process. Does not end anything: the measurement
//! unwinds, stops the processes it started, and reports its results so far.

use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use crate::sys::signal::Signal;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::{Error, Result};
use crate::sys::signal::Signals;

/// Why a measurement stopped.
#[derive(Debug)]
pub enum Halt {
    /// A signal arrived.
    Interrupted(Signal),
    /// A step failed.
    Failed(Error),
}

impl From<Error> for Halt {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Receives the signals that end a measurement.
#[derive(Debug)]
pub struct Interrupt {
    signals: Signals,
    arrived: Option<Signal>,
}

impl Interrupt {
    /// Starts receiving the signals. Call it before starting any process.
    ///
    /// # Errors
    /// The descriptor limit is reached.
    pub fn new() -> Result<Self> {
        let signals = Signals::receive(&[Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP])?;
        Ok(Self { signals, arrived: None })
    }

    /// Returns an error once a signal has arrived.
    ///
    /// # Errors
    /// [`Halt::Interrupted`], from the first signal on.
    pub fn check(&mut self) -> std::result::Result<(), Halt> {
        if self.arrived.is_none() {
            self.arrived = self.signals.next_signal()?.map(|received| received.signal);
        }
        self.arrived.map_or(Ok(()), |signal| Err(Halt::Interrupted(signal)))
    }

    /// Sleeps until the time has passed or a signal arrives.
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
            // A remainder below 1 ms would round down to zero and busy-poll.
            let timeout = if left.as_millis() == 0 { PollTimeout::from(1_u8) } else { timeout };
            // An error means that a signal interrupted the wait; the next `check` finds it.
            let _ = poll(&mut [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)], timeout);
        }
    }
}
