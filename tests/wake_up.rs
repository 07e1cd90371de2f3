//! The wake-up between a primary that waits for room and a worker that makes room: in every
//! interleaving that the memory model allows, the worker sees the request to wake, or the primary
//! sees the published counters. Without one of the two fences this does not hold.
//!
//! A model of `PrimaryPage::set_wake` followed by `PrimaryPage::sample`, and of
//! `WorkerPage::publish`, in `crates/protocol/src/scoreboard.rs`: the same stores and loads in the
//! same order with the same orderings. Changes there belong here too.

use loom::model::Builder;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
use loom::thread;

const NEVER: u64 = 0;
const ALWAYS: u64 = 1;

/// Which of the two fences are present.
#[derive(Clone, Copy)]
struct Fences {
    primary: bool,
    worker: bool,
}

const BOTH: Fences = Fences { primary: true, worker: true };

/// The two words of a worker's page that matter here.
struct Page {
    bell: AtomicU64,
    finished: AtomicU64,
}

impl Page {
    fn new() -> Self {
        Self { bell: AtomicU64::new(NEVER), finished: AtomicU64::new(0) }
    }

    /// `PrimaryPage::set_wake(Wake::Always)`, then what `PrimaryPage::sample` reads.
    fn ask_and_look(&self, fences: Fences) -> u64 {
        self.bell.store(ALWAYS, Ordering::Relaxed);
        if fences.primary {
            fence(Ordering::SeqCst);
        }
        self.finished.load(Ordering::Acquire)
    }

    /// `WorkerPage::publish`: whether to wake the primary.
    fn publish(&self, fences: Fences, finished: u64) -> bool {
        self.finished.store(finished, Ordering::Release);
        if fences.worker {
            fence(Ordering::SeqCst);
        }
        self.bell.load(Ordering::Relaxed) == ALWAYS
    }
}

/// Explores every execution in which each worker publishes `publications` times while the primary
/// requests a wake-up. Returns in how many the primary waits for counters that are already
/// published.
fn lost(fences: Fences, workers: usize, publications: u64) -> usize {
    let lost = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = std::sync::Arc::clone(&lost);
    Builder::new().check(move || {
        let pages: Arc<Vec<Page>> = Arc::new((0..workers).map(|_| Page::new()).collect());
        // The waker itself is an eventfd: a system call, which loses nothing.
        let rung = Arc::new(AtomicUsize::new(0));
        let threads = (0..workers).map(|place| {
            let (pages, rung) = (Arc::clone(&pages), Arc::clone(&rung));
            thread::spawn(move || {
                for finished in 1..=publications {
                    if pages[place].publish(fences, finished) {
                        rung.fetch_add(1, Ordering::SeqCst);
                    }
                }
            })
        });
        let threads: Vec<_> = threads.collect();
        let seen: u64 = pages.iter().map(|page| page.ask_and_look(fences)).sum();
        threads.into_iter().for_each(|thread| thread.join().expect("it does not panic"));
        let published = publications * workers as u64;
        if seen < published && rung.load(Ordering::SeqCst) == 0 {
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    lost.load(Ordering::Relaxed)
}

#[test]
fn no_wake_up_is_lost() {
    assert_eq!(lost(BOTH, 1, 1), 0);
    assert_eq!(lost(BOTH, 1, 3), 0);
    assert_eq!(lost(BOTH, 2, 1), 0);
}

#[test]
fn without_the_primary_s_fence_a_wake_up_is_lost() {
    assert!(lost(Fences { primary: false, ..BOTH }, 1, 1) > 0);
}

#[test]
fn without_the_worker_s_fence_a_wake_up_is_lost() {
    assert!(lost(Fences { worker: false, ..BOTH }, 1, 1) > 0);
}
