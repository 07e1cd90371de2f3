//! A queue that one thread fills and others wait on: blocking, as a future, or by a descriptor.
//!
//! Owns the bounds, of the whole and of each sender's share: a full mailbox still accepts items,
//! since none may be lost, but reports that it is full, so that its writer stops reading more.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, TryRecvError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::task::{self, Context, Poll};
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::sys::waker::Waker;

/// A mailbox with this many items is full, until it is half empty.
pub(crate) const ITEMS_MAX: usize = 16 * 1024;
/// It is also full with this many bytes.
pub(crate) const BYTES_MAX: usize = 64 * 1024 * 1024;

/// A sender's share is full from this amount on, until it is half empty.
pub(crate) const SHARE_MAX: Amount =
    Amount { items: 4096, bytes: 4 * 1024 * 1024, descriptors: 64 };

/// An item of a mailbox.
pub(crate) trait Item {
    /// Bytes of memory that it holds, beyond the size of every item.
    fn bytes(&self) -> usize;

    /// Descriptors that it holds.
    fn descriptors(&self) -> usize {
        0
    }

    /// The sender, if it can send any number of items.
    fn sender(&self) -> Option<u32> {
        None
    }
}

/// How much there is of something.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Amount {
    pub(crate) items: usize,
    pub(crate) bytes: usize,
    pub(crate) descriptors: usize,
}

impl Amount {
    fn of(item: &impl Item) -> Self {
        Self { items: 1, bytes: item.bytes(), descriptors: item.descriptors() }
    }

    fn add(&mut self, other: Self) {
        self.items += other.items;
        self.bytes += other.bytes;
        self.descriptors += other.descriptors;
    }

    fn subtract(&mut self, other: Self) {
        self.items -= other.items;
        self.bytes -= other.bytes;
        self.descriptors -= other.descriptors;
    }

    fn reaches(&self, most: Self) -> bool {
        let Self { items, bytes, descriptors } = *self;
        items >= most.items || bytes >= most.bytes || descriptors >= most.descriptors
    }

    fn is_half_of(&self, most: Self) -> bool {
        let Self { items, bytes, descriptors } = *self;
        let few = items <= most.items / 2 && descriptors <= most.descriptors / 2;
        few && bytes <= most.bytes / 2
    }
}

/// The share of one sender.
#[derive(Debug, Default)]
struct SenderShare {
    amount: Amount,
    full: bool,
}

/// The queue.
#[derive(Debug)]
pub(crate) struct Mailbox<T> {
    state: Mutex<State<T>>,
    arrived: Condvar,
    /// Readable while there is an item, or the end.
    ready: Waker,
    /// Woken when a full mailbox has room again.
    room: Arc<Waker>,
}

#[derive(Debug)]
struct State<T> {
    items: VecDeque<T>,
    bytes: usize,
    full: bool,
    shares: BTreeMap<u32, SenderShare>,
    closed: bool,
    wakers: Vec<task::Waker>,
}

/// The result of taking from a mailbox.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found<T> {
    /// The oldest item.
    Item(T),
    /// Empty for now.
    Nothing,
    /// Empty, and no more will arrive.
    End,
}

impl<T> Found<T> {
    /// As an iterator returns it.
    pub(crate) fn item(self) -> Option<T> {
        self.or_empty().ok()
    }

    /// As `Receiver::try_recv` of `std` returns it.
    pub(crate) fn or_empty(self) -> std::result::Result<T, TryRecvError> {
        match self {
            Self::Item(item) => Ok(item),
            Self::Nothing => Err(TryRecvError::Empty),
            Self::End => Err(TryRecvError::Disconnected),
        }
    }

    /// As `Receiver::recv_timeout` of `std` returns it.
    pub(crate) fn or_timeout(self) -> std::result::Result<T, RecvTimeoutError> {
        self.or_empty().map_err(|error| match error {
            TryRecvError::Empty => RecvTimeoutError::Timeout,
            TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
        })
    }
}

/// Waiting tasks. Waking them runs the program's code, so it happens without a lock.
#[derive(Debug, Default)]
#[must_use = "a task waits"]
pub(crate) struct Wakers(Vec<task::Waker>);

impl Wakers {
    pub(crate) fn wake(self) {
        self.0.into_iter().for_each(task::Waker::wake);
    }

    pub(crate) fn add(&mut self, mut others: Self) {
        self.0.append(&mut others.0);
    }
}

/// Wakes an observer when the thread that holds it ends, even by a panic.
#[derive(Debug)]
pub(crate) struct EndWaker {
    ended: Ended,
    waker: Arc<Waker>,
}

