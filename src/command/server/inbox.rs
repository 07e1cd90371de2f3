//! Receives the primary's sockets, many per message.
//!
//! Owns the worker's end of the handoff channel. It takes a message only when every descriptor in
//! it is sure to fit: the kernel drops those that do not. The others stay in the channel, where the
//! primary can still give them to another worker.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;

use super::connections::Connections;
use super::shared::Shared;
use clusterlb::Result;
use clusterlb::protocol::scoreboard::Statistic;
use clusterlb::protocol::worker_end::{Count, DescriptorBudget, TurnPace};
use clusterlb_sys::engine::{Key, Outcome, SealedMessage};
use clusterlb_sys::fdpass::DESCRIPTORS_PER_MESSAGE_MAX;
use clusterlb_sys::limits;

/// Messages that the kernel may receive ahead of the worker.
const MESSAGES_AHEAD_MAX: usize = 32;

/// The key for received messages; there is one inbox.
const KEY: Key = Key { index: 0, generation: 0 };

/// The worker's end.
#[derive(Debug)]
pub(super) struct Inbox {
    socket: OwnedFd,
    armed: bool,
    closed: bool,
    budget: DescriptorBudget,
    paused: bool,
    payload: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Inbox {
    pub(super) fn new(socket: OwnedFd) -> Result<Self> {
        // The engine and the listeners are open; only connections open descriptors from here on.
        let count = Count { limit: limits::descriptors_max()?, open: limits::descriptors_open() };
        Ok(Self {
            socket,
            armed: false,
            closed: false,
            budget: DescriptorBudget::fixed(count),
            paused: false,
            payload: Vec::with_capacity(clusterlb_sys::engine::PAYLOAD_BYTES_MAX),
            descriptors: Vec::with_capacity(DESCRIPTORS_PER_MESSAGE_MAX),
        })
    }

    /// The primary sends no more, and every socket has been taken.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Handles a message, the end, or a failure.
    pub(super) fn received(
        &mut self,
        shared: &mut Shared,
        connections: &mut Connections,
        outcome: Outcome<Option<SealedMessage>>,
        armed: bool,
    ) {
        self.armed = armed;
        match outcome {
            Ok(Some(sealed)) => self.claim(shared, connections, sealed),
            Ok(None) => self.closed = true,
            // Too few descriptors, or an interrupted receive: `top_up` arms it again when it can.
            Err(Errno::ENOBUFS | Errno::EINTR | Errno::EAGAIN | Errno::ENOMEM) => {
                shared.end.add(Statistic::Rearms, 1);
            }
            Err(_) => self.closed = true,
        }
    }

    fn claim(&mut self, shared: &mut Shared, connections: &mut Connections, sealed: SealedMessage) {
        self.payload.clear();
        let opened = shared.engine.open_message(sealed, &mut self.payload, &mut self.descriptors);
        if opened.truncated {
            self.budget.on_truncation();
        }
        let arrived = self.descriptors.len();
        let records = shared.end.received(&self.payload, arrived, shared.now_ns);
        for (socket, record) in self.descriptors.drain(..).zip(records) {
            shared.end.claim(record.accepted_ns, shared.now_ns);
            connections.open(shared, record.listener, socket);
        }
    }

    /// Lets the kernel receive as many messages as there are descriptors for. At a slow pace it is
    /// one, so that a claim means that work begins: the rest stays in the channel, where the
    /// primary can give it to an idle worker.
    pub(super) fn top_up(
        &mut self,
        shared: &mut Shared,
        connections: &Connections,
        pace: TurnPace,
    ) {
        if self.closed {
            return;
        }
        if self.budget.wants_limit(shared.now_ns)
            && let Ok(limit) = limits::descriptors_max()
        {
            self.budget.set_limit(limit, shared.now_ns);
        }
        let ahead_max = if pace.is_slow() { 1 } else { MESSAGES_AHEAD_MAX };
        let fitting = self.budget.messages(connections.len(), limits::descriptors_open);
        let messages = fitting.min(ahead_max);
        let messages = u16::try_from(messages).expect("bounded by MESSAGES_AHEAD_MAX");
        shared.engine.offer_messages(messages);
        let possible = shared.engine.messages_offered() > 0;
        if !self.armed && possible {
            self.armed = true;
            shared.engine.receive_messages(KEY, self.socket.as_fd());
        }
        if !possible && !self.paused {
            shared.end.add(Statistic::DescriptorPauses, 1);
        }
        self.paused = !possible;
    }
}
