//! RLIMIT_NOFILE: raising it, giving children the old one back, what is left of it, and holding
//! some of it back.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::error::{Error, Result};

/// The soft limit before it was raised; 0 as long as it was not.
static SOFT_BEFORE: AtomicU64 = AtomicU64::new(0);

/// The soft descriptor limit of a new process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DescriptorLimit {
    /// What this process was started with, whatever it has raised its own to.
    #[default]
    Inherited,
    /// The hard limit.
    Hard,
    /// This number, or the hard limit if that is lower.
    Number(u64),
}

impl DescriptorLimit {
    /// The soft and the hard limit to set in a new process; none, if it has them already.
    pub(crate) fn for_child(self) -> Option<(u64, u64)> {
        let (soft, hard) = descriptor_limits().ok()?;
        let wanted = match self {
            Self::Inherited => match SOFT_BEFORE.load(Ordering::Relaxed) {
                0 => soft,
                before => before,
            },
            Self::Hard => hard,
            Self::Number(number) => number,
        };
        let wanted = wanted.min(hard);
        (wanted != soft).then_some((wanted, hard))
    }
}

/// Raises the soft descriptor limit to the hard one and tells it (`setrlimit(2)`). Children get
/// the old one back unless they are to have another.
///
/// # Errors
/// `getrlimit` or `setrlimit` refused, which a healthy kernel never does.
pub fn raise_descriptor_limit() -> Result<u64> {
    let (soft, hard) = descriptor_limits()?;
    if soft < hard {
        // Only the first time: afterwards it is this process's own.
        let _ = SOFT_BEFORE.compare_exchange(0, soft, Ordering::Relaxed, Ordering::Relaxed);
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
            .map_err(|errno| Error::system("raise RLIMIT_NOFILE to its hard limit", errno))?;
    }
    Ok(hard)
}

/// The soft and the hard descriptor limit.
///
/// # Errors
/// `getrlimit` refused.
pub fn descriptor_limits() -> Result<(u64, u64)> {
    getrlimit(Resource::RLIMIT_NOFILE).map_err(|errno| Error::system("read RLIMIT_NOFILE", errno))
}

/// Runs `step` with the soft descriptor limit lowered by `held_back`.
///
/// A multishot accept keeps the limit that was in force when it was armed. Arming it this way
/// leaves `held_back` descriptors that accepted connections can never take, so that the process
/// can still start a worker when connections have used up all others.
pub fn with_descriptors_held_back<T>(held_back: u64, step: impl FnOnce() -> T) -> T {
    let Ok((soft, hard)) = descriptor_limits() else {
        return step();
    };
    let lowered = soft.saturating_sub(held_back).max(soft / 2);
    if setrlimit(Resource::RLIMIT_NOFILE, lowered, hard).is_err() {
        return step();
    }
    let result = step();
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard)
        .expect("a soft limit within the hard limit is always accepted");
    result
}

/// Runs `step` with a soft limit of 0 for locked memory (`RLIMIT_MEMLOCK`). For a process without
/// other threads.
pub(crate) fn without_locked_memory<T>(step: impl FnOnce() -> T) -> Option<T> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_MEMLOCK).ok()?;
    setrlimit(Resource::RLIMIT_MEMLOCK, 0, hard).ok()?;
    let result = step();
    setrlimit(Resource::RLIMIT_MEMLOCK, soft, hard).ok()?;
    Some(result)
}

/// Runs `step` with the soft descriptor limit raised to the hard one: for what must not be lost
/// though somebody has lowered the limit meanwhile.
pub fn with_all_descriptors<T>(step: impl FnOnce() -> T) -> T {
    match descriptor_limits() {
        Ok((soft, hard)) if soft < hard => {
            let raised = setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok();
            let result = step();
            // Not if somebody has set another one at this very moment.
            let is_ours = descriptor_limits().is_ok_and(|now| now == (hard, hard));
            if raised && is_ours {
                let _ = setrlimit(Resource::RLIMIT_NOFILE, soft, hard);
            }
            result
        }
        _ => step(),
    }
}

/// How many descriptors this process has open.
#[must_use]
pub fn descriptors_open() -> usize {
    // The listing itself holds one descriptor while it counts.
    fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count().saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holding_back_is_undone() {
        let before = descriptor_limits().expect("limits can be read");
        let during = with_descriptors_held_back(8, descriptor_limits).expect("limits can be read");
        assert!(during.0 < before.0);
        assert_eq!(descriptor_limits().expect("limits can be read"), before);
        let during = with_all_descriptors(descriptor_limits).expect("limits can be read");
        assert_eq!(during.0, during.1);
        assert_eq!(descriptor_limits().expect("limits can be read"), before);
    }
}