/// Whether an [`EndWaker`] has woken its observer: the thread has ended, or is ending.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ended(Arc<AtomicBool>);

impl EndWaker {
    pub(crate) fn new(waker: Arc<Waker>) -> (Self, Ended) {
        let ended = Ended::default();
        (Self { ended: ended.clone(), waker }, ended)
    }
}

impl Ended {
    /// Acquire: seeing the end implies seeing everything before it.
    pub(crate) fn is_so(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl Drop for EndWaker {
    fn drop(&mut self) {
        self.ended.0.store(true, Ordering::Release);
        self.waker.wake();
    }
}

impl<T: Item> Mailbox<T> {
    /// An empty mailbox, which wakes `room` when it is no longer full.
    ///
    /// # Errors
    /// Too few descriptors.
    pub(crate) fn new(room: Arc<Waker>) -> Result<Self> {
        let ready = Waker::new()?;
        let state = State {
            items: VecDeque::new(),
            bytes: 0,
            full: false,
            shares: BTreeMap::new(),
            closed: false,
            wakers: Vec::new(),
        };
        Ok(Self { state: Mutex::new(state), arrived: Condvar::new(), ready, room })
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().expect("nothing panics while it holds a mailbox")
    }

    fn wakers(&self, mut state: MutexGuard<'_, State<T>>) -> Wakers {
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        self.arrived.notify_all();
        Wakers(wakers)
    }

    /// Appends an item. After the end it is dropped.
    pub(crate) fn push(&self, item: T) -> Wakers {
        let mut state = self.state();
        if state.closed {
            return Wakers::default();
        }
        state.bytes += item.bytes();
        if let Some(sender) = item.sender() {
            let share = state.shares.entry(sender).or_default();
            share.amount.add(Amount::of(&item));
            share.full |= share.amount.reaches(SHARE_MAX);
        }
        state.items.push_back(item);
        state.full |= state.items.len() >= ITEMS_MAX || state.bytes >= BYTES_MAX;
        if state.items.len() == 1 {
            self.ready.wake();
        }
        self.wakers(state)
    }

    /// No more items will arrive. The present ones can still be taken.
    pub(crate) fn close(&self) -> Wakers {
        let mut state = self.state();
        state.closed = true;
        self.ready.wake();
        self.wakers(state)
    }

    /// Whether it is so full that its writer should stop.
    pub(crate) fn is_full(&self) -> bool {
        self.state().full
    }

    /// Whether it is so full of this sender's items, or in total, that its writer should stop
    /// reading this sender.
    pub(crate) fn is_full_of(&self, sender: u32) -> bool {
        let state = self.state();
        state.full || state.shares.get(&sender).is_some_and(|share| share.full)
    }

    fn take(&self, state: &mut State<T>) -> Found<T> {
        let Some(item) = state.items.pop_front() else {
            return if state.closed { Found::End } else { Found::Nothing };
        };
        state.bytes -= item.bytes();
        if let Some(sender) = item.sender() {
            self.shrink_share(state, sender, Amount::of(&item));
        }
        if state.items.is_empty() && !state.closed {
            self.ready.clear();
        }
        if state.full && state.items.len() <= ITEMS_MAX / 2 && state.bytes <= BYTES_MAX / 2 {
            state.full = false;
            self.room.wake();
        }
        Found::Item(item)
    }

    fn shrink_share(&self, state: &mut State<T>, sender: u32, by: Amount) {
        let Some(share) = state.shares.get_mut(&sender) else { return };
        share.amount.subtract(by);
        if share.full && share.amount.is_half_of(SHARE_MAX) {
            share.full = false;
            self.room.wake();
        }
        if share.amount.items == 0 {
            state.shares.remove(&sender);
        }
    }

    /// Takes the oldest item if there is one.
    pub(crate) fn try_take(&self) -> Found<T> {
        self.take(&mut self.state())
    }

    /// Waits for an item, until `deadline` if there is one.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> Found<T> {
        let mut state = self.state();
        loop {
            match self.take(&mut state) {
                Found::Nothing => {}
                found => return found,
            }
            state = match deadline {
                None => self.arrived.wait(state).expect("nothing panics while it holds a mailbox"),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left == Duration::ZERO {
                        return Found::Nothing;
                    }
                    let waited = self.arrived.wait_timeout(state, left);
                    waited.expect("nothing panics while it holds a mailbox").0
                }
            };
        }
    }

