//! The operations of a ring: their submission, and the meaning of their completions.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::time::Duration;

use io_uring::types::{Fd, RecvMsgOut, Timespec};
use io_uring::{cqueue, opcode, squeue};
use nix::errno::Errno;
use nix::libc;

use super::{DATA_GROUP, Ring};
use crate::clock::monotonic_ns;
use crate::engine::{Chunk, Event, Key, Opened, Outcome, OutgoingMessage, SealedMessage};
use crate::fdpass::{ControlSpace, adopt_descriptors};

/// The kind of operation that a completion belongs to. Zero is unused, so that missing user data is
/// detected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Operation {
    Accept = 1,
    Receive = 2,
    Send = 3,
    SendMessage = 4,
    ReceiveMessage = 5,
    Poll = 6,
    Cancel = 7,
    Quiet = 8,
    Alarm = 9,
    MoveAlarm = 10,
    LastClose = 11,
}

impl Operation {
    /// Whether the ring's memory must outlive its completion. A successful close has none, and the
    /// kernel has copied the time of an alarm.
    pub(super) fn is_awaited(self) -> bool {
        !matches!(self, Self::Quiet | Self::LastClose | Self::Alarm | Self::MoveAlarm)
    }
}

/// The `user_data` of an operation: its kind and its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token(pub(super) u64);

impl Token {
    fn new(operation: Operation, key: Key) -> Self {
        Self(key.pack(operation as u8))
    }

    fn key(self) -> Key {
        Key::unpack(self.0).1
    }

    pub(super) fn operation(self) -> Option<Operation> {
        Some(match self.0 >> 56 {
            1 => Operation::Accept,
            2 => Operation::Receive,
            3 => Operation::Send,
            4 => Operation::SendMessage,
            5 => Operation::ReceiveMessage,
            6 => Operation::Poll,
            7 => Operation::Cancel,
            8 => Operation::Quiet,
            9 => Operation::Alarm,
            10 => Operation::MoveAlarm,
            11 => Operation::LastClose,
            _ => return None,
        })
    }
}

const ACCEPT_FLAGS: i32 = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;

impl Ring {
    /// Accepts from `listener` until cancelled or failed (multishot, 5.19).
    pub fn accept_many(&mut self, key: Key, listener: BorrowedFd<'_>) {
        let entry = opcode::AcceptMulti::new(Fd(listener.as_raw_fd())).flags(ACCEPT_FLAGS).build();
        self.push(Operation::Accept, key, entry);
    }

    /// Accepts one connection from `listener`.
    pub fn accept_one(&mut self, key: Key, listener: BorrowedFd<'_>) {
        let none = std::ptr::null_mut();
        let entry = opcode::Accept::new(Fd(listener.as_raw_fd()), none, none.cast())
            .flags(ACCEPT_FLAGS)
            .build();
        self.push(Operation::Accept, key, entry);
    }

    /// Receives once.
    pub fn receive_once(&mut self, key: Key, socket: BorrowedFd<'_>) {
        let length = DATA_GROUP.buffer_bytes;
        let entry = opcode::Recv::new(Fd(socket.as_raw_fd()), std::ptr::null_mut(), length)
            .buf_group(DATA_GROUP.group)
            .build()
            .flags(squeue::Flags::BUFFER_SELECT);
        self.push(Operation::Receive, key, entry);
    }

    /// Receives until cancelled, failed, or out of buffers (multishot, 6.0).
    pub fn receive_many(&mut self, key: Key, socket: BorrowedFd<'_>) {
        let entry = opcode::RecvMulti::new(Fd(socket.as_raw_fd()), DATA_GROUP.group).build();
        self.push(Operation::Receive, key, entry);
    }

    /// Sends `buffer[from..]`; the buffer comes back with the completion.
    ///
    /// # Panics
    /// If `from` is beyond the end of the buffer.
    pub fn send(&mut self, key: Key, socket: BorrowedFd<'_>, buffer: Vec<u8>, from: usize) {
        // MSG_WAITALL makes the kernel continue after a partial send.
        self.push_send(key, socket, buffer, from, libc::MSG_NOSIGNAL | libc::MSG_WAITALL);
    }

    /// Sends `buffer` and closes `socket` in a single entry into the kernel. The last bytes share a
    /// segment with the FIN, which saves a packet on both sides. If the send has to wait for room,
    /// the socket stays open until it is done.
    pub fn send_last(&mut self, key: Key, socket: OwnedFd, buffer: Vec<u8>) {
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL | libc::MSG_MORE;
        self.push_send(key, socket.as_fd(), buffer, 0, flags);
        self.close(socket);
    }

