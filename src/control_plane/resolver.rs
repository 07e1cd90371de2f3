//! What the names in addresses mean, asked by threads that may wait for it.
//!
//! Owns who asks, how long, and how many at once. A name server that does not answer delays the
//! worker that has asked for a name, and no one else: every worker has its own share of the
//! threads, and a lookup that takes too long fails.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use nix::errno::Errno;

use super::ControlPlane;
use super::bind_retry::{BindRetry, ListenRequest};
use crate::address::ListenAddress;
use crate::error::{Error, Result, errno_of};
use crate::id::WorkerId;
use crate::sys::clock::monotonic_ns;
use crate::sys::listener::resolve;
use crate::sys::waker::Waker;

/// How long a lookup may take.
const LOOKUP_NS: u64 = 5_000_000_000;
/// For how long an answer is good: the requests that wait for it, and ask again for a busy port.
const GOOD_NS: u64 = 1_000_000_000;
/// Lookups at once, and those of one worker.
const THREADS_MAX: usize = 8;
const THREADS_PER_WORKER: usize = 2;
/// Lookups that wait for a thread, of one worker; further ones fail.
const WAITING_PER_WORKER: usize = 16;
/// Answers kept.
const NAMES_MAX: usize = 64;

/// The lookups.
#[derive(Debug)]
pub(crate) struct Resolver {
    waiting: Vec<Lookup>,
    /// Whose threads run, whether anybody still waits for them or not.
    running: Vec<(u64, Option<WorkerId>)>,
    next_ticket: u64,
    answers: Receiver<Answer>,
    answers_in: Sender<Answer>,
    waker: Arc<Waker>,
    /// What names meant a moment ago.
    names: HashMap<ListenAddress, (Vec<SocketAddr>, u64)>,
}

/// A request that waits for the meaning of its name.
#[derive(Debug)]
struct Lookup {
    ticket: u64,
    owner: Option<WorkerId>,
    started: bool,
    until_ns: u64,
    request: ListenRequest,
}

#[derive(Debug)]
struct Answer {
    ticket: u64,
    found: Result<Vec<SocketAddr>>,
}

impl Resolver {
    pub(crate) fn new() -> Result<Self> {
        let (answers_in, answers) = channel();
        Ok(Self {
            waiting: Vec::new(),
            running: Vec::new(),
            next_ticket: 0,
            answers,
            answers_in,
            waker: Arc::new(Waker::new()?),
            names: HashMap::new(),
        })
    }

    /// What a name means, if it has been found out a moment ago.
    pub(crate) fn known(&self, address: &ListenAddress) -> Option<&[SocketAddr]> {
        let (found, until_ns) = self.names.get(address)?;
        (*until_ns > monotonic_ns()).then_some(found)
    }

    fn learn(&mut self, address: ListenAddress, found: Vec<SocketAddr>) {
        let now_ns = monotonic_ns();
        self.names.retain(|_, (_, until_ns)| *until_ns > now_ns);
        if self.names.len() >= NAMES_MAX {
            self.names.clear();
        }
        self.names.insert(address, (found, now_ns + GOOD_NS));
    }

    /// When the next lookup has taken too long.
    pub(crate) fn next_deadline_ns(&self) -> Option<u64> {
        self.waiting.iter().map(|lookup| lookup.until_ns).min()
    }

    /// Takes a request that waits for a name. Gives it back if its worker has too many already.
    fn add(&mut self, request: ListenRequest) -> std::result::Result<(), ListenRequest> {
        let owner = request.owner();
        let own = self.waiting.iter().filter(|lookup| lookup.owner == owner).count();
        if own >= WAITING_PER_WORKER {
            return Err(request);
        }
        let (ticket, until_ns) = (self.next_ticket, monotonic_ns() + LOOKUP_NS);
        self.next_ticket += 1;
        self.waiting.push(Lookup { ticket, owner, started: false, until_ns, request });
        self.start();
        Ok(())
    }

