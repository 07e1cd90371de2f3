//! Addresses that somebody else still has: whoever asks for one waits a moment, and nobody else.
//!
//! Owns how long that is. A process with an armed io_uring accept leaves its port busy for some
//! milliseconds after its death, while the kernel takes the ring down; a run that follows upon
//! another one at once shall not fail for that.

use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use super::Plane;
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

/// Somebody who wants an address.
#[derive(Debug)]
pub(crate) enum Petition {
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
pub(crate) struct Busy {
    waiting: Vec<(Petition, u64)>,
    again_ns: Option<u64>,
}

impl Busy {
    /// When they ask again.
    pub(crate) fn again_ns(&self) -> Option<u64> {
        self.again_ns
    }

    fn add(&mut self, petition: Petition, until_ns: u64, now_ns: u64) {
        self.waiting.push((petition, until_ns));
        self.again_ns.get_or_insert_with(|| now_ns.saturating_add(AGAIN_NS));
    }
}

impl Plane {
    /// Answers somebody who wants an address, if need be later.
    pub(crate) fn petition(&mut self, petition: Petition) {
        self.consider(petition, monotonic_ns().saturating_add(PATIENCE_NS));
    }

    /// Those who wait ask again.
    pub(crate) fn petition_again(&mut self) {
        if self.busy.again_ns.is_some_and(|again_ns| again_ns <= monotonic_ns()) {
            let Busy { waiting, .. } = std::mem::take(&mut self.busy);
            waiting.into_iter().for_each(|(petition, until_ns)| self.consider(petition, until_ns));
        }
    }

    /// Nobody is going to get an address any more: those who wait learn so by this.
    pub(crate) fn dismiss_petitions(&mut self) {
        let Busy { waiting, .. } = std::mem::take(&mut self.busy);
        waiting.into_iter().for_each(|(petition, _)| self.consider(petition, 0));
    }

    fn consider(&mut self, petition: Petition, until_ns: u64) {
        let now_ns = monotonic_ns();
        let insists = now_ns < until_ns && self.busy.waiting.len() < WAITING_MAX;
        match petition {
            Petition::Listen { asker, key } => {
                if self.members.get(&asker.worker).is_none_or(|member| member.leaving) {
                    // It does not wait for an answer any more.
                    return;
                }
                match self.share(asker, key.clone(), insists) {
                    Err(error) if insists && is_busy(&error) => {
                        self.busy.add(Petition::Listen { asker, key }, until_ns, now_ns);
                    }
                    Err(error) => self.decline(asker, &key, &error),
                    Ok(()) => {}
                }
            }
            Petition::Hold { settings, address, answer } => {
                match self.hold(&settings, &address, insists) {
                    Err(error) if insists && is_busy(&error) => {
                        let petition = Petition::Hold { settings, address, answer };
                        self.busy.add(petition, until_ns, now_ns);
                    }
                    held => drop(answer.send(held)),
                }
            }
        }
    }
}
