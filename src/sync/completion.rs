//! A future event, awaited by threads and by tasks.

use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::error::Error;

/// Something under way (Node: a callback). Wait for it with [`Completion::wait`], or `await` it on
/// any runtime. Dropping it changes nothing: what is under way goes on. It always comes to an end,
/// if need be by a [`failure`](Self::failure).
#[derive(Clone, Debug, Default)]
#[must_use = "what is under way goes on; wait for it, or say that you do not"]
pub struct Completion {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    complete: bool,
    failure: Option<Error>,
    wakers: Vec<Waker>,
}

impl Completion {
    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().expect("nothing panics while it holds a completion")
    }

    /// Blocks the thread until it has happened.
    pub fn wait(&self) {
        let mut state = self.state();
        while !state.complete {
            let changed = self.shared.changed.wait(state);
            state = changed.expect("nothing panics while it holds a completion");
        }
    }

    /// Blocks the thread until it has happened, or this time is over. Tells whether it has.
    pub fn wait_timeout(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut state = self.state();
        while !state.complete {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let changed = self.shared.changed.wait_timeout(state, left);
            state = changed.expect("nothing panics while it holds a completion").0;
        }
        true
    }

    /// Whether it has happened.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.state().complete
    }

    /// What failed, if it has happened only because of that. After a failure of the cluster
    /// itself its workers have gone, and its listeners are closed, but not in order.
    #[must_use]
    pub fn failure(&self) -> Option<Error> {
        self.state().failure.clone()
    }

    pub(crate) fn complete(&self) {
        self.settle(None);
    }

    /// It has happened, by a failure if there is one. What has happened is not changed any more.
    pub(crate) fn settle(&self, failure: Option<Error>) {
        let mut state = self.state();
        if state.complete {
            return;
        }
        state.complete = true;
        state.failure = failure;
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        self.shared.changed.notify_all();
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Future for Completion {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state();
        if state.complete {
            return Poll::Ready(());
        }
        if !state.wakers.iter().any(|waker| waker.will_wake(context.waker())) {
            state.wakers.push(context.waker().clone());
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_wait_until_it_has_happened() {
        let completion = Completion::default();
        assert!(!completion.wait_timeout(Duration::ZERO));
        let other = completion.clone();
        let thread = std::thread::spawn(move || other.wait());
        completion.complete();
        thread.join().expect("it does not panic");
        assert!(completion.is_complete() && completion.wait_timeout(Duration::ZERO));
        completion.settle(Some(Error::usage("too late", "")));
        assert!(completion.failure().is_none(), "what has happened has happened");
    }

    #[test]
    fn failures_reach_every_waiter() {
        let completion = Completion::default();
        let other = completion.clone();
        completion.settle(Some(Error::usage("it broke", "")));
        other.wait();
        assert_eq!(other.failure().map(|error| error.to_string()).as_deref(), Some("it broke"));
    }

    /// A task that never runs.
    struct Idle;

    impl std::task::Wake for Idle {
        fn wake(self: Arc<Self>) {}
    }

    #[test]
    fn tasks_are_woken() {
        let mut completion = Completion::default();
        let waker = Waker::from(Arc::new(Idle));
        let mut context = Context::from_waker(&waker);
        assert!(Pin::new(&mut completion).poll(&mut context).is_pending());
        assert!(Pin::new(&mut completion).poll(&mut context).is_pending());
        assert_eq!(completion.state().wakers.len(), 1, "a task is noted once");
        completion.complete();
        assert!(Pin::new(&mut completion).poll(&mut context).is_ready());
    }
}
