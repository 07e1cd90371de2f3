//! One worker as the decisions see it.

use std::collections::BTreeSet;

use crate::AddressKind;

/// An address by its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::supervisor) struct Name {
    pub(in crate::supervisor) kind: AddressKind,
    /// The bound address.
    pub(in crate::supervisor) address: String,
    /// Its port was chosen by the kernel. Listeners opened only briefly, such as for one transfer,
    /// are mostly of this kind.
    pub(in crate::supervisor) ephemeral: bool,
}

pub(in crate::supervisor) type Names = BTreeSet<Name>;

/// The role of a worker in its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::supervisor) enum Role {
    /// It has the slot.
    Current,
    /// It will get the slot.
    Successor,
    /// It leaves, and has lost the slot.
    Leaving,
}

/// A worker.
#[derive(Debug)]
pub(in crate::supervisor) struct Child {
    pub(in crate::supervisor) slot: u16,
    pub(in crate::supervisor) role: Role,
    pub(in crate::supervisor) born_ns: u64,
    pub(super) online: bool,
    /// Its program has reported that it is ready, or need not.
    pub(super) ready: bool,
    /// The addresses it serves.
    pub(in crate::supervisor) serving: Names,
    /// When it first served an address and was ready.
    pub(in crate::supervisor) serving_since_ns: Option<u64>,
    /// The addresses that the last worker of its slot served.
    pub(super) wanted: Names,
    /// It was told to leave, or has left, and is killed at this time.
    pub(super) cut_ns: Option<u64>,
    /// Its channel has ended, and it loses its slot at this time.
    pub(super) lost_ns: Option<u64>,
    pub(super) killed: bool,
    pub(in crate::supervisor) hung_since_ns: Option<u64>,
}

impl Child {
    pub(super) fn new(slot: u16, role: Role, wanted: Names, ready: bool, now_ns: u64) -> Self {
        Self {
            slot,
            role,
            born_ns: now_ns,
            online: false,
            ready,
            serving: Names::new(),
            serving_since_ns: None,
            wanted,
            cut_ns: None,
            lost_ns: None,
            killed: false,
            hung_since_ns: None,
        }
    }

    /// Whether it has its slot, and is neither dying nor leaving.
    pub(super) fn stays(&self) -> bool {
        self.role == Role::Current && !self.goes()
    }

    /// Whether it is dying or leaving.
    pub(super) fn goes(&self) -> bool {
        self.killed || self.cut_ns.is_some()
    }

    /// The addresses that a successor has to serve: those of this worker now, by name. Ports that
    /// the kernel chose count only for a worker without others. A worker that does not serve yet
    /// inherits those of the last one that did.
    pub(super) fn wanted_of_successor(&self) -> Names {
        if self.serving.is_empty() && self.serving_since_ns.is_none() {
            return self.wanted.clone();
        }
        let named: Names = self.serving.iter().filter(|name| !name.ephemeral).cloned().collect();
        match named.is_empty() {
            true => self.serving.clone(),
            false => named,
        }
    }
}
