//! Looks whether workers wait for connections, on separate threads: `/proc` of a process that is
//! stuck in the kernel may not answer.
//!
//! Owns the number of looks at once, and how long one may take. A thread whose look takes longer is
//! abandoned, and nothing is known of its worker until it ends.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use crate::id::WorkerId;
use crate::sys::accepting::{self, Accepting};
use crate::sys::waker::Waker;

/// A look that takes longer is late.
const PATIENCE_NS: u64 = 250_000_000;
/// Most looks at once, late ones included.
const THREADS_MAX: usize = 8;

/// The looks under way.
#[derive(Debug)]
pub(crate) struct Looks {
    /// When each is late.
    under_way: BTreeMap<WorkerId, u64>,
    sender: Sender<(WorkerId, Accepting)>,
    answers: Receiver<(WorkerId, Accepting)>,
    /// Wakes the control plane.
    waker: Arc<Waker>,
}

impl Looks {
    pub(crate) fn new(waker: Arc<Waker>) -> Self {
        let (sender, answers) = channel();
        Self { under_way: BTreeMap::new(), sender, answers, waker }
    }

    /// When the present look at a worker is late, if there is one.
    pub(crate) fn late_ns(&self, id: WorkerId) -> Option<u64> {
        self.under_way.get(&id).copied()
    }

    /// The next answer.
    pub(crate) fn answer(&mut self) -> Option<(WorkerId, Accepting)> {
        let answer = self.answers.try_recv().ok()?;
        self.under_way.remove(&answer.0);
        Some(answer)
    }

    /// Begins to look whether a worker waits for connections on these sockets. Returns what counts
    /// instead, if that cannot be found out now.
    pub(crate) fn begin(
        &mut self,
        id: WorkerId,
        pid: u32,
        sockets: &[u64],
        now_ns: u64,
    ) -> Option<Accepting> {
        match self.late_ns(id) {
            Some(late_ns) if now_ns < late_ns => return None,
            Some(_) => return Some(Accepting::Unknown),
            None if self.under_way.len() < THREADS_MAX => {}
            // The others are about to end.
            None if self.under_way.values().any(|late_ns| now_ns < *late_ns) => {
                return Some(Accepting::No);
            }
            None => return Some(Accepting::Unknown),
        }
        let (sender, waker) = (self.sender.clone(), Arc::clone(&self.waker));
        let sockets = sockets.to_vec();
        let body = move || {
            let found = accepting::accepts(pid, &sockets);
            // Fails only once the control plane has ended.
            let _ = sender.send((id, found));
            waker.wake();
        };
        if thread::Builder::new().name("look".into()).spawn(body).is_err() {
            return Some(Accepting::Unknown);
        }
        self.under_way.insert(id, now_ns.saturating_add(PATIENCE_NS));
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_look_says_nothing_and_others_go_on_until_there_are_too_many() {
        let mut looks = Looks::new(Arc::new(Waker::new().expect("an eventfd")));
        let ids: Vec<WorkerId> = (1..=10).map(WorkerId::new).collect();
        let own = std::process::id();
        for id in &ids[..THREADS_MAX] {
            assert_eq!(looks.begin(*id, own, &[], 0), None);
            assert_eq!(looks.begin(*id, own, &[], PATIENCE_NS - 1), None);
            assert_eq!(looks.begin(*id, own, &[], PATIENCE_NS), Some(Accepting::Unknown));
        }
        assert_eq!(looks.begin(ids[9], own, &[], 0), Some(Accepting::No));
        assert_eq!(looks.begin(ids[9], own, &[], PATIENCE_NS), Some(Accepting::Unknown));
        for _ in 0..THREADS_MAX {
            let (id, found) = looks.answers.recv().expect("each answers");
            assert!(ids.contains(&id) && found != Accepting::Yes);
            looks.under_way.remove(&id);
        }
        assert_eq!((looks.answer(), looks.late_ns(ids[0])), (None, None));
    }
}
