//! Sizes of a ring's queues, their locked memory, and how they shrink.
//!
//! Owns the bound for this process. The kernel counts rings against `RLIMIT_MEMLOCK` of the whole
//! account unless it has CAP_IPC_LOCK (before Linux 5.12, and again since 6.14).

use std::sync::atomic::{AtomicU64, Ordering};

const PAGE_BYTES: u64 = 4096;
/// Maximum size of the kernel's header before the completions.
const HEADER_BYTES: u64 = 512;
const SUBMISSION_BYTES: u64 = 64;
const COMPLETION_BYTES: u64 = 16;
/// Size of an entry of the submission index array, if the kernel has one.
const INDEX_BYTES: u64 = 4;

/// Bound for each ring of this process.
static BYTES_MAX: AtomicU64 = AtomicU64::new(u64::MAX);

/// Sizes of a ring's queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingShape {
    /// Submissions that can wait for the next entry into the kernel.
    pub submissions: u32,
    /// Completions that can wait to be handled. Beyond that the kernel keeps them in its own
    /// memory, ends multishot operations, and counts in `overflows`.
    pub completions: u32,
}

impl RingShape {
    /// The smallest useful size: two pages.
    pub const LEAST: Self = Self { submissions: 64, completions: 128 };

    /// For accepting: a wake-up can accept a whole backlog, and a smaller queue would end the
    /// multishot.
    #[must_use]
    pub fn for_backlog(backlog: u32) -> Self {
        let completions = backlog.clamp(4096, 65_536).next_power_of_two();
        Self { submissions: 256, completions }
    }

    /// Size of its locked memory.
    #[must_use]
    pub fn locked_bytes(self) -> u64 {
        let (submissions, completions) = (u64::from(self.submissions), u64::from(self.completions));
        let rings = HEADER_BYTES + completions * COMPLETION_BYTES + submissions * INDEX_BYTES;
        pages(rings) + pages(submissions * SUBMISSION_BYTES)
    }

    /// Half of it, but at least the smallest.
    #[must_use]
    pub fn halved(self) -> Self {
        Self {
            submissions: (self.submissions / 2).max(Self::LEAST.submissions.min(self.submissions)),
            completions: (self.completions / 2).max(Self::LEAST.completions.min(self.completions)),
        }
    }

    /// Halves it until it fits, or returns the smallest.
    #[must_use]
    pub fn within(self, bytes: u64) -> Self {
        let mut shape = self;
        while shape.locked_bytes() > bytes && shape.halved() != shape {
            shape = shape.halved();
        }
        shape
    }
}

/// Limits the locked memory of each ring created from now on, including its receive buffers, by
/// shrinking its queues down to the smallest useful size.
pub fn limit_locked_bytes(bytes: u64) {
    BYTES_MAX.store(bytes, Ordering::Relaxed);
}

/// The bound of this process.
pub(super) fn locked_bytes_max() -> u64 {
    BYTES_MAX.load(Ordering::Relaxed)
}

/// Locked memory of a group of this many receive buffers.
#[must_use]
pub(super) fn group_bytes(count: u16) -> u64 {
    pages(u64::from(count) * COMPLETION_BYTES)
}

fn pages(bytes: u64) -> u64 {
    bytes.next_multiple_of(PAGE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_shrink_until_they_fit_and_no_further() {
        let full = RingShape::for_backlog(4096);
        assert_eq!(full.locked_bytes(), 86_016);
        assert_eq!(full.within(u64::MAX), full);
        for bytes in [64 * 1024, 32 * 1024, 16 * 1024, 8 * 1024] {
            let smaller = full.within(bytes);
            assert!(smaller.locked_bytes() <= bytes, "{smaller:?}");
            assert!(smaller.completions < full.completions);
        }
        assert_eq!(full.within(0), RingShape::LEAST);
        assert_eq!(RingShape::LEAST.locked_bytes(), 8192);
        let tiny = RingShape { submissions: 8, completions: 16 };
        assert_eq!((tiny.within(0), tiny.halved()), (tiny, tiny));
    }
}
