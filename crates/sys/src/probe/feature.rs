//! The features of io_uring that we use, and the levels made of them.
//!
//! Owns their names, their history and what they are needed for. Refuses to find out whether
//! this machine has them: `probe` does.

use std::fmt;

use serde::Serialize;

/// Something that a kernel's io_uring has or has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Feature {
    /// All the operations in [`super::OPERATIONS`].
    Operations,
    /// An invalid request does not keep those behind it from being submitted.
    SubmitAll,
    /// Completions do not interrupt the thread.
    CoopTaskrun,
    /// The ring says without a system call that completions are waiting to be processed.
    TaskrunFlag,
    /// One request accepts connection after connection.
    MultishotAccept,
    /// The kernel picks a receive buffer only when there is something to receive.
    BufferRing,
    /// One thread alone submits.
    SingleIssuer,
    /// Everything can be cancelled in one synchronous call.
    SyncCancel,
    /// One request receives message after message, with descriptors, into a buffer ring.
    MultishotReceive,
    /// Completions are processed only when asked for.
    DeferTaskrun,
    /// No array of indices between the thread and its submissions.
    NoSqarray,
    /// Waiting for many completions can be content with few after a while.
    MinWait,
}

/// How much of io_uring there is, in steps that change what we can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum FeatureLevel {
    /// Too little, or refused.
    L0,
    /// As of Linux 5.19: multishot accept and buffer rings.
    L1,
    /// As of Linux 6.1: deferred task work. What the front end needs.
    L2,
    /// As of Linux 6.12: a bound on waiting for a batch.
    L3,
}

impl FeatureLevel {
    /// What the front end cannot do without.
    pub const NEEDED: Self = Self::L2;
}

impl Feature {
    /// All there are, in the order in which kernels learnt them.
    pub const ALL: [Self; 12] = [
        Self::Operations,
        Self::SubmitAll,
        Self::CoopTaskrun,
        Self::TaskrunFlag,
        Self::MultishotAccept,
        Self::BufferRing,
        Self::SingleIssuer,
        Self::SyncCancel,
        Self::MultishotReceive,
        Self::DeferTaskrun,
        Self::NoSqarray,
        Self::MinWait,
    ];

    /// Its name in a table.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Operations => "operations",
            Self::SubmitAll => "submit all",
            Self::CoopTaskrun => "cooperative task work",
            Self::TaskrunFlag => "task work flag",
            Self::MultishotAccept => "multishot accept",
            Self::BufferRing => "buffer rings",
            Self::SingleIssuer => "single issuer",
            Self::SyncCancel => "synchronous cancel",
            Self::MultishotReceive => "multishot receive",
            Self::DeferTaskrun => "deferred task work",
            Self::NoSqarray => "no index array",
            Self::MinWait => "minimum wait",
        }
    }

    /// The first Linux that has it.
    #[must_use]
    pub fn since(self) -> &'static str {
        match self {
            Self::Operations => "5.11",
            Self::SubmitAll => "5.18",
            Self::CoopTaskrun | Self::TaskrunFlag => "5.19",
            Self::MultishotAccept | Self::BufferRing => "5.19",
            Self::SingleIssuer | Self::SyncCancel | Self::MultishotReceive => "6.0",
            Self::DeferTaskrun => "6.1",
            Self::NoSqarray => "6.6",
            Self::MinWait => "6.12",
        }
    }

    /// The lowest level that takes it, if any does.
    #[must_use]
    pub fn needed_for(self) -> Option<FeatureLevel> {
        match self {
            Self::Operations | Self::SubmitAll | Self::CoopTaskrun | Self::TaskrunFlag => {
                Some(FeatureLevel::L1)
            }
            Self::MultishotAccept | Self::BufferRing => Some(FeatureLevel::L1),
            Self::SingleIssuer | Self::SyncCancel => Some(FeatureLevel::L2),
            Self::MultishotReceive | Self::DeferTaskrun => Some(FeatureLevel::L2),
            Self::NoSqarray => None,
            Self::MinWait => Some(FeatureLevel::L3),
        }
    }
}

impl fmt::Display for FeatureLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}
