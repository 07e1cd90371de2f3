//! Addresses that somebody else still has: whoever asks for one waits a moment, and nobody else.
//!
//! Owns how long that is. A process with an armed io_uring accept leaves its port busy for some
//! milliseconds after its death, while the kernel takes the ring down; a run that follows upon
//! another one at once shall not fail for that.

use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use super::ControlPlane;
use super::listeners::{Asker, Key, is_busy};
use super::lookup::Candidates;
use crate::address::ListenAddress;
use crate::cluster::ClusterSettings;
use crate::error::{Error, Result};
use crate::id::ListenerId;
use crate::sys::clock::monotonic_ns;

/// How long a busy address is asked for.
const PATIENCE_NS: u64 = 200_000_000;
/// How often.
const AGAIN_NS: u64 = 5_000_000;
/// Those who wait at once; further ones are told at once.
const WAITING_MAX: usize = 256;

/// Somebody who wants an address.
#[derive(Debug)]
pub(crate) enum ListenRequest {
    /// A worker wants to serve it.
    Listen { asker: Asker, key: Key, candidates: Option<Candidates> },
    /// The program wants to keep it open.
    Hold {
        settings: Arc<ClusterSettings>,
        address: ListenAddress,
        candidates: Option<Candidates>,
        answer: SyncSender<Result<(ListenerId, String)>>,
    },
}

impl ListenRequest {
    /// The same, with what its address stands for.
    pub(crate) fn with(self, found: Candidates) -> Self {
        let candidates = Some(found);
        match self {
            Self::Listen { asker, key, .. } => Self::Listen { asker, key, candidates },
            Self::Hold { settings, address, answer, .. } => {
                Self::Hold { settings, address, candidates, answer }
            }
        }
    }
}

/// Those who wait, longest first.
#[derive(Debug, Default)]
pub(crate) struct BindRetry {
    waiting: Vec<(ListenRequest, u64)>,
    again_ns: Option<u64>,
}

impl BindRetry {
    /// When they ask again.
    pub(crate) fn again_ns(&self) -> Option<u64> {
        self.again_ns
    }

    fn add(&mut self, listen_request: ListenRequest, until_ns: u64, now_ns: u64) {
        self.waiting.push((listen_request, until_ns));
        self.again_ns.get_or_insert_with(|| now_ns.saturating_add(AGAIN_NS));
    }
}

impl ControlPlane {
    /// Answers somebody who wants an address, if need be later.
    pub(crate) fn listen_request(&mut self, listen_request: ListenRequest) {
        if let Some(listen_request) = self.look_up(listen_request) {
            self.bind(listen_request);
        }
    }

    /// Opens what a request names, if need be later.
    pub(crate) fn bind(&mut self, listen_request: ListenRequest) {
        self.consider(listen_request, monotonic_ns().saturating_add(PATIENCE_NS));
    }

    /// Refuses a request.
    pub(crate) fn fail_listen_request(&mut self, listen_request: ListenRequest, error: Error) {
        match listen_request {
            ListenRequest::Listen { asker, key, .. } => self.decline(asker, &key, &error),
            ListenRequest::Hold { answer, .. } => drop(answer.send(Err(error))),
        }
    }

    /// Those who wait ask again.
    pub(crate) fn retry_binds(&mut self) {
        if self.bind_retry.again_ns.is_some_and(|again_ns| again_ns <= monotonic_ns()) {
            let BindRetry { waiting, .. } = std::mem::take(&mut self.bind_retry);
            waiting
                .into_iter()
                .for_each(|(listen_request, until_ns)| self.consider(listen_request, until_ns));
        }
    }

    /// Nobody is going to get an address any more: those who wait learn so by this.
    pub(crate) fn fail_listen_requests(&mut self) {
        let BindRetry { waiting, .. } = std::mem::take(&mut self.bind_retry);
        waiting.into_iter().for_each(|(listen_request, _)| self.consider(listen_request, 0));
        self.abandon_lookups();
    }

    fn consider(&mut self, listen_request: ListenRequest, until_ns: u64) {
        let now_ns = monotonic_ns();
        let insists = now_ns < until_ns && self.bind_retry.waiting.len() < WAITING_MAX;
        match listen_request {
            ListenRequest::Listen { asker, key, candidates } => {
                if self.workers.get(&asker.worker).is_none_or(|worker_entry| worker_entry.leaving) {
                    // It does not wait for an answer any more.
                    return;
                }
                match self.share(asker, key.clone(), candidates.as_ref(), insists) {
                    Err(error) if insists && is_busy(&error) => {
                        let listen_request = ListenRequest::Listen { asker, key, candidates };
                        self.bind_retry.add(listen_request, until_ns, now_ns);
                    }
                    Err(error) => self.decline(asker, &key, &error),
                    Ok(()) => {}
                }
            }
            ListenRequest::Hold { settings, address, candidates, answer } => {
                match self.hold(&settings, &address, candidates.as_ref(), insists) {
                    Err(error) if insists && is_busy(&error) => {
                        let listen_request =
                            ListenRequest::Hold { settings, address, candidates, answer };
                        self.bind_retry.add(listen_request, until_ns, now_ns);
                    }
                    held => drop(answer.send(held)),
                }
            }
        }
    }
}
