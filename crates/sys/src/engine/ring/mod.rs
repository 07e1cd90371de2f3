//! An io_uring that owns the memory the kernel is using: buffers and messages are lent to it and
//! come back with the completion, so callers cannot free them too early.
//!
//! A ring belongs to one thread (SINGLE_ISSUER, DEFER_TASKRUN; Linux 6.1). Completions are
//! collected first and handled afterwards, so handlers never re-enter the ring.

mod accept;
mod alarm;
mod buffers;
mod cancel;
mod close;
mod completion;
mod operation;
mod poll;
mod receive;
mod receive_message;
mod restriction;
mod send;
mod send_message;
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
use crate::engine::{Chunk, EngineEvent, Key, OutgoingMessage};
use crate::error::{Error, Result, errno_of};
use crate::probe::{refusal_error, without_hurry};
use buffers::{BufferGroup, GroupShape};
use operation::{Operation, Token};
pub use restriction::restrict_operations;
use restriction::{restrict, restricts};
pub use shape::{RingShape, limit_locked_bytes};
use shape::{group_bytes, locked_bytes_max};

/// Receive buffers for connections, one chunk each.
const DATA_GROUP: GroupShape =
    GroupShape { group: 1, count: 512, buffer_bytes: CHUNK_BYTES as u32 };
/// The same where locked memory is scarce: one page of buffer entries.
const SMALL_DATA_GROUP: GroupShape = GroupShape { count: 256, ..DATA_GROUP };
/// Receive buffers for messages with descriptors.
const MESSAGE_GROUP: GroupShape = GroupShape { group: 2, count: 64, buffer_bytes: 1024 };

/// Timeout of each wait for the last operations of a dropped ring.
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
    /// Entries for which the queue was full, grouped into chains that must not be split.
    deferred: VecDeque<Box<[squeue::Entry]>>,
    /// Outstanding completions until all messages are sent and their descriptors closed.
    steps: usize,
    /// Completions that arrived outside of `wait` and `turn`.
    early: Vec<EngineEvent>,
    /// Kept to reuse its allocation.
    chain: Vec<squeue::Entry>,
    in_kernel: u64,
    /// Time of the armed alarm.
    alarm_ns: Option<u64>,
    /// Memory that the kernel reads when it takes an alarm's entry.
    alarm_time: Box<Timespec>,
    overflows: u64,
}

/// A wrapper because `IoUring` does not implement `Debug`.
struct Uring(IoUring);

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IoUring").finish_non_exhaustive()
    }
}

impl Ring {
    /// Creates a ring for the calling thread, with smaller queues if the limit of locked memory
    /// requires it.
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

    /// Enables receiving bytes into the ring's buffers.
    ///
    /// # Errors
    /// Memory is exhausted.
    pub fn with_data_buffers(mut self) -> Result<Self> {
        let fits = group_bytes(DATA_GROUP.count) <= locked_bytes_max() / 8;
        let shape = if fits { DATA_GROUP } else { SMALL_DATA_GROUP };
        let mut group = BufferGroup::register(&self.uring.0, shape)?;
        group.offer_up_to(shape.count);
        self.data = Some(group);
        Ok(self)
    }

    /// Enables receiving messages with descriptors. None is received before
    /// [`Ring::offer_messages`] allows it.
    ///
    /// # Errors
    /// Memory is exhausted.
    pub fn with_message_buffers(mut self) -> Result<Self> {
        self.messages_in = Some(BufferGroup::register(&self.uring.0, MESSAGE_GROUP)?);
        Ok(self)
    }

    /// Creates a descriptor that becomes readable on completions, for watching the ring in an epoll
    /// set. The ring's own descriptor does not work, because deferred task work does not wake its
    /// pollers.
    ///
    /// # Errors
    /// Descriptors are exhausted.
    pub fn notifier(&self) -> Result<Waker> {
        let failed = |errno| Error::system("create a notifier for the io_uring", errno);
        let notifier = Waker::new()?;
        let registered = self.uring.0.submitter().register_eventfd(notifier.as_fd().as_raw_fd());
        registered.map_err(|error| failed(errno_of(&error)))?;
        Ok(notifier)
    }

    /// Locked memory of a ring of this shape with both kinds of buffers.
    #[must_use]
    pub fn locked_bytes(shape: RingShape) -> u64 {
        shape.locked_bytes() + group_bytes(DATA_GROUP.count) + group_bytes(MESSAGE_GROUP.count)
    }

    /// Number of times that the completion queue overflowed.
    #[must_use]
    pub fn overflows(&self) -> u64 {
        self.overflows
    }

    /// Submits all entries, waits until something completes or CLOCK_MONOTONIC reaches
    /// `deadline_ns`, and appends all completions to `events`. It may return early without one.
    ///
    /// The deadline is a separate operation that outlives the wait: under load deadlines only move
    /// later, so no timer is set or cleared.
    ///
    /// # Errors
    /// The ring is unusable, which only a kernel defect causes.
    pub fn wait(&mut self, events: &mut Vec<EngineEvent>, deadline_ns: Option<u64>) -> Result<()> {
        if let Some(deadline_ns) = deadline_ns {
            self.set_alarm(deadline_ns);
        }
        self.enter(events, 1)
    }

    /// Submits all entries and appends all completions to `events`, without waiting.
    ///
    /// # Errors
    /// As [`Ring::wait`].
    pub fn turn(&mut self, events: &mut Vec<EngineEvent>) -> Result<()> {
        self.enter(events, 0)
    }

