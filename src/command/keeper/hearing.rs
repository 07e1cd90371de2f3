//! What the keeper is told of its workers, and what it does about it.

use super::event::code_and_signal;
use super::restart::{Decision, budget_in_words};
use super::unready::other_dialects;
use super::{Event, KILL_SLACK_NS, Keeper, Occupant, Stage, Ward, WorkerSummary, nanoseconds};
use clusterlb::Ending;
use clusterlb::Error;
use clusterlb::WorkerId;
use clusterlb::{self, ListeningAddress, WorkerCounts, WorkerHandle};
use clusterlb::{Dialect, Policy};
use clusterlb_sys::clock::monotonic_ns;

/// So many workers of a place that end before the run has begun are enough.
const EARLY_ENDS_MAX: u32 = 3;

impl Ward {
    /// It serves what it should.
    pub(super) fn is_ready(&self) -> bool {
        self.served.len() >= self.wanted
    }
}

impl Keeper<'_> {
    pub(super) fn hear(&mut self, event: clusterlb::Event) {
        match event {
            clusterlb::Event::Fork { worker } => {
                let (id, pid, cpu) = (worker.id(), worker.pid(), worker.cpu());
                self.tell(Event::Fork { id, pid, cpu });
            }
            clusterlb::Event::Online { worker } => {
                self.online = true;
                self.tell(Event::Online { id: worker.id(), pid: worker.pid() });
            }
            clusterlb::Event::Listening { worker, address } => {
                self.note_listening(&worker, &address);
            }
            clusterlb::Event::Refused { worker, error } => {
                let text = format!("worker {}: {error}", worker.id());
                self.refusal = Some(error);
                self.tell(Event::Note { text });
            }
            clusterlb::Event::Message { worker, message } => {
                let message = message.value().unwrap_or_default();
                self.tell(Event::Message { id: worker.id(), pid: worker.pid(), message });
            }
            clusterlb::Event::Exit { worker, ending, counts } => self.bury(&worker, ending, counts),
            clusterlb::Event::Error { worker: Some(worker), error } => {
                if let Some(place) = self.place_of(&worker) {
                    self.kill(place, format!("worker {}: {error}", worker.id()));
                }
            }
            clusterlb::Event::Error { worker: None, error } => self.fail((*error).clone()),
            clusterlb::Event::Hung { worker, taken_back } => {
                if let Some(ward) = self.ward(&worker) {
                    ward.hung_since_ns = Some(monotonic_ns());
                    self.tell(Event::Hung { id: worker.id(), pid: worker.pid(), taken_back });
                }
            }
            clusterlb::Event::Recovered { worker } => {
                let hung = self.ward(&worker).and_then(|ward| ward.hung_since_ns.take());
                if hung.is_some() {
                    self.tell(Event::Recovered { id: worker.id(), pid: worker.pid() });
                }
            }
            clusterlb::Event::Disconnect { worker } => self.note_disconnect(&worker),
            // Setups, and what later versions of the library add.
            _ => {}
        }
    }

    pub(super) fn place_of(&self, worker: &WorkerHandle) -> Option<usize> {
        self.places.iter().position(
            |place| matches!(&place.occupant, Occupant::Alive(ward) if ward.worker == *worker),
        )
    }

    fn ward(&mut self, worker: &WorkerHandle) -> Option<&mut Ward> {
        let place = self.place_of(worker)?;
        match &mut self.places[place].occupant {
            Occupant::Alive(ward) => Some(ward),
            _ => None,
        }
    }

    /// A worker without a channel gets nothing more, so it has as long to end as one that was told
    /// to leave; then it is killed, and replaced.
    fn note_disconnect(&mut self, worker: &WorkerHandle) {
        let grace_ns = nanoseconds(self.settings.grace);
        let cut_ns = monotonic_ns().saturating_add(grace_ns).saturating_add(KILL_SLACK_NS);
        if let Some(ward) = self.ward(worker) {
            ward.cut_ns.get_or_insert(cut_ns);
        }
    }

    fn note_listening(&mut self, worker: &WorkerHandle, address: &ListeningAddress) {
        let Some(ward) = self.ward(worker) else { return };
        ward.served.insert(format!("{:?} {address}", address.kind));
        if self.known.insert(address.listener) {
            self.addresses.push((address.listener, address.to_string()));
        }
        match self.stage {
            Stage::Starting { .. } => {
                let mut places = self.places.iter();
                let everybody = places.all(
                    |place| matches!(&place.occupant, Occupant::Alive(ward) if ward.is_ready()),
                );
                if everybody {
                    self.announce();
                }
            }
            Stage::Serving => {
                self.tell_addresses();
                self.attend_to_successor();
                self.shed();
            }
            Stage::Draining | Stage::Killing => {}
        }
    }

    /// Everybody serves everything: from now on there are connections.
    fn announce(&mut self) {
        self.stage = Stage::Serving;
        if let Err(error) = self.cluster.open() {
            return self.fail(error);
        }
        self.tell_addresses();
    }

    fn tell_addresses(&mut self) {
        let none = self.settings.policy == Policy::None;
        let addresses = std::mem::take(&mut self.addresses);
        for (listener, address) in addresses {
            self.tell(Event::Listening {
                address,
                listener,
                policy: self.settings.policy,
                accept: none.then_some(self.settings.accept),
                engine: self.decision.kind.name(),
                engine_reason: self.decision.reason.clone(),
                feature_level: self.decision.level,
                workers: self.places.len(),
                pid: std::process::id(),
                cpu: self.plan.primary,
            });
        }
    }

    /// Ends workers that have hung for too long; they are replaced like others that end.
    pub(super) fn kill_hung(&mut self, now_ns: u64) {
        for place in 0..self.places.len() {
            if self.hang_deadline_ns(place).is_some_and(|deadline_ns| deadline_ns <= now_ns) {
                self.kill(place, "it has hung for too long".into());
            }
        }
    }

    pub(super) fn hang_deadline_ns(&self, place: usize) -> Option<u64> {
        let limit = u64::try_from(self.settings.hang_kill?.as_nanos()).unwrap_or(u64::MAX);
        match &self.places[place].occupant {
            Occupant::Alive(ward) if !ward.killed => {
                ward.hung_since_ns.map(|since_ns| since_ns.saturating_add(limit))
            }
            _ => None,
        }
    }

    pub(super) fn kill(&mut self, place: usize, reason: String) {
        let Occupant::Alive(ward) = &mut self.places[place].occupant else {
            return;
        };
        if !ward.killed {
            ward.killed = true;
            // It runs as we do, so this can only fail if it has ended by itself.
            let _ = ward.worker.kill_group();
            let ids = vec![ward.worker.id()];
            self.tell(Event::Kill { ids, reason });
        }
    }

    /// Enters an ended worker into the books and decides about a successor.
    fn bury(&mut self, worker: &WorkerHandle, ending: Ending, counts: WorkerCounts) {
        let Some(place) = self.place_of(worker) else { return };
        let occupant = std::mem::take(&mut self.places[place].occupant);
        let Occupant::Alive(ward) = occupant else { return };
        let (id, pid, aborted) = (worker.id(), worker.pid(), counts.aborted);
        self.summary.enter(WorkerSummary::new(id, pid, worker.cpu(), counts));
        let (code, signal) = code_and_signal(ending);
        self.tell(Event::Exit { id, pid, code, signal, aborted });
        let stage = self.stage;
        match stage {
            Stage::Starting { .. } if matches!(ending, Ending::Code(2 | 3)) && !ward.is_ready() => {
                // It has said why; the next one would say the same.
                self.fail(Error::Workers {
                    what: format!("worker {id} could not start"),
                    hint: "its own message says why".into(),
                });
            }
            Stage::Starting { .. } if !ward.is_ready() && self.is_hopeless(place) => {
                self.fail(self.early_end(id, ending));
            }
            // It may have been one for whom a socket was kept.
            Stage::Serving if self.is_rolled(&ward) => self.shed(),
            Stage::Starting { .. } | Stage::Serving => self.replace(place, &ward, ending),
            Stage::Draining | Stage::Killing => {}
        }
    }

    /// Counts an end before the run has begun. Tells whether there were so many in this place that
    /// the next worker would not do better.
    fn is_hopeless(&mut self, place: usize) -> bool {
        self.places[place].early_ends += 1;
        self.places[place].early_ends >= EARLY_ENDS_MAX
    }

    fn early_end(&self, id: WorkerId, ending: Ending) -> Error {
        let how = match code_and_signal(ending) {
            (Some(code), _) => format!("with exit code {code}"),
            (None, signal) => format!("by {}", signal.unwrap_or_default()),
        };
        let what =
            format!("worker {id} ended {how} before it served anything, as did those before it");
        let hint = match &self.refusal {
            Some(error) => format!("the last address that was refused: {error}"),
            None => match &self.settings.program {
                Some(program) if !self.online && program.dialect == Dialect::Native => {
                    format!("what it has printed says why; {}", other_dialects(program))
                }
                _ => "what it has printed says why".to_owned(),
            },
        };
        Error::Workers { what, hint }
    }

    /// A worker's place stays empty.
    fn shrink(&mut self) {
        self.shrunk = true;
        self.shed();
    }

    /// Closes sockets that were for those whose places stay empty. As long as nobody at all
    /// accepts, they are kept; so this is done again when somebody begins to.
    fn shed(&mut self) {
        if !self.shrunk {
            return;
        }
        // Who has been started and does not serve yet has not been given its socket.
        let comes = |place: &&super::Place| match &place.occupant {
            Occupant::Nobody => false,
            Occupant::Awaited { .. } => true,
            Occupant::Alive(ward) => !ward.is_ready(),
        };
        let coming = self.places.iter().filter(comes).count();
        // A cluster that has failed says so by an event.
        let lost = self.cluster.shed(coming).unwrap_or(0);
        if lost > 0 {
            let text = format!(
                "{lost} connections were reset that waited for a worker whose place stays empty; \
                 with CAP_BPF and CAP_NET_ADMIN, or net.ipv4.tcp_migrate_req=1, others would have \
                 got them"
            );
            self.tell(Event::Note { text });
        }
    }

    pub(super) fn replace(&mut self, place: usize, ward: &Ward, ending: Ending) {
        let now_ns = monotonic_ns();
        let restart = self.settings.restart;
        let id = ward.worker.id();
        let room = &mut self.places[place];
        match room.budget.after_end(restart, ending, ward.born_ns, now_ns) {
            Decision::After { delay_ns } => {
                room.occupant = Occupant::Awaited { at_ns: now_ns + delay_ns };
                self.tell(Event::Respawn { id, delay_ms: delay_ns / 1_000_000 });
            }
            Decision::Leave => {
                self.lost_worker |= ending != Ending::Code(0);
                self.shrink();
            }
            Decision::GiveUp => {
                self.lost_worker = true;
                self.tell(Event::GiveUp { id, reason: budget_in_words() });
                self.shrink();
            }
        }
        let deserted = self.places.iter().all(|place| matches!(place.occupant, Occupant::Nobody));
        if deserted {
            if self.lost_worker {
                self.failure = Some(Error::Workers {
                    what: "no worker is left, and none will be started".into(),
                    hint: "the exit events above say how they ended; --restart always replaces \
                           them, within a budget"
                        .into(),
                });
            }
            self.begin_stop("no worker is left".into());
        }
    }
}
