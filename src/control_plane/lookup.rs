//! Looks up names in addresses, on separate threads.
//!
//! Owns the number of concurrent lookups and their time limit. The system's resolver can wait half
//! a minute for an unreachable name server; a thread stuck in it is abandoned.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;

use super::ControlPlane;
use super::bind_retry::BindRetry;
use super::listen_request::{Candidates, ListenRequest};
use crate::address::ListenAddress;
use crate::error::{Error, Result, errno_of};
use crate::sys::clock::monotonic_ns;
use crate::sys::resolve::{self, no_answer};
use crate::sys::waker::Waker;

/// Time limit of an answer, including the wait for a free thread.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most concurrent lookups, including abandoned ones.
const THREADS_MAX: usize = 8;
/// Most waiting addresses; further ones are refused at once.
const WAITING_MAX: usize = 256;

type Answer = (ListenAddress, Result<Vec<ListenAddress>>);

/// An address being looked up, and its requests.
#[derive(Debug)]
struct Lookup {
    address: ListenAddress,
    requests: Vec<ListenRequest>,
    until_ns: u64,
    started: bool,
}

/// All lookups, oldest first.
#[derive(Debug)]
pub(crate) struct Lookups {
    waiting: Vec<Lookup>,
    threads: usize,
    sender: Sender<Answer>,
    answers: Receiver<Answer>,
    /// Wakes the control plane.
    waker: Arc<Waker>,
}

impl Lookups {
    pub(crate) fn new(waker: Arc<Waker>) -> Self {
        let (sender, answers) = channel();
        Self { waiting: Vec::new(), threads: 0, sender, answers, waker }
    }

    /// The next deadline.
    pub(crate) fn deadline_ns(&self) -> Option<u64> {
        self.waiting.iter().map(|lookup| lookup.until_ns).min()
    }

    /// Looks up the address of a request, unless that is in progress.
    fn add(&mut self, request: ListenRequest) {
        let address = request.key.address.clone();
        if let Some(lookup) = self.waiting.iter_mut().find(|one| one.address == address) {
            lookup.requests.push(request);
            return;
        }
        let patience_ns = u64::try_from(PATIENCE.as_nanos()).unwrap_or(u64::MAX);
        self.waiting.push(Lookup {
            address,
            requests: vec![request],
            until_ns: monotonic_ns().saturating_add(patience_ns),
            started: false,
        });
    }

    /// Starts threads for waiting lookups, up to the limit.
    fn start(&mut self) {
        let Self { waiting, threads, sender, waker, .. } = self;
        for lookup in waiting.iter_mut().filter(|lookup| !lookup.started) {
            if *threads >= THREADS_MAX {
                return;
            }
            let (sender, waker) = (sender.clone(), Arc::clone(waker));
            let address = lookup.address.clone();
            let body = move || {
                let found = resolve::resolve(&address);
                // Fails only once the control plane has ended.
                let _ = sender.send((address, found));
                waker.wake();
            };
            lookup.started = true;
            *threads += 1;
            let thread = thread::Builder::new().name("lookup".into()).spawn(body);
            if let Err(error) = thread {
                let error = Error::system("start a thread to look a name up", errno_of(&error));
                let _ = self.sender.send((lookup.address.clone(), Err(error)));
                self.waker.wake();
                return;
            }
        }
    }

    /// The next answer with its requests; none if it came too late.
    fn answer(&mut self) -> Option<(Vec<ListenRequest>, Result<Candidates>)> {
        let (address, found) = self.answers.try_recv().ok()?;
        self.threads -= 1;
        let place = self.waiting.iter().position(|one| one.started && one.address == address);
        let requests = place.map(|place| self.waiting.remove(place).requests);
        Some((requests.unwrap_or_default(), found.map(Candidates::from)))
    }

    /// The next lookup past its deadline.
    fn overdue(&mut self, now_ns: u64) -> Option<Lookup> {
        let place = self.waiting.iter().position(|lookup| lookup.until_ns <= now_ns)?;
        Some(self.waiting.remove(place))
    }
}

impl ControlPlane {
    /// Whether a request names something to look up before it can be opened.
    pub(crate) fn needs_lookup(&self, request: &ListenRequest) -> bool {
        let is_known = request.candidates.is_some() || resolve::is_resolved(&request.key.address);
        !is_known && !self.listeners.has(&request.key)
    }

    /// Looks up a request's address.
    pub(crate) fn look_up(&mut self, request: ListenRequest) {
        if self.lookups.waiting.len() >= WAITING_MAX {
            let step = format!("look {} up beside others", request.key.address);
            return self.decline(request, Error::system(step, Errno::EAGAIN));
        }
        self.lookups.add(request);
        self.lookups.start();
    }

    /// Continues requests whose lookup is done, and refuses those past the deadline.
    pub(crate) fn on_lookups(&mut self) {
        while let Some((requests, found)) = self.lookups.answer() {
            for request in requests {
                match &found {
                    Ok(found) => {
                        let candidates = Some(Arc::clone(found));
                        let request = ListenRequest { candidates, ..request };
                        self.bind_or_share(request, BindRetry::until_ns());
                    }
                    Err(error) => self.decline(request, error.clone()),
                }
            }
        }
        let now_ns = monotonic_ns();
        while let Some(lookup) = self.lookups.overdue(now_ns) {
            let error = no_answer(&format!("look {} up", lookup.address), PATIENCE);
            for request in lookup.requests {
                self.decline(request, error.clone());
            }
        }
        self.lookups.start();
    }

    /// Abandons all lookups.
    pub(crate) fn abandon_lookups(&mut self) {
        for lookup in std::mem::take(&mut self.lookups.waiting) {
            let error = Error::system(format!("look {} up", lookup.address), Errno::ECANCELED);
            for request in lookup.requests {
                self.decline(request, error.clone());
            }
        }
    }
}
