//! An io_uring that owns what the kernel is using: buffers and messages are lent to it and come
//! back with the completion, so that no caller can free them too early.
//!
//! One ring belongs to one thread (SINGLE_ISSUER, DEFER_TASKRUN; Linux 6.1). Completions are
//! collected first and handled afterwards, so handlers never recurse into the ring.

mod buffers;
mod operations;
mod shape;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use crate::waker::Waker;
use io_uring::types::{CancelBuilder, Timespec};
use io_uring::{IoUring, cqueue, squeue};
use nix::errno::Errno;
use nix::libc;
use slab::Slab;

use crate::clock::monotonic_ns;
use crate::engine::CHUNK_BYTES;
use crate::engine::{Chunk, Event, Key, OutgoingMessage};
use crate::error::{Error, Result, errno_of};
use crate::probe::refusal_error;
use buffers::{BufferGroup, GroupShape};
use operations::{Operation, Token};
pub(crate) use shape::without_hurry;
pub use shape::{RingShape, limit_locked_bytes};
use shape::{group_bytes, locked_bytes_max};

/// Receive buffers for connections, each for one chunk.
const DATA_GROUP: GroupShape =
    GroupShape { group: 1, count: 512, buffer_bytes: CHUNK_BYTES as u32 };
/// The same where locked memory is scarce: one page of it.
const SMALL_DATA_GROUP: GroupShape = GroupShape { count: 256, ..DATA_GROUP };
/// Receive buffers for messages with descriptors.
const MESSAGE_GROUP: GroupShape = GroupShape { group: 2, count: 64, buffer_bytes: 1024 };

/// How long a ring that is dropped waits for its last operations, each time it looks.
const LAST_WAIT_NS: u64 = 5_000_000;

/// A ring and everything lent to it.
#[derive(Debug)]
pub struct Ring {
    // Declared first, so that it is dropped before the memory it may still write to.
    uring: Uring,
    data: Option<BufferGroup>,
    messages_in: Option<BufferGroup>,
    inbox_header: Box<libc::msghdr>,
    sends: Slab<(Key, Vec<u8>)>,
    messages_out: Slab<(Key, Box<OutgoingMessage>)>,
    /// Entries that found the queue full, in the pieces that must stay together.
    deferred: VecDeque<Box<[squeue::Entry]>>,
    /// Completions still to come until all messages have gone and their descriptors are closed.
    steps: usize,
    /// What completed while nobody wanted events.
    early: Vec<Event>,
    /// Kept for its memory.
    chain: Vec<squeue::Entry>,
    in_kernel: u64,
    /// When the armed alarm ends a wait, if one is armed.
    alarm_ns: Option<u64>,
    /// What the kernel reads when it takes the entry of an alarm.
    alarm_time: Box<Timespec>,
    overflows: u64,
}

/// The ring proper; a wrapper only because `IoUring` does not implement `Debug`.
struct Uring(IoUring);

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IoUring").finish_non_exhaustive()
    }
}

impl Ring {
    /// Creates a ring for the calling thread. Where the memory that may be locked does not suffice,
    /// its queues are smaller.
    ///
    /// # Errors
    /// io_uring is refused (seccomp, `kernel.io_uring_disabled`) or too old (before 6.1).
    pub fn new(shape: RingShape) -> Result<Self> {
        let uring = build_some(shape).map_err(|error| refusal_error(errno_of(&error)))?;
        let mut inbox_header = Box::new(crate::fdpass::empty_header());
        inbox_header.msg_controllen = crate::fdpass::CONTROL_BYTES;
        Ok(Self {
            uring: Uring(uring),
            data: None,
            messages_in: None,
            inbox_header,
            sends: Slab::new(),
            messages_out: Slab::new(),
            deferred: VecDeque::new(),
            steps: 0,
            early: Vec::new(),
            chain: Vec::new(),
            in_kernel: 0,
            alarm_ns: None,
            alarm_time: Box::default(),
            overflows: 0,
        })
    }

    /// Makes the ring able to receive bytes into its own buffers.
    ///
    /// # Errors
    /// Too little memory.
    pub fn with_data_buffers(mut self) -> Result<Self> {
        let fits = group_bytes(DATA_GROUP.count) <= locked_bytes_max() / 8;
        let shape = if fits { DATA_GROUP } else { SMALL_DATA_GROUP };
        let mut group = BufferGroup::register(&self.uring.0, shape)?;
        group.offer_up_to(shape.count);
        self.data = Some(group);
        Ok(self)
    }

    /// Makes the ring able to receive messages with descriptors. No message is received before
    /// [`Ring::offer_messages`] allows it.
    ///
    /// # Errors
    /// Too little memory.
    pub fn with_message_buffers(mut self) -> Result<Self> {
        self.messages_in = Some(BufferGroup::register(&self.uring.0, MESSAGE_GROUP)?);
        Ok(self)
    }

