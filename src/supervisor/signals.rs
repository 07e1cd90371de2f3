//! The effect of each signal on a supervisor.
//!
//! Owns the table in docs/OPERATIONS.md, and the difference between a closed terminal, which ends
//! the run, and a person who requests a reload.

use crate::Signal;
use crate::sys::inherited;
use crate::sys::signal::{Origin, ReceivedSignal};
use crate::sys::terminal;

/// Every signal that a supervisor receives instead of its default action.
pub(super) const RECEIVED: [Signal; 10] = [
    Signal::SIGCHLD,
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGPWR,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

/// The effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SignalEffect {
    /// Replace the workers.
    Reload,
    /// End in order; a second time at once.
    Stop,
    /// End in order, because the terminal is gone.
    HangUp,
    /// A change of the number of workers.
    Step(i16),
    /// A process has ended that may not be a worker.
    Reap,
    /// Nothing, which is reported.
    Nothing,
    /// Nothing, as expected.
    Ignore,
}

/// The terminal that this process was started from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terminal {
    /// There was a terminal.
    present: bool,
    /// The leader of its session, usually the shell, which passes a hangup on.
    leader: Option<u32>,
    /// SIGHUP was ignored at the start (`nohup`): the run outlives its terminal.
    outlived: bool,
}

impl Terminal {
    /// Examines it, at the start.
    pub(super) fn look() -> Self {
        Self {
            present: terminal::is_present(),
            leader: terminal::session_leader(),
            outlived: inherited::was_ignored(Signal::SIGHUP),
        }
    }

    /// The effect of a signal.
    pub(super) fn wish(self, received: ReceivedSignal) -> SignalEffect {
        let ReceivedSignal { signal, origin } = received;
        match signal {
            Signal::SIGCHLD => SignalEffect::Reap,
            Signal::SIGHUP => self.hangup(self.is_closed(origin, terminal::is_present)),
            // What stops containers of LXC, and what tells of a power failure.
            Signal::SIGPWR => SignalEffect::Stop,
            Signal::SIGINT | Signal::SIGTERM | Signal::SIGQUIT | Signal::SIGUSR2 => {
                SignalEffect::Stop
            }
            // The kernel sends them to background jobs that use the terminal.
            Signal::SIGTTIN | Signal::SIGTTOU if origin == Origin::Kernel => SignalEffect::Ignore,
            Signal::SIGTTIN => SignalEffect::Step(1),
            Signal::SIGTTOU => SignalEffect::Step(-1),
            _ => SignalEffect::Nothing,
        }
    }

    fn is_closed(self, origin: Origin, is_present: impl FnOnce() -> bool) -> bool {
        match origin {
            Origin::Kernel => true,
            // A shell that loses its terminal signals its jobs itself.
            Origin::Process(pid) => self.present && Some(pid) == self.leader && !is_present(),
        }
    }

    fn hangup(self, is_closed: bool) -> SignalEffect {
        match (is_closed, self.outlived) {
            (false, _) => SignalEffect::Reload,
            (true, false) => SignalEffect::HangUp,
            (true, true) => SignalEffect::Ignore,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMINAL: Terminal = Terminal { present: true, leader: Some(7), outlived: false };

    #[test]
    fn a_closed_terminal_is_not_a_wish_for_new_workers() {
        for (origin, still_there, is_closed) in [
            (Origin::Kernel, true, true),
            (Origin::Kernel, false, true),
            (Origin::Process(7), false, true),
            (Origin::Process(7), true, false),
            (Origin::Process(8), false, false),
        ] {
            assert_eq!(TERMINAL.is_closed(origin, || still_there), is_closed, "{origin:?}");
        }
        let service = Terminal { present: false, leader: Some(7), outlived: false };
        assert!(!service.is_closed(Origin::Process(7), || false));
        assert_eq!(TERMINAL.hangup(true), SignalEffect::HangUp);
        let nohup = Terminal { outlived: true, ..TERMINAL };
        assert_eq!(
            (nohup.hangup(true), nohup.hangup(false)),
            (SignalEffect::Ignore, SignalEffect::Reload)
        );
    }

    #[test]
    fn a_job_in_the_background_is_no_wish_for_more_or_fewer_workers() {
        for (signal, step) in [(Signal::SIGTTIN, 1), (Signal::SIGTTOU, -1)] {
            let wish = |origin| TERMINAL.wish(ReceivedSignal { signal, origin });
            assert_eq!(wish(Origin::Process(8)), SignalEffect::Step(step));
            assert_eq!(wish(Origin::Kernel), SignalEffect::Ignore);
        }
    }

    #[test]
    fn no_signal_is_left_without_a_meaning() {
        for signal in RECEIVED {
            let wish = TERMINAL.wish(ReceivedSignal { signal, origin: Origin::Process(8) });
            assert_ne!(wish, SignalEffect::Ignore, "{signal}");
        }
    }
}