    fn push_send(
        &mut self,
        key: Key,
        socket: BorrowedFd<'_>,
        buffer: Vec<u8>,
        from: usize,
        flags: i32,
    ) {
        let bytes = &buffer[from..];
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let address = bytes.as_ptr();
        let place = self.sends.insert((key, buffer));
        let entry = opcode::Send::new(Fd(socket.as_raw_fd()), address, length).flags(flags).build();
        self.push(Operation::Send, place_key(place), entry);
    }

    /// Sends `message` without blocking and, if it was sent, closes its descriptors, in a single
    /// entry into the kernel. The message comes back with the completions of that entry. A sent
    /// message does not end a wait; a refused one does, and brings its descriptors back.
    pub fn send_message(
        &mut self,
        key: Key,
        socket: BorrowedFd<'_>,
        mut message: Box<OutgoingMessage>,
    ) {
        let header = message.seal();
        let flags = u32::try_from(libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT)
            .expect("message flags are small and positive");
        let send = opcode::SendMsg::new(Fd(socket.as_raw_fd()), header).flags(flags).build();
        let mut chain = std::mem::take(&mut self.chain);
        chain.push(send);
        chain.extend(message.raw_descriptors().map(|raw| {
            let close = opcode::Close::new(Fd(raw)).build().flags(squeue::Flags::SKIP_SUCCESS);
            close.user_data(Token::new(Operation::Quiet, Key::default()).0)
        }));
        if chain.len() == 1 {
            // As with a close: a refused message has one more completion.
            let nothing = opcode::Nop::new().build().flags(squeue::Flags::SKIP_SUCCESS);
            chain.push(nothing.user_data(Token::new(Operation::Quiet, Key::default()).0));
        }
        self.steps += steps_of(&message);
        let place = self.messages_out.insert((key, message));
        chain[0].set_user_data(Token::new(Operation::SendMessage, place_key(place)).0);
        link(&mut chain);
        self.in_kernel += 1;
        self.push_chain(&chain);
        chain.clear();
        self.chain = chain;
    }

    /// Sends `remark` without blocking. Its outcome is not reported.
    pub fn remark(&mut self, socket: BorrowedFd<'_>, remark: &'static [u8]) {
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        let length = u32::try_from(remark.len()).expect("remarks are short");
        let send = opcode::Send::new(Fd(socket.as_raw_fd()), remark.as_ptr(), length).flags(flags);
        let send = send.build().flags(squeue::Flags::SKIP_SUCCESS);
        self.push(Operation::Quiet, Key::default(), send);
    }

    /// Receives messages with descriptors until cancelled, failed, or out of buffers.
    ///
    /// # Panics
    /// If the ring was not made `with_message_buffers`.
    pub fn receive_messages(&mut self, key: Key, socket: BorrowedFd<'_>) {
        let group = self.messages_in.as_ref().expect("the ring has message buffers").group();
        let flags = u32::try_from(libc::MSG_CMSG_CLOEXEC).expect("message flags are positive");
        let header: *const libc::msghdr = &raw const *self.inbox_header;
        let entry =
            opcode::RecvMsgMulti::new(Fd(socket.as_raw_fd()), header, group).flags(flags).build();
        self.push(Operation::ReceiveMessage, key, entry);
    }

    /// Reports once when `descriptor` is readable.
    pub fn poll_readable(&mut self, key: Key, descriptor: BorrowedFd<'_>) {
        self.poll(key, descriptor, libc::POLLIN);
    }

    /// Reports once when `descriptor` is writable.
    pub fn poll_writable(&mut self, key: Key, descriptor: BorrowedFd<'_>) {
        self.poll(key, descriptor, libc::POLLOUT);
    }

    fn poll(&mut self, key: Key, descriptor: BorrowedFd<'_>, events: libc::c_short) {
        let events = u32::try_from(events).expect("poll events are positive");
        let entry = opcode::PollAdd::new(Fd(descriptor.as_raw_fd()), events).build();
        self.push(Operation::Poll, key, entry);
    }

    /// Cancels the accept armed under `key`.
    pub fn cancel_accept(&mut self, key: Key) {
        self.cancel(Operation::Accept, key);
    }

    /// Cancels the receive armed under `key`.
    pub fn cancel_receive(&mut self, key: Key) {
        self.cancel(Operation::Receive, key);
    }

    /// Cancels the receive of messages of `key`.
    pub fn cancel_receive_messages(&mut self, key: Key) {
        self.cancel(Operation::ReceiveMessage, key);
    }