    /// Takes the oldest item, or registers the task to be woken when there is one.
    pub(crate) fn poll_take(&self, context: &mut Context<'_>) -> Poll<Option<T>> {
        let mut state = self.state();
        match self.take(&mut state) {
            Found::Item(item) => Poll::Ready(Some(item)),
            Found::End => Poll::Ready(None),
            Found::Nothing => {
                if !state.wakers.iter().any(|waker| waker.will_wake(context.waker())) {
                    state.wakers.push(context.waker().clone());
                }
                Poll::Pending
            }
        }
    }
}

impl<T> AsFd for Mailbox<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    impl Item for usize {
        fn bytes(&self) -> usize {
            *self
        }
    }

    fn is_readable(descriptor: &impl AsFd) -> bool {
        let mut one = [PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)];
        poll(&mut one, PollTimeout::ZERO).expect("a descriptor can be polled") > 0
    }

    #[test]
    fn items_come_in_order_and_then_the_end() {
        let mailbox = Mailbox::new(Arc::new(Waker::new().expect("a waker"))).expect("a mailbox");
        assert_eq!((mailbox.try_take(), is_readable(&mailbox)), (Found::Nothing, false));
        mailbox.push(1).wake();
        mailbox.push(2).wake();
        assert!(is_readable(&mailbox));
        assert_eq!(mailbox.try_take(), Found::Item(1));
        mailbox.close().wake();
        mailbox.push(3).wake();
        assert_eq!(mailbox.wait(None), Found::Item(2));
        assert_eq!((mailbox.wait(None), is_readable(&mailbox)), (Found::End, true));
    }

    #[test]
    fn a_full_mailbox_says_so_and_rings_when_it_has_room() {
        let room = Arc::new(Waker::new().expect("a waker"));
        let mailbox = Mailbox::new(Arc::clone(&room)).expect("a mailbox");
        for _ in 0..4 {
            assert!(!mailbox.is_full());
            mailbox.push(BYTES_MAX / 4).wake();
        }
        assert!(mailbox.is_full() && !is_readable(&*room));
        mailbox.try_take();
        assert!(mailbox.is_full(), "it is not half empty yet");
        mailbox.try_take();
        assert!(!mailbox.is_full() && is_readable(&*room));
    }

    /// From a sender without a limit.
    struct Sent(u32);

    impl Item for Sent {
        fn bytes(&self) -> usize {
            1
        }

        fn sender(&self) -> Option<u32> {
            Some(self.0)
        }
    }

    #[test]
    fn a_sender_that_fills_its_share_leaves_the_others_theirs() {
        let room = Arc::new(Waker::new().expect("a waker"));
        let mailbox = Mailbox::new(Arc::clone(&room)).expect("a mailbox");
        for _ in 0..SHARE_MAX.items {
            assert!(!mailbox.is_full_of(1));
            mailbox.push(Sent(1)).wake();
        }
        mailbox.push(Sent(2)).wake();
        assert!(mailbox.is_full_of(1) && !mailbox.is_full_of(2) && !mailbox.is_full());
        for _ in 0..SHARE_MAX.items / 2 - 1 {
            mailbox.try_take();
        }
        assert!(mailbox.is_full_of(1) && !is_readable(&*room), "it is not half empty yet");
        mailbox.try_take();
        assert!(!mailbox.is_full_of(1) && is_readable(&*room));
    }

    #[test]
    fn the_end_of_a_thread_is_heard_whatever_ends_it() {
        let waker = Arc::new(Waker::new().expect("a waker"));
        let (end_bell, ended) = EndWaker::new(Arc::clone(&waker));
        assert!(!ended.is_so() && !is_readable(&*waker));
        std::thread::scope(|scope| {
            let panics = scope.spawn(move || {
                let _end_bell = end_bell;
                std::panic::resume_unwind(Box::new("as a defect would"));
            });
            let mut one = [PollFd::new(waker.as_fd(), PollFlags::POLLIN)];
            poll(&mut one, PollTimeout::NONE).expect("a descriptor can be polled");
            assert!(ended.is_so());
            assert!(panics.join().is_err());
        });
    }

    #[test]
    fn waiting_threads_are_woken() {
        let mailbox = Mailbox::new(Arc::new(Waker::new().expect("a waker"))).expect("a mailbox");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| mailbox.wait(None));
            mailbox.push(7).wake();
            assert_eq!(waiting.join().expect("it does not panic"), Found::Item(7));
        });
        let past = Instant::now();
        assert_eq!(mailbox.wait(Some(past)), Found::Nothing);
    }
}
