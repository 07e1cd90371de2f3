//! The io_uring features in use, and the levels built from them.
//!
//! Owns their names, history and purpose. Does not test for them: `probe` does.

use std::fmt;

use serde::Serialize;

/// A feature that the kernel's io_uring may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Feature {
    /// All operations in [`super::OPERATIONS`].
    Operations,
    /// An invalid request does not stop the submission of those after it.
    SubmitAll,
    /// Completions do not interrupt the thread.
    CoopTaskrun,
    /// A flag in the ring shows that completions wait to be processed, without a system call.
    TaskrunFlag,
    /// A single request accepts any number of connections.
    MultishotAccept,
    /// The kernel picks a receive buffer when data arrives.
    BufferRing,
    /// A single thread submits.
    SingleIssuer,
    /// One synchronous call cancels everything.
    SyncCancel,
    /// A single request receives any number of messages with descriptors into a buffer ring.
    MultishotReceive,
    /// Completions are processed on request only.
    DeferTaskrun,
    /// No index array between the thread and its submissions.
    NoSqarray,
    /// A wait for many completions may return with fewer after a time.
    MinWait,
}

/// The extent of io_uring support, in steps that change what this program can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum FeatureLevel {
    /// Insufficient, or refused.
    L0,
    /// Linux 5.19: multishot accept and buffer rings.
    L1,
    /// Linux 6.1: deferred task work. The minimum for the front end.
    L2,
    /// Linux 6.12: a time limit on waiting for a batch.
    L3,
}

impl FeatureLevel {
    /// The minimum for the front end.
    pub const NEEDED: Self = Self::L2;
}

impl Feature {
    /// All features, in the order in which Linux gained them.
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

    /// Name for tables.
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

    /// The first Linux version that has it.
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

    /// The lowest level that requires it; `None` for an optional feature.
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
