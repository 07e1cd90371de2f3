//! The control messages that a worker sends its primary, and what the replies mean. Pure: messages
//! in, messages out.
//!
//! Owns the requests to listen that wait for their replies, and sends leaving and farewell once.
//! What a grant or a request to leave means for connections is up to the worker.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::control::{LatencySummary, ListenOptions, ToPrimary, ToWorker};
use crate::error::{Error, OsError};
use crate::id::ListenerId;

/// An address that the primary granted.
#[derive(Debug)]
pub struct Grant {
    /// The listener.
    pub listener: ListenerId,
    /// The bound address.
    pub address: String,
    /// The socket from which this worker accepts or receives itself; without one, connections
    /// arrive in its inbox.
    pub socket: Option<OwnedFd>,
    /// Every connection begins with a header of the PROXY protocol.
    pub proxy_protocol: bool,
}

/// What a message of the primary means.
#[derive(Debug)]
pub enum FromPrimary {
    /// The reply to a request to listen. The error names the address.
    Answer {
        /// The number of the request.
        sequence: u32,
        /// The reply.
        grant: Result<Grant, Error>,
    },
    /// Every connection of a listener that this worker has closed is now in its inbox.
    Closed {
        /// The listener.
        listener: ListenerId,
    },
    /// Take nothing new, finish what is open, then leave.
    Leave {
        /// Time after which open connections are cut; the worker's own without one.
        grace: Option<Duration>,
    },
}

/// The worker's side of the conversation.
#[derive(Debug, Default)]
pub struct Conversation {
    sequence: u32,
    /// Addresses that were asked for and not answered.
    asked: BTreeMap<u32, String>,
    is_leaving: bool,
    is_over: bool,
}

impl Conversation {
    /// The first message of a worker.
    #[must_use]
    pub fn hello() -> ToPrimary {
        ToPrimary::Online { pid: std::process::id() }
    }

    /// Asks to serve an address. Returns the number of the request and the message to send.
    pub fn ask(&mut self, address: &str, options: ListenOptions) -> (u32, ToPrimary) {
        let sequence = self.sequence;
        self.sequence = self.sequence.wrapping_add(1);
        self.asked.insert(sequence, address.to_owned());
        (sequence, ToPrimary::Listen { sequence, address: address.to_owned(), options })
    }

    /// Forgets a request that could not be sent.
    pub fn forget(&mut self, sequence: u32) {
        self.asked.remove(&sequence);
    }

    /// Whether a request waits for its reply.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        !self.asked.is_empty()
    }

    /// Interprets a message of the primary.
    pub fn on_message(&mut self, message: ToWorker, mut descriptors: Vec<OwnedFd>) -> FromPrimary {
        match message {
            ToWorker::Listening { sequence, listener, address, proxy_protocol } => {
                self.asked.remove(&sequence);
                let socket = descriptors.pop();
                let grant = Grant { listener, address, socket, proxy_protocol };
                FromPrimary::Answer { sequence, grant: Ok(grant) }
            }
            ToWorker::ListenFailed { sequence, step, errno } => {
                // The primary does not repeat the address.
                let address = self.asked.remove(&sequence).unwrap_or_default();
                let source = OsError::from_raw(errno);
                FromPrimary::Answer {
                    sequence,
                    grant: Err(Error::Listen { address, step, source }),
                }
            }
            ToWorker::Closed { listener } => FromPrimary::Closed { listener },
            ToWorker::Drain { grace_ms } => {
                FromPrimary::Leave { grace: grace_ms.map(Duration::from_millis) }
            }
        }
    }

    /// What to say when this worker begins to leave; `None` if it has been sent.
    pub fn leave(&mut self) -> Option<ToPrimary> {
        (!std::mem::replace(&mut self.is_leaving, true)).then_some(ToPrimary::Leaving)
    }

    /// The last message; `None` if it has been sent.
    pub fn farewell(&mut self, handoff: Option<LatencySummary>) -> Option<ToPrimary> {
        (!std::mem::replace(&mut self.is_over, true)).then_some(ToPrimary::Farewell { handoff })
    }
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_refusal_names_the_address_that_was_asked_for() {
        let mut conversation = Conversation::default();
        let (first, _) = conversation.ask("127.0.0.1:1", ListenOptions::default());
        let (second, message) = conversation.ask("127.0.0.1:2", ListenOptions::default());
        assert!(matches!(message, ToPrimary::Listen { sequence, .. } if sequence == second));
        let failed = |sequence| ToWorker::ListenFailed {
            sequence,
            step: "bind".into(),
            errno: Errno::EADDRINUSE as i32,
        };
        let FromPrimary::Answer { sequence, grant: Err(Error::Listen { address, source, .. }) } =
            conversation.on_message(failed(second), vec![])
        else {
            panic!("it is a refusal");
        };
        assert_eq!(
            (sequence, address.as_str(), source),
            (second, "127.0.0.1:2", Errno::EADDRINUSE.into())
        );
        assert!(conversation.is_waiting());
        conversation.forget(first);
        assert!(!conversation.is_waiting());
    }

    #[test]
    fn leaving_and_farewell_are_said_once() {
        let mut conversation = Conversation::default();
        assert_eq!(conversation.leave(), Some(ToPrimary::Leaving));
        assert_eq!(conversation.leave(), None);
        assert_eq!(conversation.farewell(None), Some(ToPrimary::Farewell { handoff: None }));
        assert_eq!(conversation.farewell(None), None);
    }

    proptest! {
        #[test]
        fn nothing_is_waited_for_when_every_request_has_its_reply(
            replies in Just((0_u32..20).collect::<Vec<_>>()).prop_shuffle(),
            granted in any::<u32>(),
        ) {
            let mut conversation = Conversation::default();
            for number in 0..20 {
                let (sequence, _) = conversation.ask("unix:@a", ListenOptions::default());
                prop_assert_eq!(sequence, number);
            }
            for sequence in replies {
                prop_assert!(conversation.is_waiting());
                let message = match granted >> sequence & 1 {
                    1 => ToWorker::Listening {
                        sequence,
                        listener: ListenerId::new(3),
                        address: "unix:@a".into(),
                        proxy_protocol: false,
                    },
                    _ => ToWorker::ListenFailed { sequence, step: "bind".into(), errno: 13 },
                };
                let meaning = conversation.on_message(message, vec![]);
                let FromPrimary::Answer { sequence: answered, grant } = meaning
                else {
                    panic!("it is an answer");
                };
                prop_assert_eq!(answered, sequence);
                prop_assert_eq!(grant.is_ok(), granted >> sequence & 1 == 1);
            }
            prop_assert!(!conversation.is_waiting());
        }
    }
}
