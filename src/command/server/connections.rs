//! The connections of a worker: each a socket, a protocol session and the operations in progress.
//!
//! Owns the state machine between the engine and the session. A connection's place is reused only
//! after the last completion that names it. The process's descriptors bound their number; `memory`
//! bounds the memory of each and of all.

mod ends;
mod memory;
mod proxied;

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use slab::Slab;

use super::connection::{Connection, ConnectionStage, Receive, current};
use super::deadlines::{Class, Deadlines, Durations};
use super::shared::Shared;
use crate::command::handler::{Context, HttpLimits, Next, Serve, Session, Waiting};
use clusterlb::ListenerId;
use clusterlb::protocol::scoreboard::Statistic;
use clusterlb_sys::engine::{CHUNK_BYTES, Chunk, Key, Outcome};

/// Buffers kept for reuse, and the largest one to keep.
const SPARE_BUFFERS_MAX: usize = 256;
const SPARE_BYTES_MAX: usize = 16 * 1024;
/// Most bytes discarded after an error answer before the connection is closed anyway.
const LINGER_BYTES_MAX: u32 = 1024 * 1024;

/// All connections.
#[derive(Debug)]
pub(super) struct Connections {
    serve: Serve,
    limits: HttpLimits,
    pub(super) table: Slab<Connection>,
    pub(super) deadlines: Deadlines,
    spare: Vec<Vec<u8>>,
    generation: u32,
    /// Memory that all connections hold.
    pub(super) held_bytes: usize,
    /// Listeners whose connections begin with a header of the PROXY protocol.
    proxied: BTreeSet<ListenerId>,
}

/// What a session needs to know for a step, with this much kept input.
fn context<'a>(shared: &'a Shared, limits: &'a HttpLimits, kept_bytes: usize) -> Context<'a> {
    Context {
        date: &shared.date,
        draining: shared.draining,
        limits,
        output_max: memory::output_bytes_max(kept_bytes),
    }
}

