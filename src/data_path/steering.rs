//! Which of the workers' own sockets the kernel chooses for a connection (`--dispatch kernel`).
//!
//! Reads the workers' counters, obtains the decision (`schedule::weigh`), and applies it in the
//! kernel. Nothing here runs per connection: it runs when workers come and go, and when their
//! queues are checked.

mod picking;

use std::net::SocketAddr;

use nix::errno::Errno;

use super::acceptor::Acceptor;
use super::{DataPath, DataPathReport};
use crate::error::Error;
use crate::id::{ListenerId, Slot};
use crate::schedule::{
    Changes, Limits, OwnSocketLoad, Policy, Status, Steering, Weight, WorkerLoad, weigh,
};
use crate::sys::engine::Key;
use crate::sys::listening;
use crate::sys::picking::{Alarm, Rule};
use crate::sys::steering::{Lot, steer};
use picking::Exact;

/// Delay until the next check whether another process listens at an address: this process may not
/// know a socket yet that it has just opened.
const CHECK_NS: u64 = 20_000_000;
/// This many checks decide that another process does.
const CHECKS_MAX: u32 = 10;

/// How workers' own sockets are managed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnSocketRules {
    /// The kernel's choice among them is controlled.
    pub is_steered: bool,
    /// Their workers report how many connections they accept.
    pub is_counted: bool,
    /// The kernel reads these counters and picks by them.
    pub is_exact: bool,
    /// Their workers take no connection from the primary: what one leaves in its socket, only the
    /// kernel can give to others.
    pub lacks_inboxes: bool,
}

/// What is in effect for each listener.
#[derive(Debug)]
pub(super) struct Steerer {
    pub(super) rules: OwnSocketRules,
    policy: Policy,
    limits: Limits,
    pub(super) ports: Vec<Port>,
    /// How the kernel tells that a queue is stuck, if it can watch them.
    pub(super) alarm: Option<Alarm>,
    /// The kernel's program is another one, which knows nothing of what waits, or it leaves out
    /// other workers than before: while it leaves out all of them, it counts no pick.
    pub(super) may_be_uncounted: bool,
    /// Something has changed since the last decision.
    pub(super) is_due: bool,
    pub(super) changes: Changes,
}

#[derive(Debug)]
pub(super) struct Port {
    pub(super) listener: ListenerId,
    steering: Steering,
    /// The kernel's exact pick, while in use.
    exact: Option<Exact>,
    /// With this many sockets no other process listened there.
    sockets_checked: usize,
    checks: u32,
    check_ns: Option<u64>,
    /// The kernel spreads by hash, and that was reported.
    is_left_alone: bool,
}

impl Steerer {
    pub(super) fn new(policy: Policy, limits: Limits) -> Self {
        Self {
            rules: OwnSocketRules::default(),
            policy,
            limits,
            ports: Vec::new(),
            alarm: None,
            may_be_uncounted: false,
            is_due: false,
            changes: Changes::default(),
        }
    }

    /// Changes the scheduling rules.
    pub(super) fn reschedule(&mut self, policy: Policy, limits: Limits) {
        (self.policy, self.limits, self.is_due) = (policy, limits, true);
    }

    /// A socket of a listener was added.
    pub(super) fn add(&mut self, listener: ListenerId) {
        self.is_due = true;
        if self.rules.is_steered && self.ports.iter().all(|port| port.listener != listener) {
            self.ports.push(Port {
                listener,
                steering: Steering::default(),
                exact: self.rules.is_exact.then(Exact::default),
                sockets_checked: 0,
                checks: 0,
                check_ns: None,
                is_left_alone: false,
            });
        }
    }

    /// Whom the kernel picks.
    pub(super) fn rule(&self) -> Rule {
        match self.policy {
            Policy::Fastest => Rule::Fastest,
            Policy::Sticky => {
                let factor = self.limits.overload_factor;
                Rule::Sticky { bound_permille: factor.permille_under(self.policy) }
            }
            _ => Rule::Least,
        }
    }

