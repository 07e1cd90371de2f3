//! Addresses that somebody else still has: whoever asks for one waits a moment, and nobody else.
//!
//! Owns how long that is. A process with an armed io_uring accept leaves its port busy for some
//! milliseconds after its death, while the kernel takes the ring down; a run that follows upon
//! another one at once shall not fail for that.

use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use super::ControlPlane;
use super::listeners::{Asker, Key, is_busy};
use crate::address::ListenAddress;
use crate::cluster::ClusterSettings;
use crate::error::Result;
use crate::id::ListenerId;
use crate::sys::clock::monotonic_ns;

/// How long a busy address is asked for.
const PATIENCE_NS: u64 = 200_000_000;
/// How often.
const AGAIN_NS: u64 = 5_000_000;
/// Those who wait at once; further ones are told at once.
const WAITING_MAX: usize = 256;
/// Of these, how many may be of one worker.
const WAITING_PER_WORKER: usize = 32;

/// Somebody who wants an address.
#[derive(Debug)]
pub(crate) enum ListenRequest {
    /// A worker wants to serve it.
    Listen { asker: Asker, key: Key },
    /// The program wants to keep it open.
    Hold {
        settings: Arc<ClusterSettings>,
        address: ListenAddress,
        answer: SyncSender<Result<(ListenerId, String)>>,
    },
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

    /// Whether one more may wait. A worker that asks and asks takes nobody else's turn.
    fn has_room_for(&self, listen_request: &ListenRequest) -> bool {
        let owner = listen_request.owner();
        let own = self.waiting.iter().filter(|(one, _)| one.owner() == owner).count();
        self.waiting.len() < WAITING_MAX && (owner.is_none() || own < WAITING_PER_WORKER)
    }

    fn add(&mut self, listen_request: ListenRequest, until_ns: u64, now_ns: u64) {
        self.waiting.push((listen_request, until_ns));
        self.again_ns.get_or_insert_with(|| now_ns.saturating_add(AGAIN_NS));
    }
}

impl ControlPlane {
    /// Answers somebody who wants an address, if need be later.
    pub(crate) fn listen_request(&mut self, listen_request: ListenRequest) {
        self.consider(listen_request, monotonic_ns().saturating_add(PATIENCE_NS));
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
        self.fail_lookups();
        let BindRetry { waiting, .. } = std::mem::take(&mut self.bind_retry);
        waiting.into_iter().for_each(|(listen_request, _)| self.consider(listen_request, 0));
        self.fail_lookups();
    }

    fn consider(&mut self, listen_request: ListenRequest, until_ns: u64) {
        if self.has_unknown_name(&listen_request) {
            return self.look_up(listen_request);
        }
        let now_ns = monotonic_ns();
        let insists = now_ns < until_ns && self.bind_retry.has_room_for(&listen_request);
        match listen_request {
            ListenRequest::Listen { asker, key } => {
                if self.workers.get(&asker.worker).is_none_or(|worker_entry| worker_entry.leaving) {
                    // It does not wait for an answer any more.
                    return;
                }
                match self.share(asker, key.clone(), insists) {
                    Err(error) if insists && is_busy(&error) => {
                        self.bind_retry.add(ListenRequest::Listen { asker, key }, until_ns, now_ns);
                    }
                    Err(error) => self.decline(asker, &key, &error),
                    Ok(()) => {}
                }
            }
            ListenRequest::Hold { settings, address, answer } => {
                match self.hold(&settings, &address, insists) {
                    Err(error) if insists && is_busy(&error) => {
                        let listen_request = ListenRequest::Hold { settings, address, answer };
                        self.bind_retry.add(listen_request, until_ns, now_ns);
                    }
                    held => drop(answer.send(held)),
                }
            }
        }
    }
}
