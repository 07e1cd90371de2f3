//! Picking by the kernel according to the workers' counters, in the pages that they write to
//! anyway.
//!
//! Owns which pages a port's program reads: one for each socket that workers accept from. It is
//! rebuilt when these change; a store into a worker's page excludes that worker.

use nix::errno::Errno;

use super::{Port, is_able};
use crate::data_path::DataPath;
use crate::data_path::acceptor::Acceptor;
use crate::data_path::handoff::Link;
use crate::id::Slot;
use crate::protocol::scoreboard::KERNEL_LAYOUT;
use crate::schedule::Change;
use crate::settings::WORKERS_MAX;
use crate::sys::engine::Key;
use crate::sys::migration;
use crate::sys::picking::{Pickable, Picking, Rule};

/// The state given to the kernel for a port.
#[derive(Debug, Default)]
pub(super) struct Exact {
    picking: Option<Picking>,
    /// The first `entered` sockets are known to the kernel.
    entered: u16,
    /// The rule, and the sockets with the workers whose counters apply.
    picked: Option<(Rule, Vec<(u16, Key)>)>,
    /// Excluded workers.
    excluded: Vec<Slot>,
    /// The kernel can watch the queues of these workers.
    pub(super) is_watching: bool,
}

impl Exact {
    /// Whether the kernel can watch the queue of a socket, whose connections this worker counts.
    pub(super) fn watches(&self, number: Option<u16>, key: Key) -> bool {
        let mut picked = self.picked.iter().flat_map(|(_, picked)| picked);
        self.is_watching && picked.any(|one| (Some(one.0), one.1) == (number, key))
    }
}

impl DataPath {
    /// Lets the kernel pick among these sockets of a port. Returns what has changed.
    ///
    /// # Errors
    /// It is impossible: the pages are not for the kernel, there are too many, or it refuses.
    pub(super) fn pick_exactly(
        &self,
        port: &mut Port,
        own: &[&Acceptor],
        rule: Rule,
    ) -> Result<Option<Change>, Errno> {
        let (Some(exact), Some(first)) = (&mut port.exact, own.first()) else { return Ok(None) };
        let mut excluded = Vec::new();
        let owned = own.iter().filter_map(|acceptor| {
            let number = acceptor.number?;
            self.counting_owner(acceptor, &mut excluded).map(|link| (number, link))
        });
        let owned: Vec<(u16, &Link)> = owned.collect();
        let is_left_out = |link: &Link| excluded.iter().any(|slot| link.is_in(*slot));
        if self.steerer.rules.lacks_inboxes && owned.iter().all(|(_, link)| is_left_out(link)) {
            // As long as all of them are busy, the one with the shortest queue is the best.
            owned.iter().for_each(|(_, link)| link.page.set_excluded(false));
        }
        let is_other = std::mem::replace(&mut exact.excluded, excluded) != exact.excluded;
        let keys = owned.iter().map(|(number, link)| (*number, link.key()));
        let picked = Some((rule, keys.collect()));
        if exact.picked == picked {
            return Ok(is_other.then_some(Change::Stalls));
        }
        let pickable = owned.iter().map(|(number, link)| {
            let board = link.page.board().ok_or(Errno::ENOTSUP)?;
            Ok(Pickable { socket: *number, board })
        });
        let pickable: Vec<Pickable<'_>> = pickable.collect::<Result<_, Errno>>()?;
        let sockets_max = u32::try_from(WORKERS_MAX).expect("workers are bounded");
        let picking = match exact.picking.take() {
            Some(picking) => picking,
            None => Picking::new(sockets_max, KERNEL_LAYOUT)?,
        };
        let picking = exact.picking.insert(picking);
        for acceptor in own {
            if let (Some(number), Some(socket)) = (acceptor.number, acceptor.listener())
                && number >= exact.entered
            {
                picking.enter(number, socket)?;
                exact.entered = number + 1;
            }
        }
        let socket = first.listener().ok_or(Errno::EBADF)?;
        // Of workers with a copy it does not see what they accept.
        let is_visible = owned.iter().all(|(_, link)| !link.page.is_copied());
        let alarm = self.steerer.alarm.as_ref().filter(|_| is_visible);
        // Without its watch the kernel picks just as well, and this thread looks at the queues.
        exact.is_watching = alarm
            .is_some_and(|alarm| picking.pick_among(socket, rule, &pickable, Some(alarm)).is_ok());
        if !exact.is_watching {
            picking.pick_among(socket, rule, &pickable, None)?;
        }
        exact.picked = picked;
        Ok(Some(Change::Workers))
    }

    /// Moves what waits in a socket of a port to the others that the kernel picks. Returns whether
    /// it does pick.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(in crate::data_path) fn move_among(
        &self,
        port: &mut Port,
        own: &[&Acceptor],
        number: Option<u16>,
    ) -> Result<bool, Errno> {
        let from = own.iter().find(|acceptor| acceptor.number == number);
        let from = from.and_then(|acceptor| Some((acceptor.number?, acceptor.listener()?)));
        let Some((number, listener)) = from else { return Ok(false) };
        // Without a packet there is no client's address.
        self.pick_exactly(port, own, Rule::Least)?;
        let picking = port.exact.as_ref().and_then(|exact| exact.picking.as_ref());
        let Some(picking) = picking else { return Ok(false) };
        migration::move_queue(listener)?;
        picking.enter(number, listener)?;
        own.iter().filter_map(|acceptor| acceptor.listener()).for_each(migration::wake);
        self.pick_exactly(port, own, self.steerer.rule())?;
        Ok(true)
    }

    /// The worker whose counters decide about a socket: one that accepts from it and can take a
    /// connection, if any. Its other workers learn whether they are excluded.
    fn counting_owner(&self, acceptor: &Acceptor, excluded: &mut Vec<Slot>) -> Option<&Link> {
        let is_doubtful = self.is_doubtful(acceptor);
        let link_of = |slot: &Slot| self.links.get(slot.index()).and_then(Option::as_ref);
        let able = |slot: &Slot| {
            let load = self.roster.loads().get(slot.index());
            load.is_some_and(|load| is_able(load, is_doubtful))
        };
        let owners = acceptor.owners.iter().filter_map(|slot| {
            let (able, link) = (able(slot), link_of(slot)?);
            link.page.set_excluded(!able);
            excluded.extend((!able).then_some(*slot));
            Some((able, link))
        });
        let owners: Vec<(bool, &Link)> = owners.collect();
        let best = owners.iter().find(|(able, _)| *able).or_else(|| owners.first());
        best.map(|(_, link)| *link)
    }
}