    /// Whether the kernel watches any queue.
    pub(super) fn watches(&self) -> bool {
        let mut exact = self.ports.iter().filter_map(|port| port.exact.as_ref());
        exact.any(|exact| exact.is_watching)
    }

    /// Whether the kernel can watch the queue of a socket, whose connections this worker counts.
    pub(super) fn is_watching(&self, listener: ListenerId, number: Option<u16>, key: Key) -> bool {
        let port = self.ports.iter().find(|port| port.listener == listener);
        let exact = port.and_then(|port| port.exact.as_ref());
        exact.is_some_and(|exact| exact.watches(number, key))
    }

    pub(super) fn remove(&mut self, listener: ListenerId) {
        self.ports.retain(|port| port.listener != listener);
    }

    pub(super) fn next_deadline_ns(&self) -> Option<u64> {
        let ports = self.ports.iter().filter(|port| !port.is_left_alone);
        ports.flat_map(|port| [port.check_ns, port.steering.next_deadline_ns()]).flatten().min()
    }
}

impl DataPath {
    /// Sets how workers' own sockets are managed. Call it before there are any.
    #[must_use]
    pub fn with_own_sockets(mut self, rules: OwnSocketRules) -> Self {
        self.steerer.rules = rules;
        // Of other workers the kernel does not see what they accept.
        if rules.is_exact && rules.is_counted {
            self.listen_to_the_kernel();
        }
        self
    }

    /// Decides anew what the kernel chooses, if something has changed.
    pub(super) fn steer(&mut self) {
        let overdue = self.steerer.next_deadline_ns().is_some_and(|at_ns| at_ns <= self.now_ns);
        if !std::mem::take(&mut self.steerer.is_due) && !overdue || self.steerer.ports.is_empty() {
            return;
        }
        self.observe();
        if self.steerer.policy == Policy::Fastest {
            let times = self.roster.compared_times();
            let links = self
                .links
                .iter()
                .zip(times)
                .filter_map(|(link, time)| Some((link.as_ref()?, time)));
            links.for_each(|(link, time_us)| link.page.set_time(time_us));
        }
        let mut ports = std::mem::take(&mut self.steerer.ports);
        ports.iter_mut().filter(|port| !port.is_left_alone).for_each(|port| self.steer_port(port));
        self.steerer.ports = ports;
        if std::mem::take(&mut self.steerer.may_be_uncounted) {
            self.look_at_all();
        }
    }

    fn steer_port(&mut self, port: &mut Port) {
        let own = self.own_sockets_of(port.listener);
        if port.exact.is_some() {
            match self.pick_exactly(port, &own, self.steerer.rule()) {
                Ok(change) => {
                    self.steerer.may_be_uncounted |= change.is_some();
                    return change.into_iter().for_each(|one| self.steerer.changes.count(one));
                }
                Err(errno) => {
                    let error = inexact(self.steerer.policy, errno);
                    self.report(DataPathReport::Unsteered { error });
                }
            }
            port.exact = None;
        }
        let sockets: Vec<OwnSocketLoad> = own.iter().map(|one| self.load_of(one)).collect();
        let weights = weigh(self.steerer.policy, &self.steerer.limits, &sockets);
        let Some(change) = port.steering.change(&weights, &sockets, self.now_ns) else { return };
        let Some(listener) = own.first().and_then(|acceptor| acceptor.listener()) else { return };
        let address = listener.address().to_owned();
        match port.is_alone(&address, sockets.len(), self.now_ns) {
            Some(true) => {}
            None => return,
            Some(false) => {
                let step = format!("choose among the sockets of {address}");
                return self.leave_alone(port, step, Errno::EADDRINUSE);
            }
        }
        let lot = |Weight { socket, weight }: &Weight| Lot { place: *socket, weight: *weight };
        match steer(listener, &weights.iter().map(lot).collect::<Vec<Lot>>()) {
            Ok(()) => {
                port.steering.note(weights, sockets, self.now_ns);
                self.steerer.changes.count(change);
            }
            Err(errno) => {
                let step =
                    format!("choose among the sockets of {address} (SO_ATTACH_REUSEPORT_CBPF)");
                self.leave_alone(port, step, errno);
            }
        }
    }

