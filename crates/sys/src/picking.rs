//! Makes the kernel pick the listening socket of a worker by the workers' counters.
//!
//! Owns the maps of the program, an SK_REUSEPORT one, which needs CAP_BPF; `program` assembles it.
//! Workers write their counters into pages that are BPF maps, so the kernel reads a worker's plain
//! store at the next connection; the primary excludes a worker by another store. The program counts
//! its picks in these pages, so that a worker has a connection before it accepts it; the primary
//! corrects that count now and then by what waits for the worker, because some are never
//! established. Workers that are equally good take turns after the last one picked.

mod alarm;
mod program;
mod steps;
mod watch;

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;

use crate::bpf::{self, Timed};
pub use alarm::{Alarm, Told};
pub use program::{Program, ProgramMaps, assemble};
pub use watch::{TICK_NS, WatchMaps};

/// Most sockets of a program: a program has at most 64 maps, and four have other uses.
pub const PICKED_MAX: usize = 60;

/// Offsets of the program's inputs in a page, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BoardLayout {
    /// Not zero: the worker is excluded.
    pub excluded: i16,
    /// Added: connections that arrived at the worker.
    pub come: [i16; 2],
    /// Subtracted: connections that have left it.
    pub gone: [i16; 2],
    /// Counted up by the program: connections that it picked the worker for.
    pub picked: i16,
    /// Those that the worker accepted, which are part of what arrived.
    pub accepted: i16,
    /// Added to the difference of these two, so that it is what waits for the worker: not every
    /// connection that is picked for it arrives.
    pub correction: i16,
    /// What a connection takes at the worker, for [`Rule::Fastest`].
    pub time: i16,
    /// Not zero: the kernel watches what waits for the worker, and tells the primary after this
    /// many ticks without an accept.
    pub patience: i16,
    /// Why the kernel has told the primary about the worker ([`Told`]).
    pub told: i16,
}

/// Whom the kernel picks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The worker with the fewest connections in flight.
    Least,
    /// The one with the lowest product of its time and what it would have in flight.
    Fastest,
    /// The one that the client's address maps to (`hashing`), among those within the bound.
    Sticky {
        /// Most in flight, in thousandths of the average, and at least one connection.
        bound_permille: Option<u32>,
    },
}

/// A socket that may be picked.
#[derive(Clone, Copy, Debug)]
pub struct Pickable<'a> {
    /// Its key in the map of sockets.
    pub socket: u16,
    /// The page of the worker that accepts from it, which is a BPF map.
    pub board: BorrowedFd<'a>,
}

/// The maps of a port.
#[derive(Debug)]
pub struct Picking {
    sockets: OwnedFd,
    cursor: OwnedFd,
    /// The timer of the attached program ends with it.
    watch: Option<OwnedFd>,
    layout: BoardLayout,
}

impl Picking {
    /// Room for this many sockets of a port.
    ///
    /// # Errors
    /// This process may not create maps, or memory is exhausted.
    pub fn new(sockets_max: u32, layout: BoardLayout) -> Result<Self, Errno> {
        let sockets = bpf::create_sockets(sockets_max)?;
        Ok(Self { sockets, cursor: bpf::create_array(8, false)?, watch: None, layout })
    }

    /// Adds a socket.
    ///
    /// # Errors
    /// There is no room, or it does not listen.
    pub fn enter(&self, key: u16, socket: &impl AsFd) -> Result<(), Errno> {
        bpf::set_socket(&self.sockets, key.into(), socket.as_fd())
    }

    /// Makes the kernel pick one of these for each connection to the port of `socket`. If all of
    /// them are excluded, or gone, the kernel chooses by hash. With an alarm it also watches what
    /// waits for workers whose pages ask for it, and raises the alarm.
    ///
    /// # Errors
    /// The kernel refuses the program, or there are too many (E2BIG).
    pub fn pick_among(
        &mut self,
        socket: &impl AsFd,
        rule: Rule,
        pickable: &[Pickable<'_>],
        alarm: Option<&Alarm>,
    ) -> Result<(), Errno> {
        if pickable.len() > PICKED_MAX {
            return Err(Errno::E2BIG);
        }
        let entries = pickable.iter().map(|one| (one.socket, one.board.as_raw_fd()));
        let entries: Vec<(u16, RawFd)> = entries.collect();
        let state = alarm.map(Alarm::create_state).transpose()?;
        let watch = alarm.zip(state.as_ref()).map(|(alarm, state)| WatchMaps {
            state: state.as_raw_fd(),
            alarm: alarm.as_fd().as_raw_fd(),
        });
        let maps = ProgramMaps {
            sockets: self.sockets.as_raw_fd(),
            cursor: self.cursor.as_raw_fd(),
            watch,
        };
        let program = assemble(rule, &entries, maps, self.layout);
        let timed =
            alarm.zip(program.tick_at).map(|(alarm, at)| Timed { types: alarm.types(), at });
        bpf::attach(socket, &bpf::load(&program.instructions, timed)?)?;
        self.watch = state;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
