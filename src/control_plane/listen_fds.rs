//! Workers that take their listening sockets over at birth (`sd_listen_fds(3)`) and have no
//! channel.
//!
//! Owns what they get and when they count as serving: after a while, or when they say so
//! (`sd_notify(3)`). What they do with connections nobody here knows.

use std::os::fd::{OwnedFd, RawFd};

use super::{ControlPlane, NOTIFICATIONS};
use crate::cluster::{ClusterSettings, Event};
use crate::error::{Error, Result};
use crate::id::{ListenerId, Slot, WorkerId};
use crate::settings::{Dialect, Readiness};
use crate::sys::clock::monotonic_ns;
use crate::sys::notify::{Notification, NotifySocket};

/// The first descriptor of those that are taken over (`SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;
/// What a program has to say when it serves.
const READY: &[u8] = b"READY=1";
/// Words read before others have their turn.
const WORDS_PER_TURN: usize = 64;

/// The variable with the id of the process that the sockets are for.
pub(crate) const ID_VARIABLE: &str = "LISTEN_PID";

const NOTIFY_VARIABLE: &str = "NOTIFY_SOCKET";
/// What a service manager has told this process alone.
pub(crate) const NOT_FOR_WORKERS: [&str; 6] =
    [NOTIFY_VARIABLE, "WATCHDOG_PID", "WATCHDOG_USEC", ID_VARIABLE, "LISTEN_FDS", "LISTEN_FDNAMES"];

/// What a worker takes over.
#[derive(Debug, Default)]
pub(crate) struct InheritedSockets {
    sockets: Vec<OwnedFd>,
    names: Vec<String>,
    /// Where it may say that it serves.
    notify: Option<String>,
}

impl InheritedSockets {
    /// The sockets under the numbers that they shall have.
    pub(crate) fn take_sockets(&mut self) -> Vec<(RawFd, OwnedFd)> {
        (FIRST..).zip(self.sockets.drain(..)).collect()
    }

    /// What tells the worker of them, besides [`ID_VARIABLE`].
    pub(crate) fn variables(&self) -> Vec<(&'static str, String)> {
        let sockets = [
            ("LISTEN_FDS", self.names.len().to_string()),
            ("LISTEN_FDNAMES", self.names.join(":")),
        ];
        let notify = self.notify.clone().map(|name| (NOTIFY_VARIABLE, name));
        sockets.into_iter().chain(notify).collect()
    }
}

impl ControlPlane {
    /// Everything that is held, for a worker in `slot`, which may replace the one in another.
    ///
    /// # Errors
    /// Nothing is held, or there are too few descriptors.
    pub(crate) fn inherited_sockets(
        &mut self,
        settings: &ClusterSettings,
        slot: Slot,
        predecessor: Option<Slot>,
    ) -> Result<InheritedSockets> {
        if settings.dialect != Dialect::ListenFds {
            return Ok(InheritedSockets::default());
        }
        if settings.readiness == Readiness::Notified && self.notify.is_none() {
            let notify = NotifySocket::open()?;
            self.watch(&notify, NOTIFICATIONS)?;
            self.notify = Some(notify);
        }
        let notify = self.notify.as_ref().filter(|_| settings.readiness == Readiness::Notified);
        let mut inherited_sockets = InheritedSockets {
            notify: notify.map(|one| one.name().into()),
            ..InheritedSockets::default()
        };
        let held = self.listeners.iter_mut().filter(|entry| entry.is_handed_down());
        for (place, entry) in held.enumerate() {
            // Nobody takes what waits in them, so whether one had to be opened concerns nobody.
            let (copy, _) = entry.copy_for(slot, predecessor, false)?;
            inherited_sockets.sockets.extend(copy);
            let name = settings.socket_names.get(place).cloned();
            inherited_sockets.names.push(name.unwrap_or_else(|| format!("listener-{}", place + 1)));
        }
        if inherited_sockets.sockets.is_empty() {
            return Err(Error::usage(
                "there is no listening socket that a worker could take over",
                "hold an address before the fork",
            ));
        }
        Ok(inherited_sockets)
    }

    /// A worker has been born with all that.
    pub(crate) fn hand_down(&mut self, id: WorkerId, readiness: Readiness) {
        let Some(worker_entry) = self.workers.get_mut(&id) else { return };
        for entry in self.listeners.iter_mut().filter(|entry| entry.is_handed_down()) {
            entry.users.insert(id);
            worker_entry.uses.insert(entry.id);
        }
        if let Readiness::After(time) = readiness {
            let time_ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
            worker_entry.settled_ns = Some(monotonic_ns().saturating_add(time_ns));
        }
    }

    /// When the next worker has run for long enough.
    pub(crate) fn next_settled_ns(&self) -> Option<u64> {
        self.workers.values().filter_map(|worker_entry| worker_entry.settled_ns).min()
    }

    /// Workers that have run for long enough serve.
    pub(crate) fn settle(&mut self) {
        if self.next_settled_ns().is_none() {
            return;
        }
        let now_ns = monotonic_ns();
        let settled = self.workers.values_mut().filter_map(|worker_entry| {
            let time = worker_entry.settled_ns.take_if(|settled_ns| *settled_ns <= now_ns);
            time.map(|_| worker_entry.id())
        });
        let settled: Vec<WorkerId> = settled.collect();
        settled.into_iter().for_each(|id| self.tell_serving(id));
    }

    /// Hears who says that it serves.
    pub(crate) fn heed_notifications(&mut self) {
        for _ in 0..WORDS_PER_TURN {
            let Some(notify) = &self.notify else { return };
            match notify.receive() {
                Ok(Some(word)) => self.heed_notification(&word),
                Ok(None) => return,
                Err(error) => {
                    self.notify = None;
                    return self.fail(error);
                }
            }
        }
    }

    /// Anybody can send anything here. Only what a worker itself says counts, and only once.
    fn heed_notification(&mut self, word: &Notification) {
        if !word.text.split(|byte| *byte == b'\n').any(|line| line == READY) {
            return;
        }
        let speaker = self.workers.values_mut().find(|worker_entry| {
            worker_entry.shared.pid == word.pid && worker_entry.is_mute && !worker_entry.notified
        });
        if let Some(worker_entry) = speaker {
            worker_entry.notified = true;
            let id = worker_entry.id();
            self.tell_serving(id);
        }
    }

    fn tell_serving(&mut self, id: WorkerId) {
        let Some(worker_entry) = self.workers.get(&id).filter(|one| one.ending.is_none()) else {
            return;
        };
        let worker = worker_entry.handle();
        self.tell(Event::Online { worker: worker.clone() });
        let uses: Vec<ListenerId> = worker_entry.uses.iter().copied().collect();
        for listener in uses {
            let Some(entry) = self.listeners.get_mut(listener) else { continue };
            let address = entry.listening_address();
            self.tell(Event::Listening { worker: worker.clone(), address });
        }
    }
}