    /// The workers' sockets of a listener, in the order of opening.
    pub(super) fn own_sockets_of(&self, listener: ListenerId) -> Vec<&Acceptor> {
        let all = self.acceptors.iter().flatten().filter(|one| one.id == listener);
        let mut own: Vec<&Acceptor> =
            all.filter(|acceptor| acceptor.number.is_some() && !acceptor.leaving).collect();
        own.sort_by_key(|acceptor| acceptor.number);
        own
    }

    /// The state of the workers that accept from a socket.
    pub(super) fn load_of(&self, acceptor: &Acceptor) -> OwnSocketLoad {
        let loads = self.roster.loads();
        let is_doubtful = self.is_doubtful(acceptor);
        let owners = acceptor.owners.iter().filter_map(|slot| loads.get(slot.index()));
        let able = owners.filter(|load| is_able(load, is_doubtful));
        // Of workers that report nothing, what waits for them is known.
        let waiting = if self.steerer.rules.is_counted { 0 } else { acceptor.waiting };
        let in_flight = able.map(|load| load.in_flight.saturating_add(waiting)).min();
        OwnSocketLoad {
            is_owned: acceptor.is_owned(),
            is_able: in_flight.is_some(),
            in_flight: in_flight.unwrap_or(0),
        }
    }

    /// Whether only a new connection can show that they accept again.
    fn is_doubtful(&self, acceptor: &Acceptor) -> bool {
        let probed = |slot: &Slot| self.roster.is_probed(*slot);
        acceptor.is_doubtful() && !acceptor.owners.iter().any(probed)
    }

    fn leave_alone(&self, port: &mut Port, step: String, source: Errno) {
        port.is_left_alone = true;
        let hint = match source {
            Errno::EADDRINUSE => {
                "another process listens there, too; while it does, the kernel spreads connections \
                 over all sockets by their hash"
            }
            _ => "the kernel spreads connections by their hash instead; let setsockopt through",
        };
        let error = Error::Environment { step, source: source.into(), hint: hint.into() };
        self.report(DataPathReport::Unsteered { error });
    }
}

/// Whether a worker can take a connection.
fn is_able(load: &WorkerLoad, is_doubtful: bool) -> bool {
    load.status == Status::Ready && (!load.hung || is_doubtful)
}

/// The kernel draws at random instead of picking.
fn inexact(policy: Policy, source: Errno) -> Error {
    let hint = match (policy, source) {
        (Policy::Sticky, _) => "it chooses at random instead: clients do not stay at their workers",
        (_, Errno::E2BIG) => "it can for sixty; it chooses at random among all of them instead",
        _ => "it chooses at random among them instead",
    };
    let step = "let the kernel pick by the counters of workers".into();
    Error::Environment { step, source: source.into(), hint: hint.into() }
}

impl Port {
    /// Whether no other process listens there: otherwise the positions of sockets differ from those
    /// known here. `None` while unclear.
    fn is_alone(&mut self, address: &str, sockets: usize, now_ns: u64) -> Option<bool> {
        if self.sockets_checked == sockets {
            return Some(true);
        }
        if self.check_ns.is_some_and(|check_ns| now_ns < check_ns) {
            return None;
        }
        let bound: Option<SocketAddr> = address.parse().ok();
        // If the kernel's table cannot be read, no other process is assumed.
        if bound.and_then(listening::sockets_at).is_none_or(|found| found == sockets) {
            (self.sockets_checked, self.checks, self.check_ns) = (sockets, 0, None);
            return Some(true);
        }
        self.checks += 1;
        self.check_ns = Some(now_ns.saturating_add(CHECK_NS));
        (self.checks >= CHECKS_MAX).then_some(false)
    }
}
