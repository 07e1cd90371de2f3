//! One thread's io_uring and everything the kernel may touch on its behalf.
//!
//! Owns, for every slot, the socket, the buffers and the knowledge of which operations are under
//! way; the bytes to send and the addresses to connect to. That is what makes its methods safe: a
//! buffer is shown only while no operation uses it, a socket is closed only when no operation
//! uses it, and memory is freed only after the last completion.
//! It decides nothing about connections: it carries operations out and hands back results.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};
use nix::errno::Errno;
use nix::libc;

use super::arena::Arena;
use super::setup;
use super::socket::SocketAddress;
use super::tag::{Operation, Tag, following};
use crate::error::{Error, errno_of};

pub(crate) use super::arena::BUFFER_BYTES;

/// IORING_RECVSEND_POLL_FIRST: wait for data before the first attempt, which here always fails.
const POLL_FIRST: u16 = 1;
/// How long dropping a ring waits for the kernel to end what is under way.
const DRAIN_MS_MAX: u64 = 1000;

/// The result of an operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Completion {
    pub(crate) operation: Operation,
    pub(crate) slot: u32,
    /// A count of bytes, or a negated errno.
    pub(crate) result: i32,
}

/// One slot: a socket and what the kernel is doing with it.
#[derive(Debug, Default)]
struct Slot {
    socket: Option<OwnedFd>,
    generation: u32,
    connecting: bool,
    sending: bool,
    receiving: bool,
}

impl Slot {
    fn busy(&self) -> bool {
        self.connecting || self.sending || self.receiving
    }

    fn flag(&mut self, operation: Operation) -> Option<&mut bool> {
        match operation {
            Operation::Connect => Some(&mut self.connecting),
            Operation::Send => Some(&mut self.sending),
            Operation::Receive => Some(&mut self.receiving),
            Operation::Cancel | Operation::Close => None,
        }
    }
}

/// What the kernel reads from and writes to. Leaked rather than freed if the kernel keeps it.
#[derive(Debug)]
struct Memory {
    arena: Arena,
    payload: Arc<[u8]>,
    addresses: Arc<[SocketAddress]>,
    /// Each slot's own bytes to send. Not touched while a send of the slot is under way.
    outgoing: Vec<Vec<u8>>,
}

/// A ring, to be used by the thread that made it.
pub(crate) struct Ring {
    ring: IoUring,
    flags: &'static str,
    slots: Vec<Slot>,
    /// Operations that found the submission queue full.
    backlog: VecDeque<squeue::Entry>,
    /// Operations whose completion is still to come, other than cancels and closes.
    under_way: usize,
    memory: Option<Memory>,
}

impl Ring {
    /// A ring of `slots` connections to `addresses`, whose sends are ranges of `payload` or a
    /// slot's own bytes.
    pub(crate) fn new(
        slots: usize,
        payload: Arc<[u8]>,
        addresses: Arc<[SocketAddress]>,
    ) -> Result<Self, Error> {
        let (ring, flags) = setup::open(slots)?;
        let outgoing = vec![Vec::new(); slots];
        let memory = Memory { arena: Arena::new(slots)?, payload, addresses, outgoing };
        let mut table = Vec::new();
        table.resize_with(slots, Slot::default);
        Ok(Self {
            ring,
            flags,
            slots: table,
            backlog: VecDeque::new(),
            under_way: 0,
            memory: Some(memory),
        })
    }