    /// Makes a descriptor that becomes readable when something has completed, for an epoll set
    /// that is to watch the ring among others. The ring's own descriptor does not serve: deferred
    /// task work does not wake those who poll it.
    ///
    /// # Errors
    /// Too few descriptors.
    pub fn notifier(&self) -> Result<Waker> {
        let failed = |errno| Error::system("create a notifier for the io_uring", errno);
        let notifier = Waker::new()?;
        let registered = self.uring.0.submitter().register_eventfd(notifier.as_fd().as_raw_fd());
        registered.map_err(|error| failed(errno_of(&error)))?;
        Ok(notifier)
    }

    /// What a ring of this shape counts as locked memory, with both kinds of buffers.
    #[must_use]
    pub fn locked_bytes(shape: RingShape) -> u64 {
        shape.locked_bytes() + group_bytes(DATA_GROUP.count) + group_bytes(MESSAGE_GROUP.count)
    }

    /// How often the completion queue was too small.
    #[must_use]
    pub fn overflows(&self) -> u64 {
        self.overflows
    }

    /// Hands everything prepared to the kernel, waits until something has completed or the clock
    /// (CLOCK_MONOTONIC) shows `deadline_ns`, and appends all completions to `events`. It may also
    /// end without one before its time.
    ///
    /// The deadline is an operation of its own that outlives the wait: as long as deadlines only
    /// move away, which is so while there is work, no timer is set or cleared.
    ///
    /// # Errors
    /// The ring is unusable, which nothing short of a kernel defect causes.
    pub fn wait(&mut self, events: &mut Vec<Event>, deadline_ns: Option<u64>) -> Result<()> {
        if let Some(deadline_ns) = deadline_ns {
            self.set_alarm(deadline_ns);
        }
        self.enter(events, 1)
    }

    /// Hands everything prepared to the kernel and appends all completions to `events`, without
    /// waiting for any.
    ///
    /// # Errors
    /// As [`Ring::wait`].
    pub fn turn(&mut self, events: &mut Vec<Event>) -> Result<()> {
        self.enter(events, 0)
    }

    /// Enters the kernel until all messages have gone with their descriptors closed, or have not
    /// gone, and so many other things have completed. The kernel runs a step of a chain each time
    /// that it looks for completions, so without being asked to wait for them it would leave most
    /// closes to later entries; and a connection cannot end while a copy of it is open here.
    fn enter(&mut self, events: &mut Vec<Event>, others: usize) -> Result<()> {
        let mut others = if self.early.is_empty() { others } else { 0 };
        events.append(&mut self.early);
        loop {
            self.flush_deferred();
            // What the kernel has not been given cannot complete.
            let steps = if self.deferred.is_empty() { self.steps } else { 0 };
            let entered = self.uring.0.submit_and_wait(steps + others);
            self.entered(events, entered)?;
            others = 0;
            if self.steps == 0 || !self.deferred.is_empty() {
                return Ok(());
            }
        }
    }

    fn entered(&mut self, events: &mut Vec<Event>, entered: io::Result<usize>) -> Result<()> {
        self.note_overflow();
        match entered.map_err(|error| errno_of(&error)) {
            // EINTR: a signal came. EBUSY: completions must be collected before more can be
            // submitted. EAGAIN: short of memory for a moment.
            Ok(_) | Err(Errno::EINTR | Errno::EBUSY | Errno::EAGAIN) => {}
            Err(errno) => return Err(Error::system("enter the io_uring", errno)),
        }
        self.collect(events);
        Ok(())
    }

    /// Hands everything prepared to the kernel without waiting. Messages that it sends thereby have
    /// gone when it returns, their descriptors are closed.
    pub fn submit(&mut self) {
        self.flush_deferred();
        if self.steps > 0 {
            let mut early = std::mem::take(&mut self.early);
            let _ = self.enter(&mut early, 0);
            self.early = early;
            return;
        }
        // A failure leaves the entries queued; the next wait reports what is wrong with the ring.
        let _ = self.uring.0.submit();
    }

    /// The bytes of a chunk.
    #[must_use]
    pub fn bytes(&self, chunk: &Chunk) -> &[u8] {
        self.data.as_ref().map_or(&[], |group| group.bytes(&chunk.buffer, chunk.length as usize))
    }

    /// Gives a chunk's buffer back to the kernel.
    pub fn recycle(&mut self, chunk: Chunk) {
        if let Some(group) = &mut self.data {
            group.recycle(chunk.buffer);
        }
    }

    /// Lets the kernel receive messages until `target` of them are unopened.
    pub fn offer_messages(&mut self, target: u16) {
        if let Some(group) = &mut self.messages_in {
            group.offer_up_to(target);
        }
    }