    /// Cancels the poll of `key`.
    pub fn cancel_poll(&mut self, key: Key) {
        self.cancel(Operation::Poll, key);
    }

    /// Cancels the send of `key`; its buffer comes back with the number of bytes sent.
    pub fn cancel_send(&mut self, key: Key) {
        // A search over all sends, which is rare: only a client that does not read its answer
        // causes it.
        let found = self.sends.iter().find(|(_, (owner, _))| *owner == key);
        if let Some((place, _)) = found {
            self.cancel(Operation::Send, place_key(place));
        }
    }

    fn cancel(&mut self, operation: Operation, key: Key) {
        let target = Token::new(operation, key);
        let entry = opcode::AsyncCancel::new(target.0).build();
        self.push(Operation::Cancel, key, entry);
    }

    /// Closes a descriptor in the next entry into the kernel, which saves a system call.
    pub fn close(&mut self, descriptor: OwnedFd) {
        let entry = opcode::Close::new(Fd(descriptor.into_raw_fd()))
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS);
        self.push(Operation::Quiet, Key::default(), entry);
    }

    /// Makes waits end at `deadline_ns` or earlier. An earlier alarm stays: the caller checks the
    /// clock and waits again. The timeout is relative: the kernel would
    /// take an absolute time of a time namespace for one outside of it.
    pub(super) fn set_alarm(&mut self, deadline_ns: u64) {
        if self.alarm_ns.is_some_and(|armed_ns| armed_ns <= deadline_ns) {
            return;
        }
        let left_ns = deadline_ns.saturating_sub(monotonic_ns());
        *self.alarm_time = Timespec::from(Duration::from_nanos(left_ns));
        let time: *const Timespec = &raw const *self.alarm_time;
        if self.alarm_ns.replace(deadline_ns).is_none() {
            let set = opcode::Timeout::new(time).build();
            return self.push(Operation::Alarm, Key::default(), set);
        }
        // An alarm that has just expired cannot be moved; its completion ends the next wait, and
        // the one after sets a new alarm.
        let update =
            opcode::TimeoutUpdate::new(Token::new(Operation::Alarm, Key::default()).0, time);
        let update = update.build().flags(squeue::Flags::SKIP_SUCCESS);
        self.push(Operation::MoveAlarm, Key::default(), update);
    }

    /// Takes the payload and descriptors of a message. Its buffer stays unused until the next
    /// [`Ring::offer_messages`].
    pub fn open_message(
        &mut self,
        sealed: SealedMessage,
        payload: &mut Vec<u8>,
        descriptors: &mut Vec<OwnedFd>,
    ) -> Opened {
        let Some(group) = &mut self.messages_in else {
            return Opened { truncated: true };
        };
        let buffer = group.bytes(&sealed.buffer, sealed.length as usize);
        let mut truncated = true;
        if let Ok(message) = RecvMsgOut::parse(buffer, &self.inbox_header) {
            payload.extend_from_slice(message.payload_data());
            truncated = message.is_control_data_truncated() || message.is_payload_truncated();
            let mut control = ControlSpace::default();
            let length = message.control_data().len().min(control.0.len());
            control.0[..length].copy_from_slice(&message.control_data()[..length]);
            // SAFETY: the kernel wrote this for a message of a receive-message operation, and a
            // `SealedMessage` is consumed by being opened.
            unsafe { adopt_descriptors(&control.0[..length], descriptors) };
        }
        group.hold_back(sealed.buffer);
        Opened { truncated }
    }

    fn push(&mut self, operation: Operation, key: Key, entry: squeue::Entry) {
        self.in_kernel += u64::from(operation.is_awaited());
        self.push_chain(&[entry.user_data(Token::new(operation, key).0)]);
    }

    /// Queues linked entries. A chain ends at the boundary of a submission, so it must not be
    /// split.
    fn push_chain(&mut self, chain: &[squeue::Entry]) {
        if self.deferred.is_empty() {
            // SAFETY: whatever the entries point to is owned by this ring until their completion,
            // and the ring ends all operations before it frees anything.
            if unsafe { self.uring.0.submission().push_multiple(chain) }.is_ok() {
                return;
            }
        }
        self.deferred.push_back(chain.into());
        self.flush_deferred();
    }
}

/// Links the send of a message to the closes of its descriptors. If the send fails, nothing is
/// closed; a failed close does not stop the others. Only the last close reports success.
fn link(chain: &mut [squeue::Entry]) {
    if let [_, _, .., last] = chain {
        let token = Token::new(Operation::LastClose, Key::default()).0;
        *last = last.clone().clear_flags().user_data(token);
    }
    let links = chain.len() - 1;
    for (place, entry) in chain[..links].iter_mut().enumerate() {
        let kind = match place {
            0 => squeue::Flags::IO_LINK,
            _ => squeue::Flags::IO_HARDLINK,
        };
        *entry = entry.clone().flags(kind);
    }
}

