//! Where the primary's sockets arrive, many in one message.
//!
//! Owns the worker's end of the handoff channel. It takes a message only when every descriptor in
//! it is sure to find room: the kernel drops those that do not. What is not taken stays in the
//! channel, where the primary can still give it to somebody else.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;

use super::connections::Connections;
use super::surroundings::Surroundings;
use clusterlb::Result;
use clusterlb::protocol::control::LatencySummary;
use clusterlb::protocol::handoff;
use clusterlb::protocol::latency::HandoffLatency;
use clusterlb::protocol::scoreboard::Statistic;
use clusterlb_sys::engine::{Key, Outcome, SealedMessage};
use clusterlb_sys::fdpass::DESCRIPTORS_PER_MESSAGE_MAX;
use clusterlb_sys::limits;

/// Messages that the kernel may receive ahead of us.
const MESSAGES_AHEAD_MAX: usize = 32;
/// A turn of the loop that takes longer makes others wait.
const SLOW_TURN_NS: u64 = 1_000_000;
/// Descriptors that are never given to connections.
const DESCRIPTORS_RESERVED: usize = 8;

/// How often the limit of descriptors is looked at.
const LOOK_NS: u64 = 50_000_000;

/// The key under which messages are received; there is one inbox.
const KEY: Key = Key { index: 0, generation: 0 };

/// Connections for which this process has descriptors, besides those `used` for other things.
fn connections_max(used: usize) -> Result<usize> {
    let (limit, _) = limits::descriptor_limits()?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    Ok(limit.saturating_sub(used).max(DESCRIPTORS_PER_MESSAGE_MAX))
}

/// The worker's end.
#[derive(Debug)]
pub(super) struct Inbox {
    socket: OwnedFd,
    armed: bool,
    closed: bool,
    /// Descriptors that this process has for other things than connections.
    used: usize,
    /// Connections that it has descriptors for, and when that was looked at.
    connections_max: usize,
    looked_ns: u64,
    paused: bool,
    payload: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    latency: HandoffLatency,
}

impl Inbox {
    pub(super) fn new(socket: OwnedFd) -> Result<Self> {
        let used = limits::descriptors_open() + DESCRIPTORS_RESERVED;
        let connections_max = connections_max(used)?;
        Ok(Self {
            socket,
            armed: false,
            closed: false,
            used,
            connections_max,
            looked_ns: 0,
            paused: false,
            payload: Vec::with_capacity(clusterlb_sys::engine::PAYLOAD_BYTES_MAX),
            descriptors: Vec::with_capacity(DESCRIPTORS_PER_MESSAGE_MAX),
            latency: HandoffLatency::new(),
        })
    }

    /// The primary will send nothing more, and everything it sent has been taken.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// A message, the end, or a failure.
    pub(super) fn received(
        &mut self,
        around: &mut Surroundings,
        connections: &mut Connections,
        outcome: Outcome<Option<SealedMessage>>,
        armed: bool,
    ) {
        self.armed = armed;
        match outcome {
            Ok(Some(sealed)) => self.claim(around, connections, sealed),
            Ok(None) => self.closed = true,
            // Nothing may be received for want of descriptors, or the receive was interrupted:
            // `top_up` arms it again when it can.
            Err(Errno::ENOBUFS | Errno::EINTR | Errno::EAGAIN | Errno::ENOMEM) => {
                around.page.add(Statistic::Rearms, 1);
            }
            Err(_) => self.closed = true,
        }
    }

    fn claim(
        &mut self,
        around: &mut Surroundings,
        connections: &mut Connections,
        sealed: SealedMessage,
    ) {
        self.payload.clear();
        let opened = around.engine.open_message(sealed, &mut self.payload, &mut self.descriptors);
        let arrived = self.descriptors.len();
        let mut promised = arrived;
        if let Some(records) = handoff::records(&self.payload) {
            promised = records.len();
            for record in records {
                self.latency.record(record.accepted_ns, around.now_ns);
            }
        }
        if promised == 0 {
            return around.page.answer_probe();
        }
        let lost = promised.saturating_sub(arrived);
        if opened.truncated || lost > 0 {
            around.page.add(Statistic::Truncated, lost as u64);
        }
        around.page.add_claimed((arrived + lost) as u64, around.now_ns);
        around.page.add_finished(lost as u64);
        for socket in self.descriptors.drain(..) {
            connections.open(around, socket);
        }
    }

    /// Lets the kernel receive as many messages as there are descriptors for. After a turn that
    /// took long it is one, so that a claim means that work begins: the rest stays in the channel,
    /// where the primary can give it to an idle worker.
    pub(super) fn top_up(
        &mut self,
        around: &mut Surroundings,
        connections: &Connections,
        turn_ns: u64,
    ) {
        if self.closed {
            return;
        }
        if around.now_ns.saturating_sub(self.looked_ns) > LOOK_NS {
            // Somebody may have lowered the limit.
            self.looked_ns = around.now_ns;
            self.connections_max = connections_max(self.used).unwrap_or(self.connections_max);
        }
        let free = self.connections_max.saturating_sub(connections.len());
        let ahead_max = if turn_ns > SLOW_TURN_NS { 1 } else { MESSAGES_AHEAD_MAX };
        let messages = (free / DESCRIPTORS_PER_MESSAGE_MAX).min(ahead_max);
        let messages = u16::try_from(messages).expect("bounded by MESSAGES_AHEAD_MAX");
        around.engine.offer_messages(messages);
        let possible = around.engine.messages_offered() > 0;
        if !self.armed && possible {
            self.armed = true;
            around.engine.receive_messages(KEY, self.socket.as_fd());
        }
        if !possible && !self.paused {
            around.page.add(Statistic::DescriptorPauses, 1);
        }
        self.paused = !possible;
    }

    /// How long sockets were on their way, from accept to claim.
    pub(super) fn latency(&self) -> Option<LatencySummary> {
        self.latency.summary()
    }
}