    /// How many messages the kernel may receive now.
    #[must_use]
    pub fn messages_offered(&self) -> u16 {
        self.messages_in.as_ref().map_or(0, BufferGroup::offered)
    }

    fn note_overflow(&mut self) {
        if self.uring.0.submission().cq_overflow() {
            self.overflows += 1;
        }
    }

    /// Moves entries that found the submission queue full into it, as far as the kernel makes
    /// room.
    fn flush_deferred(&mut self) {
        let mut tried = false;
        while let Some(chain) = self.deferred.front() {
            // SAFETY: as in `push_chain`, where these entries were first accepted.
            if unsafe { self.uring.0.submission().push_multiple(chain) }.is_ok() {
                self.deferred.pop_front();
                tried = false;
            } else if tried || self.uring.0.submit().is_err() {
                return;
            } else {
                tried = true;
            }
        }
    }

    fn collect(&mut self, events: &mut Vec<Event>) {
        loop {
            let before = events.len();
            // Taken one at a time because turning an entry into an event needs the whole ring.
            while let Some(entry) = self.next_entry() {
                if let Some(event) = self.restore(&entry) {
                    events.push(event);
                }
            }
            // Completions that overflowed reach the queue only by entering the kernel again.
            let overflowed = self.uring.0.submission().cq_overflow();
            if !overflowed || events.len() == before || self.uring.0.submit().is_err() {
                return;
            }
        }
    }

    fn next_entry(&mut self) -> Option<cqueue::Entry> {
        self.uring.0.completion().next()
    }

    fn restore(&mut self, entry: &cqueue::Entry) -> Option<Event> {
        let token = Token(entry.user_data());
        let flags = entry.flags();
        let armed = cqueue::more(flags);
        if !armed && token.operation().is_some_and(Operation::is_awaited) {
            self.in_kernel = self.in_kernel.saturating_sub(1);
        }
        operations::restore(self, token, entry.result(), flags, armed)
    }
}

impl Drop for Ring {
    /// Ends every operation before the memory it uses goes away. The kernel tears a ring down in
    /// the background; an armed accept would keep the port busy until then.
    fn drop(&mut self) {
        self.deferred.clear();
        // Those that were deferred will not come, and nobody waits for the others one by one.
        self.steps = 0;
        // It may have been among them, and without one the waits below might not end.
        self.alarm_ns = None;
        let _ = self.uring.0.submit();
        let everything = CancelBuilder::any();
        let timeout = Some(Timespec::from(Duration::from_millis(100)));
        let cancelled = self.uring.0.submitter().register_sync_cancel(timeout, everything);
        let mut last = Vec::new();
        for _ in 0..16 {
            let soon_ns = monotonic_ns() + LAST_WAIT_NS;
            if self.in_kernel == 0 || self.wait(&mut last, Some(soon_ns)).is_err() {
                break;
            }
        }
        let nothing_left = matches!(&cancelled, Err(error) if errno_of(error) == Errno::ENOENT);
        // Nobody knows whether the descriptors of a message without an answer are closed already.
        if self.in_kernel > 0 && (!nothing_left || !self.messages_out.is_empty()) {
            // Memory that the kernel may still write to is given up rather than freed.
            std::mem::forget(std::mem::take(&mut self.sends));
            std::mem::forget(std::mem::take(&mut self.messages_out));
            std::mem::forget(self.data.take());
            std::mem::forget(self.messages_in.take());
        }
    }
}

/// Tries smaller queues where memory is short. A ring that has just been given up counts for a
/// moment longer, so the smallest ones are tried for a while.
fn build_some(shape: RingShape) -> io::Result<IoUring> {
    let groups = group_bytes(DATA_GROUP.count) + group_bytes(MESSAGE_GROUP.count);
    let mut shape = shape.within(locked_bytes_max().saturating_sub(groups));
    loop {
        match build(shape) {
            Err(error) if errno_of(&error) == Errno::ENOMEM && shape.halved() != shape => {
                shape = shape.halved();
            }
            Err(error) if errno_of(&error) == Errno::ENOMEM => {
                return without_hurry(|| build(shape));
            }
            result => return result,
        }
    }
}

/// Tries the best flags first and goes without the optional one where the kernel is older.
fn build(shape: RingShape) -> io::Result<IoUring> {
    let attempt = |without_array: bool| {
        let mut builder = IoUring::builder();
        builder
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_clamp()
            .setup_cqsize(shape.completions);
        if without_array {
            builder.setup_no_sqarray();
        }
        builder.build(shape.submissions)
    };
    attempt(true).or_else(|error| match errno_of(&error) {
        Errno::EINVAL => attempt(false),
        _ => Err(error),
    })
}