/// Number of completions after which a message is sent and its descriptors are closed. With a
/// single descriptor one suffices: when its send reports, the close follows at once.
fn steps_of(message: &OutgoingMessage) -> usize {
    message.descriptors().clamp(1, 2)
}

/// Turns a completion into an event; closes and stale user data give none.
pub(super) fn restore(
    ring: &mut Ring,
    token: Token,
    result: i32,
    flags: u32,
    armed: bool,
) -> Option<Event> {
    let key = token.key();
    let outcome = u32::try_from(result).map_err(|_| Errno::from_raw(-result));
    Some(match token.operation()? {
        Operation::Accept => {
            Event::Accepted { key, outcome: outcome.map(|_| adopt(result)), armed }
        }
        Operation::Receive => {
            let outcome = received(ring, outcome, flags);
            Event::Received { key, outcome, armed }
        }
        Operation::Send => {
            let (key, buffer) = ring.sends.try_remove(key.index as usize)?;
            Event::Sent { key, buffer, outcome: outcome.map(|sent| sent as usize) }
        }
        Operation::SendMessage => {
            let place = key.index as usize;
            let (key, mut message) = ring.messages_out.try_remove(place)?;
            match outcome {
                Ok(_) => {
                    ring.steps = ring.steps.saturating_sub(1);
                    message.forget_descriptors();
                }
                // The cancelled closes report, which is one completion more than for a sent message
                // and ends a wait.
                Err(_) => ring.steps = ring.steps.saturating_sub(steps_of(&message)),
            }
            Event::MessageSent { key, message, outcome: outcome.map(drop) }
        }
        Operation::ReceiveMessage => {
            let outcome = message_received(ring, outcome, flags);
            Event::MessageReceived { key, outcome, armed }
        }
        Operation::Poll => Event::Ready { key, outcome: outcome.map(drop) },
        Operation::Cancel => Event::Cancelled { key },
        Operation::Alarm => {
            ring.alarm_ns = None;
            return None;
        }
        Operation::LastClose => {
            ring.steps = ring.steps.saturating_sub((result != -libc::ECANCELED).into());
            return None;
        }
        // Only failures report: the descriptor or alarm no longer existed, or there was no room for
        // a remark.
        Operation::Quiet | Operation::MoveAlarm => return None,
    })
}

fn received(ring: &mut Ring, outcome: Outcome<u32>, flags: u32) -> Outcome<Option<Chunk>> {
    let buffer = cqueue::buffer_select(flags)
        .and_then(|number| ring.data.as_mut().map(|group| group.take(number)));
    match (outcome, buffer) {
        (Ok(length @ 1..), Some(buffer)) => Ok(Some(Chunk { buffer, length })),
        (outcome, Some(buffer)) => {
            if let Some(group) = &mut ring.data {
                group.recycle(buffer);
            }
            outcome.map(|_| None)
        }
        (outcome, None) => outcome.map(|_| None),
    }
}

fn message_received(
    ring: &mut Ring,
    outcome: Outcome<u32>,
    flags: u32,
) -> Outcome<Option<SealedMessage>> {
    let number = cqueue::buffer_select(flags);
    let (Some(group), Some(number)) = (ring.messages_in.as_mut(), number) else {
        return outcome.map(|_| None);
    };
    let buffer = group.take(number);
    match outcome {
        Ok(length) if !is_end_of_messages(group.bytes(&buffer, length as usize)) => {
            Ok(Some(SealedMessage { buffer, length }))
        }
        outcome => {
            group.hold_back(buffer);
            outcome.map(|_| None)
        }
    }
}

/// A closed peer is reported by a header without payload and control data. Its four words are the
/// lengths of name, control data and payload, and the flags (`struct io_uring_recvmsg_out`).
fn is_end_of_messages(buffer: &[u8]) -> bool {
    buffer.len() < 16 || buffer[4..12].iter().all(|byte| *byte == 0)
}

/// A key that is an index into one of the ring's tables.
fn place_key(place: usize) -> Key {
    let index = u32::try_from(place).expect("operations under way are bounded far below 2^32");
    Key { index, generation: 0 }
}

fn adopt(raw: i32) -> OwnedFd {
    // SAFETY: the accept has just installed this descriptor for us, and its completion is turned
    // into an event once.
    unsafe { OwnedFd::from_raw_fd(raw) }
}