    /// The setup flags that the kernel granted.
    pub(crate) fn flags(&self) -> &'static str {
        self.flags
    }

    /// Gives a free slot its socket.
    pub(crate) fn adopt(&mut self, slot: u32, socket: OwnedFd) {
        let entry = &mut self.slots[slot as usize];
        assert!(entry.socket.is_none() && !entry.busy(), "a slot is given to one socket at a time");
        entry.socket = Some(socket);
        entry.generation = following(entry.generation);
    }

    /// The slot's socket, for socket options.
    pub(crate) fn socket(&self, slot: u32) -> Option<&OwnedFd> {
        self.slots[slot as usize].socket.as_ref()
    }

    /// True while a send of this slot is under way.
    pub(crate) fn sending(&self, slot: u32) -> bool {
        self.slots[slot as usize].sending
    }

    /// True while anything of this slot is under way.
    pub(crate) fn busy(&self, slot: u32) -> bool {
        self.slots[slot as usize].busy()
    }

    /// Begins to connect to the address of this number.
    pub(crate) fn connect(&mut self, slot: u32, address: usize) {
        let (fd, tag) = self.begin(slot, Operation::Connect);
        let (pointer, length) = self.memory().addresses[address].raw();
        self.push(opcode::Connect::new(fd, pointer, length).build(), tag);
    }

    /// Sends the payload's bytes `from..to`; all of them, unless the result says less.
    pub(crate) fn send(&mut self, slot: u32, from: usize, to: usize) {
        let bytes = &self.memory().payload[from..to];
        let (pointer, length) = (bytes.as_ptr(), bytes.len());
        self.push_send(slot, pointer, length);
    }

    /// The slot's own bytes to send, to be filled. No send of the slot may be under way.
    pub(crate) fn outgoing(&mut self, slot: u32) -> &mut Vec<u8> {
        assert!(!self.slots[slot as usize].sending, "the kernel may be reading there");
        let memory = self.memory.as_mut().expect("memory is taken only in drop");
        &mut memory.outgoing[slot as usize]
    }

    /// Sends the slot's own bytes from `from` on.
    pub(crate) fn send_outgoing(&mut self, slot: u32, from: usize) {
        let bytes = &self.memory().outgoing[slot as usize][from..];
        let (pointer, length) = (bytes.as_ptr(), bytes.len());
        self.push_send(slot, pointer, length);
    }

    fn push_send(&mut self, slot: u32, pointer: *const u8, length: usize) {
        let length = u32::try_from(length).expect("what is sent at once is far below 4 GiB");
        let (fd, tag) = self.begin(slot, Operation::Send);
        let send = opcode::Send::new(fd, pointer, length);
        self.push(send.flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL).build(), tag);
    }

    /// Receives into the slot's buffer, after its first `offset` bytes.
    pub(crate) fn receive(&mut self, slot: u32, offset: usize) {
        let (pointer, room) = self.memory().arena.room(slot, offset);
        assert!(room > 0, "a full buffer receives nothing");
        let (fd, tag) = self.begin(slot, Operation::Receive);
        let receive = opcode::Recv::new(fd, pointer.as_ptr(), room);
        self.push(receive.ioprio(POLL_FIRST).build(), tag);
    }

    /// The first `length` bytes of the slot's buffer.
    pub(crate) fn received(&self, slot: u32, length: usize) -> &[u8] {
        assert!(!self.slots[slot as usize].receiving, "the kernel may be writing there");
        // SAFETY: nothing is received into the slot, as asserted, and to begin receiving takes
        // `&mut self`, which excludes this reference.
        unsafe { self.memory().arena.bytes(slot, length) }
    }

    /// Moves the buffer's bytes `from..to` to its front.
    pub(crate) fn keep(&mut self, slot: u32, from: usize, to: usize) {
        assert!(!self.slots[slot as usize].receiving, "the kernel may be writing there");
        let memory = self.memory.as_mut().expect("memory is taken only in drop");
        // SAFETY: nothing is received into the slot, as asserted, and `&mut self` excludes
        // references to its bytes.
        unsafe { memory.arena.keep(slot, from, to) };
    }

    /// Asks the kernel to end what is under way on a slot; their completions still come.
    pub(crate) fn cancel(&mut self, slot: u32) {
        for operation in [Operation::Connect, Operation::Send, Operation::Receive] {
            let entry = &mut self.slots[slot as usize];
            if !entry.flag(operation).is_some_and(|under_way| *under_way) {
                continue;
            }
            let generation = entry.generation;
            let tag = |operation| Tag { operation, generation, slot };
            let cancel = opcode::AsyncCancel::new(tag(operation).pack()).build();
            self.push(cancel, tag(Operation::Cancel));
        }
    }

    /// Closes a slot's socket and frees the slot, which must not be busy.
    pub(crate) fn close(&mut self, slot: u32) {
        let entry = &mut self.slots[slot as usize];
        assert!(!entry.busy(), "a socket is closed after its last completion");
        let tag = Tag { operation: Operation::Close, generation: entry.generation, slot };
        if let Some(socket) = entry.socket.take() {
            let close = opcode::Close::new(Fd(socket.into_raw_fd())).build();
            self.push(close.flags(squeue::Flags::SKIP_SUCCESS), tag);
        }
    }

    /// Hands over what was begun, waits up to `wait` for a completion, if there is any to wait
    /// for, and appends all completions to `completions`.
    pub(crate) fn turn(
        &mut self,
        wait: Option<Duration>,
        completions: &mut Vec<Completion>,
    ) -> Result<(), Error> {
        self.flush_backlog()?;
        let waiting = wait.filter(|duration| !duration.is_zero() && self.backlog.is_empty());
        let entered = match waiting {
            Some(duration) => {
                let limit = Timespec::from(duration);
                self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&limit))
            }
            None if self.idle() => Ok(0),
            None => self.ring.submit(),
        };
        tolerate(entered)?;
        self.reap(completions);
        Ok(())
    }

    /// Nothing to hand over and no task work to run: entering the kernel would do nothing.
    fn idle(&mut self) -> bool {
        let submission = self.ring.submission();
        submission.is_empty() && !submission.taskrun() && !submission.cq_overflow()
    }

    fn reap(&mut self, completions: &mut Vec<Completion>) {
        for entry in self.ring.completion() {
            let Some(tag) = Tag::unpack(entry.user_data()) else {
                continue;
            };
            let Some(slot) = self.slots.get_mut(tag.slot as usize) else {
                continue;
            };
            let current = slot.generation == tag.generation;
            let Some(under_way) = slot.flag(tag.operation).filter(|flag| current && **flag) else {
                continue;
            };
            *under_way = false;
            self.under_way -= 1;
            completions.push(Completion {
                operation: tag.operation,
                slot: tag.slot,
                result: entry.result(),
            });
        }
    }

    /// Marks an operation as under way.
    fn begin(&mut self, slot: u32, operation: Operation) -> (Fd, Tag) {
        let entry = &mut self.slots[slot as usize];
        let fd: RawFd = entry.socket.as_ref().expect("the slot has a socket").as_raw_fd();
        let tag = Tag { operation, generation: entry.generation, slot };
        let under_way = entry.flag(operation).expect("an operation that is waited for");
        assert!(!*under_way, "one operation of a kind at a time");
        *under_way = true;
        self.under_way += 1;
        (Fd(fd), tag)
    }

    fn memory(&self) -> &Memory {
        self.memory.as_ref().expect("memory is taken only in drop")
    }

    fn push(&mut self, entry: squeue::Entry, tag: Tag) {
        let entry = entry.user_data(tag.pack());
        if self.backlog.is_empty() {
            if self.try_push(&entry) {
                return;
            }
            // A full queue is handed over at once. An error shows again at the next turn.
            let _ = self.ring.submit();
            if self.try_push(&entry) {
                return;
            }
        }
        self.backlog.push_back(entry);
    }

    fn try_push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: buffers, payload, a slot's own bytes and addresses live in `self.memory` at fixed
        // places until the last completion, and the socket in its slot until then; the flags set
        // by `begin` keep all of them from being touched.
        unsafe { self.ring.submission().push(entry) }.is_ok()
    }

    fn flush_backlog(&mut self) -> Result<(), Error> {
        while let Some(entry) = self.backlog.pop_front() {
            if self.try_push(&entry) {
                continue;
            }
            tolerate(self.ring.submit())?;
            if !self.try_push(&entry) {
                self.backlog.push_front(entry);
                break;
            }
        }
        Ok(())
    }
}

impl Drop for Ring {
    /// Ends what is under way; memory that the kernel may still use is leaked, not freed.
    fn drop(&mut self) {
        let mut rest = Vec::new();
        let _ = self.turn(None, &mut rest);
        let limit = Timespec::from(Duration::from_millis(DRAIN_MS_MAX));
        let _ = self.ring.submitter().register_sync_cancel(Some(limit), CancelBuilder::any());
        for _ in 0..DRAIN_MS_MAX / 10 {
            if self.under_way == 0 {
                return;
            }
            let _ = self.turn(Some(Duration::from_millis(10)), &mut rest);
        }
        std::mem::forget(self.memory.take());
    }
}

/// Full queues, elapsed waits and signals are normal: the next turn goes on.
fn tolerate(entered: io::Result<usize>) -> Result<(), Error> {
    match entered.map_err(|error| errno_of(&error)) {
        Ok(_) | Err(Errno::ETIME | Errno::EINTR | Errno::EBUSY | Errno::EAGAIN) => Ok(()),
        Err(errno) => Err(Error::system("io_uring_enter", errno)),
    }
}