    /// Enters the kernel until all messages are either sent with their descriptors closed or
    /// refused, and `others` other operations have completed. The kernel advances chains only when
    /// it looks for completions, so without waiting it would leave most closes to later calls; and
    /// a connection cannot end while a copy is open here.
    fn enter(&mut self, events: &mut Vec<EngineEvent>, others: usize) -> Result<()> {
        let mut others = if self.early.is_empty() { others } else { 0 };
        events.append(&mut self.early);
        loop {
            self.flush_deferred();
            // Entries that were not submitted cannot complete.
            let steps = if self.deferred.is_empty() { self.steps } else { 0 };
            let entered = self.uring.0.submit_and_wait(steps + others);
            self.entered(events, entered)?;
            others = 0;
            if self.steps == 0 || !self.deferred.is_empty() {
                return Ok(());
            }
        }
    }

    fn entered(&mut self, events: &mut Vec<EngineEvent>, entered: io::Result<usize>) -> Result<()> {
        self.note_overflow();
        match entered.map_err(|error| errno_of(&error)) {
            // EINTR: a signal. EBUSY: completions must be collected before more can be submitted.
            // EAGAIN: temporarily out of memory.
            Ok(_) | Err(Errno::EINTR | Errno::EBUSY | Errno::EAGAIN) => {}
            Err(errno) => return Err(Error::system("enter the io_uring", errno)),
        }
        self.collect(events);
        Ok(())
    }

    /// Submits all entries without waiting. On return, its messages are sent and their descriptors
    /// closed.
    pub fn submit(&mut self) {
        self.flush_deferred();
        if self.steps > 0 {
            let mut early = std::mem::take(&mut self.early);
            let _ = self.enter(&mut early, 0);
            self.early = early;
            return;
        }
        // On failure the entries stay queued, and the next wait reports the problem.
        let _ = self.uring.0.submit();
    }

    /// The bytes of a chunk.
    #[must_use]
    pub fn bytes(&self, chunk: &Chunk) -> &[u8] {
        self.data.as_ref().map_or(&[], |group| group.bytes(&chunk.buffer, chunk.length as usize))
    }

    /// Returns a chunk's buffer to the kernel.
    pub fn recycle(&mut self, chunk: Chunk) {
        if let Some(group) = &mut self.data {
            group.recycle(chunk.buffer);
        }
    }

    /// Allows messages to be received until `target` of them are unopened.
    pub fn offer_messages(&mut self, target: u16) {
        if let Some(group) = &mut self.messages_in {
            group.offer_up_to(target);
        }
    }

    /// Number of messages that the kernel may receive now.
    #[must_use]
    pub fn messages_offered(&self) -> u16 {
        self.messages_in.as_ref().map_or(0, BufferGroup::offered)
    }

    fn note_overflow(&mut self) {
        if self.uring.0.submission().cq_overflow() {
            self.overflows += 1;
        }
    }

    /// Moves deferred entries to the submission queue, as far as it has room.
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

    fn collect(&mut self, events: &mut Vec<EngineEvent>) {
        loop {
            let before = events.len();
            // One at a time, because turning an entry into an event needs the whole ring.
            while let Some(entry) = self.next_entry() {
                if let Some(event) = self.restore(&entry) {
                    events.push(event);
                }
            }
            // Overflowed completions reach the queue only on the next entry into the kernel.
            let overflowed = self.uring.0.submission().cq_overflow();
            if !overflowed || events.len() == before || self.uring.0.submit().is_err() {
                return;
            }
        }
    }

    fn next_entry(&mut self) -> Option<cqueue::Entry> {
        self.uring.0.completion().next()
    }

    fn restore(&mut self, entry: &cqueue::Entry) -> Option<EngineEvent> {
        let token = Token(entry.user_data());
        let flags = entry.flags();
        let armed = cqueue::more(flags);
        if !armed && token.operation().is_some_and(Operation::is_awaited) {
            self.in_kernel = self.in_kernel.saturating_sub(1);
        }
        completion::restore(self, token, entry.result(), flags, armed)
    }
}

impl Drop for Ring {
    /// Ends every operation before its memory is freed. The kernel tears rings down in the
    /// background, and an armed accept would keep the port busy until then.
    fn drop(&mut self) {
        self.deferred.clear();
        // Deferred entries will not complete, and the others are awaited as a whole.
        self.steps = 0;
        // The alarm may have been deferred, and without one the waits below might not end.
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
        // Without a completion it is unknown whether a message's descriptors are closed.
        if self.in_kernel > 0 && (!nothing_left || !self.messages_out.is_empty()) {
            // Memory that the kernel may still write to is leaked rather than freed.
            std::mem::forget(std::mem::take(&mut self.sends));
            std::mem::forget(std::mem::take(&mut self.messages_out));
            std::mem::forget(self.data.take());
            std::mem::forget(self.messages_in.take());
        }
    }
}

/// Tries smaller queues when memory is short. A ring just dropped stays counted for a moment, so
/// the smallest size is retried for a while.
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

/// Tries the best flags first, and drops the optional one on older kernels.
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
        if !restricts() {
            return builder.build(shape.submissions);
        }
        let uring = builder.setup_r_disabled().build(shape.submissions)?;
        restrict(&uring)?;
        Ok(uring)
    };
    attempt(true).or_else(|error| match errno_of(&error) {
        Errno::EINVAL => attempt(false),
        _ => Err(error),
    })
}