impl Connections {
    pub(super) fn new(serve: Serve, durations: Durations) -> Self {
        Self {
            serve,
            limits: HttpLimits::default(),
            table: Slab::new(),
            deadlines: Deadlines::new(durations),
            spare: Vec::new(),
            generation: 0,
            held_bytes: 0,
            proxied: BTreeSet::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    /// The next deadline.
    pub(super) fn next_deadline_ns(&self) -> Option<u64> {
        self.deadlines.next_ns()
    }

    /// Takes a socket that was counted as claimed.
    pub(super) fn open(&mut self, shared: &mut Shared, listener: ListenerId, socket: OwnedFd) {
        self.generation = self.generation.wrapping_add(1) & 0x00ff_ffff;
        let place = self.table.vacant_key();
        let index = u32::try_from(place).expect("connections are bounded by descriptors");
        let key = Key { index, generation: self.generation };
        let is_proxied = self.proxied.contains(&listener);
        // One receive first: most short connections bring their request and end with the answer,
        // and an armed multishot receive would have to be cancelled then.
        shared.engine.receive_once(key, socket.as_fd());
        self.table.insert(Connection {
            socket: Some(socket),
            listener,
            generation: self.generation,
            session: Session::new(self.serve),
            input: Vec::new(),
            output: Vec::new(),
            sent: 0,
            next: Next::Read,
            stage: ConnectionStage::Open,
            receive: Receive::Once,
            fills: false,
            sending: false,
            sending_bytes: 0,
            held_bytes: 0,
            ended: false,
            awaits_header: is_proxied,
            lingered: 0,
        });
        if self.serve == Serve::Hello || is_proxied {
            let class = if shared.draining { Class::Leave } else { Class::Head };
            self.deadlines.arm(index, class, shared.now_ns);
        }
    }

    /// The client sent bytes, an end or an error.
    pub(super) fn on_received(
        &mut self,
        shared: &mut Shared,
        key: Key,
        outcome: Outcome<Option<Chunk>>,
        armed: bool,
    ) {
        self.received(shared, key, outcome, armed);
        self.account(shared, key);
    }

    fn received(
        &mut self,
        shared: &mut Shared,
        key: Key,
        outcome: Outcome<Option<Chunk>>,
        armed: bool,
    ) {
        let Some(connection) = current(&mut self.table, key) else {
            if let Ok(Some(chunk)) = outcome {
                shared.engine.recycle(chunk);
            }
            return;
        };
        if !armed {
            connection.receive = Receive::Off;
        }
        match outcome {
            Ok(Some(chunk)) => self.take_chunk(shared, key, chunk),
            Ok(None) => {
                connection.ended = true;
                self.advance(shared, key);
            }
            // Out of buffers for a moment, or stopped on purpose; `advance` arms it again.
            Err(Errno::ENOBUFS) => {
                shared.end.add(Statistic::Rearms, 1);
                self.advance(shared, key);
            }
            Err(Errno::ECANCELED) => self.advance(shared, key),
            Err(_) => {
                if connection.stage != ConnectionStage::Closing {
                    shared.end.add(Statistic::Resets, 1);
                }
                self.close(shared, key);
            }
        }
    }

    fn take_chunk(&mut self, shared: &mut Shared, key: Key, chunk: Chunk) {
        let connection = &mut self.table[key.index as usize];
        let length = shared.engine.bytes(&chunk).len();
        connection.fills |= length == usize::from(CHUNK_BYTES);
        match connection.stage {
            ConnectionStage::Closing => shared.engine.recycle(chunk),
            ConnectionStage::Lingering => {
                shared.engine.recycle(chunk);
                let length = u32::try_from(length).unwrap_or(u32::MAX);
                connection.lingered = connection.lingered.saturating_add(length);
                if connection.lingered > LINGER_BYTES_MAX {
                    connection.reset_on_close();
                    return self.close(shared, key);
                }
            }
            ConnectionStage::Open if connection.awaits_header => {
                return self.take_header(shared, key, chunk);
            }
            ConnectionStage::Open if connection.sending || !connection.input.is_empty() => {
                memory::keep(&mut connection.input, shared.engine.bytes(&chunk));
                shared.engine.recycle(chunk);
                if connection.sending {
                    // The client sends faster than it reads. Keep this piece, and receive no more
                    // until its answers are sent.
                    if connection.receive == Receive::Many {
                        connection.receive = Receive::Stopping;
                        shared.engine.cancel_receive(key);
                    }
                } else {
                    self.step_from_input(shared, key);
                }
            }
            ConnectionStage::Open => {
                let consumed = self.step(shared, key, Input::Chunk(&chunk));
                let connection = &mut self.table[key.index as usize];
                if consumed < length {
                    let rest = &shared.engine.bytes(&chunk)[consumed..];
                    memory::keep(&mut connection.input, rest);
                }
                shared.engine.recycle(chunk);
            }
        }
        self.advance(shared, key);
    }

    /// Offers the kept input to the session again.
    fn step_from_input(&mut self, shared: &mut Shared, key: Key) {
        let input = std::mem::take(&mut self.table[key.index as usize].input);
        let consumed = self.step(shared, key, Input::Kept(&input));
        let connection = &mut self.table[key.index as usize];
        if consumed == input.len() {
            self.spare_buffer(input);
        } else {
            connection.input = input;
            connection.input.drain(..consumed);
        }
    }

    /// Passes input to the session; returns how much it consumed.
    fn step(&mut self, shared: &mut Shared, key: Key, source: Input<'_>) -> usize {
        let connection = &mut self.table[key.index as usize];
        if connection.output.capacity() == 0 {
            connection.output = self.spare.pop().unwrap_or_else(memory::output_buffer);
        }
        let kept_bytes = match source {
            Input::Chunk(_) => connection.input.len(),
            Input::Kept(bytes) => bytes.len(),
        };
        let context = context(shared, &self.limits, kept_bytes);
        let input = match source {
            Input::Chunk(chunk) => shared.engine.bytes(chunk),
            Input::Kept(bytes) => bytes,
        };
        let progress = connection.session.on_bytes(input, &mut connection.output, &context);
        let consumed = progress.consumed.min(input.len());
        connection.next = progress.next;
        if progress.answered > 0 {
            shared.end.add(Statistic::Requests, u64::from(progress.answered));
            shared.work(progress.answered);
        }
        consumed
    }

    /// A send ended; `buffer` comes back.
    pub(super) fn on_sent(
        &mut self,
        shared: &mut Shared,
        key: Key,
        buffer: Vec<u8>,
        outcome: Outcome<usize>,
    ) {
        self.sent(shared, key, buffer, outcome);
        self.account(shared, key);
    }

    fn sent(&mut self, shared: &mut Shared, key: Key, buffer: Vec<u8>, outcome: Outcome<usize>) {
        let Some(connection) = current(&mut self.table, key) else {
            return;
        };
        connection.sending = false;
        connection.sending_bytes = 0;
        // Closed with its last answer: the rest of it cannot be sent, and a reset shows only here.
        let parted = connection.socket.is_none();
        match outcome {
            Ok(count) if connection.sent + count < buffer.len() && count > 0 && !parted => {
                connection.sent += count;
                connection.output = buffer;
                self.send(shared, key);
            }
            Ok(_) if connection.stage == ConnectionStage::Closing => {
                self.deadlines.disarm(key.index);
                self.spare_buffer(buffer);
                self.advance(shared, key);
            }
            Ok(_) => {
                self.spare_buffer(buffer);
                self.deadlines.disarm(key.index);
                let connection = &mut self.table[key.index as usize];
                let more = matches!(connection.next, Next::Read | Next::Resume);
                if more && connection.output.is_empty() && !connection.input.is_empty() {
                    self.step_from_input(shared, key);
                }
                self.advance(shared, key);
            }
            Err(_) => {
                if connection.stage != ConnectionStage::Closing || parted {
                    shared.end.add(Statistic::Resets, 1);
                }
                self.deadlines.disarm(key.index);
                self.close(shared, key);
            }
        }
    }

    /// Takes the next step: send, receive, linger, close, or free the place.
    fn advance(&mut self, shared: &mut Shared, key: Key) {
        let connection = &mut self.table[key.index as usize];
        if connection.stage == ConnectionStage::Closing {
            return self.free_when_quiet(shared, key);
        }
        if connection.sending {
            return;
        }
        if !connection.output.is_empty() {
            connection.sent = 0;
            return self.send(shared, key);
        }
        match (connection.stage, connection.next) {
            (ConnectionStage::Lingering, _) if connection.ended => self.close(shared, key),
            (ConnectionStage::Lingering, _) => self.keep_receiving(shared, key),
            (_, Next::Close) => self.close(shared, key),
            (_, Next::CloseLingering) => self.linger(shared, key),
            (_, Next::Read | Next::Resume) if connection.ended => self.end(shared, key),
            // Its answer was in progress when the other idle connections were closed.
            (_, Next::Read | Next::Resume) if shared.draining && connection.is_idle() => {
                self.close(shared, key);
            }
            (_, Next::Read | Next::Resume) => {
                self.keep_receiving(shared, key);
                self.watch(shared, key);
            }
        }
    }

    /// Sends the output, and closes with it if it is the last.
    fn send(&mut self, shared: &mut Shared, key: Key) {
        let connection = &mut self.table[key.index as usize];
        let output = std::mem::take(&mut connection.output);
        connection.sending = true;
        connection.sending_bytes = output.capacity();
        self.deadlines.arm(key.index, Class::Send, shared.now_ns);
        let last = connection.next == Next::Close && connection.receive == Receive::Off;
        if last && connection.stage == ConnectionStage::Open && connection.sent == 0 {
            connection.stage = ConnectionStage::Closing;
            if let Some(socket) = connection.socket.take() {
                shared.engine.send_last(key, socket, output);
            }
        } else if let Some(socket) = &connection.socket {
            shared.engine.send(key, socket.as_fd(), output, connection.sent);
        }
    }

    /// The client half-closed, and all its input has been processed.
    fn end(&mut self, shared: &mut Shared, key: Key) {
        let connection = &mut self.table[key.index as usize];
        if connection.awaits_header {
            return self.refuse(shared, key);
        }
        let context = context(shared, &self.limits, connection.input.len());
        let input = std::mem::take(&mut connection.input);
        let _ = connection.session.on_end(&input, &mut connection.output, &context);
        // Whatever the session wants next: the client sends nothing more.
        connection.next = Next::Close;
        self.advance(shared, key);
    }

    fn keep_receiving(&mut self, shared: &mut Shared, key: Key) {
        let connection = &mut self.table[key.index as usize];
        if connection.receive != Receive::Off || connection.ended {
            return;
        }
        let Some(socket) = &connection.socket else { return };
        // Multishot receives are for clients that read their answers and whose input always fits
        // into one piece. They must not add to waiting input.
        let waiting = connection.session.waiting();
        let sends_much = waiting == Waiting::Stream || connection.fills && waiting != Waiting::Body;
        if !connection.input.is_empty() || sends_much {
            connection.receive = Receive::Once;
            shared.engine.receive_once(key, socket.as_fd());
        } else {
            connection.receive = Receive::Many;
            shared.engine.receive_many(key, socket.as_fd());
        }
    }

    fn spare_buffer(&mut self, mut buffer: Vec<u8>) {
        let worth_keeping = (1..=SPARE_BYTES_MAX).contains(&buffer.capacity());
        if worth_keeping && self.spare.len() < SPARE_BUFFERS_MAX {
            buffer.clear();
            self.spare.push(buffer);
        }
    }
}

/// Where the input of a step is.
#[derive(Clone, Copy)]
enum Input<'a> {
    Chunk(&'a Chunk),
    Kept(&'a [u8]),
}