    /// Starts as many lookups as there are threads for, the oldest first.
    fn start(&mut self) {
        for place in 0..self.waiting.len() {
            let Lookup { ticket, owner, started, .. } = self.waiting[place];
            let own = self.running.iter().filter(|(_, other)| *other == owner).count();
            if started || own >= THREADS_PER_WORKER || self.running.len() >= THREADS_MAX {
                continue;
            }
            let ListenAddress::Name(host, port) = self.waiting[place].request.address() else {
                continue;
            };
            let (host, port) = (host.clone(), *port);
            let (answers, waker) = (self.answers_in.clone(), Arc::clone(&self.waker));
            let body = move || {
                let found = resolve(&host, port);
                // A control plane that has gone asks nothing any more.
                let _ = answers.send(Answer { ticket, found });
                waker.wake();
            };
            self.waiting[place].started = true;
            self.running.push((ticket, owner));
            if let Err(error) = thread::Builder::new().name("resolver".into()).spawn(body) {
                let found = Err(Error::system("start a thread for a name", errno_of(&error)));
                let _ = self.answers_in.send(Answer { ticket, found });
                self.waker.wake();
            }
        }
    }

    /// Takes out the lookups for which this is so.
    fn take(&mut self, is_so: impl Fn(&Lookup) -> bool) -> Vec<ListenRequest> {
        let (taken, left) = std::mem::take(&mut self.waiting).into_iter().partition(is_so);
        self.waiting = left;
        let taken: Vec<Lookup> = taken;
        taken.into_iter().map(|lookup| lookup.request).collect()
    }
}

impl AsFd for Resolver {
    /// Readable when there are answers.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.waker.as_fd()
    }
}

impl ListenRequest {
    pub(super) fn address(&self) -> &ListenAddress {
        &self.key.address
    }

    /// The worker that asks; none for the program.
    pub(super) fn owner(&self) -> Option<WorkerId> {
        self.origin.worker()
    }
}

impl ControlPlane {
    /// Whether a request has to wait until it is known what its name means.
    pub(super) fn has_unknown_name(&self, request: &ListenRequest) -> bool {
        let address = request.address();
        let is_name = matches!(address, ListenAddress::Name(..));
        let is_open = || self.listeners.iter().any(|entry| entry.key == request.key);
        is_name && self.resolver.known(address).is_none() && !is_open()
    }

    /// Lets a request wait until it is known what its name means.
    pub(super) fn look_up(&mut self, request: ListenRequest) {
        if let Err(request) = self.resolver.add(request) {
            self.fail_request(request, |address| unknown(address, Errno::EAGAIN));
        }
    }

    /// Answers that have come, and lookups that have taken too long.
    pub(super) fn heed_answers(&mut self) {
        self.resolver.waker.clear();
        while let Ok(Answer { ticket, found }) = self.resolver.answers.try_recv() {
            self.resolver.running.retain(|(other, _)| *other != ticket);
            let requests = self.resolver.take(|lookup| lookup.ticket == ticket);
            for request in requests {
                match &found {
                    Ok(found) => {
                        self.resolver.learn(request.address().clone(), found.clone());
                        self.bind_or_share(request, BindRetry::until_ns());
                    }
                    Err(error) => self.fail_request(request, |_| error.clone()),
                }
            }
        }
        let now_ns = monotonic_ns();
        let late = self.resolver.take(|lookup| lookup.until_ns <= now_ns);
        for request in late {
            self.fail_request(request, |address| unknown(address, Errno::ETIMEDOUT));
        }
        self.resolver.start();
    }

    /// No request waits any more: nothing is going to be opened.
    pub(super) fn fail_lookups(&mut self) {
        for request in self.resolver.take(|_| true) {
            self.fail_request(request, |address| unknown(address, Errno::ECANCELED));
        }
    }

    fn fail_request(
        &mut self,
        request: ListenRequest,
        error: impl FnOnce(&ListenAddress) -> Error,
    ) {
        let error = error(request.address());
        self.decline(request, error);
    }
}

fn unknown(address: &ListenAddress, source: Errno) -> Error {
    Error::Listen { address: address.to_string(), step: "find".into(), source }
}
