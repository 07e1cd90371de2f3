//! RLIMIT_NOFILE: raising it, restoring it in children, counting open descriptors, and reserving
//! some.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::error::{Error, Result};

/// The soft limit before it was raised; 0 until then.
static SOFT_BEFORE: AtomicU64 = AtomicU64::new(0);

/// The soft descriptor limit of a new process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DescriptorLimit {
    /// The limit that this process was started with.
    #[default]
    Inherited,
    /// The hard limit.
    Hard,
    /// This number, or the hard limit if that is lower.
    Number(u64),
}

impl DescriptorLimit {
    /// The soft and hard limit for a new process; `None` if it already inherits them.
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

/// Raises the soft descriptor limit to the hard one and returns it (`setrlimit(2)`). Children get
/// the original limit unless another is requested.
///
/// # Errors
/// `getrlimit` or `setrlimit` failed, which does not happen on a healthy kernel.
pub fn raise_descriptor_limit() -> Result<u64> {
    let (soft, hard) = descriptor_limits()?;
    if soft < hard {
        // The first call only: later the limit is the raised one.
        let _ = SOFT_BEFORE.compare_exchange(0, soft, Ordering::Relaxed, Ordering::Relaxed);
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
            .map_err(|errno| Error::system("raise RLIMIT_NOFILE to its hard limit", errno))?;
    }
    Ok(hard)
}

/// The soft and the hard descriptor limit.
///
/// # Errors
/// `getrlimit` failed.
pub fn descriptor_limits() -> Result<(u64, u64)> {
    getrlimit(Resource::RLIMIT_NOFILE).map_err(|errno| Error::system("read RLIMIT_NOFILE", errno))
}

/// The soft descriptor limit, as a number of descriptors.
///
/// # Errors
/// `getrlimit` failed.
pub fn descriptors_max() -> Result<usize> {
    let (soft, _) = descriptor_limits()?;
    Ok(usize::try_from(soft).unwrap_or(usize::MAX))
}

/// Runs `step` with the soft descriptor limit lowered by `held_back`.
///
/// A multishot accept keeps the limit in force when it was armed. Armed here, it never takes the
/// last `held_back` descriptors, so that the process can still start a worker when connections have
/// used up all others.
pub fn with_descriptors_held_back<T>(held_back: u64, step: impl FnOnce() -> T) -> T {
    let Ok((soft, hard)) = descriptor_limits() else {
        return step();
    };
    let lowered = soft.saturating_sub(held_back).max(soft / 2);
    if setrlimit(Resource::RLIMIT_NOFILE, lowered, hard).is_err() {
        return step();
    }
    let result = step();
    // Fails only if another process has lowered the hard limit, and the soft one with it, since.
    let _ = setrlimit(Resource::RLIMIT_NOFILE, soft, hard);
    result
}

/// Runs `step` with a soft limit of 0 for locked memory (`RLIMIT_MEMLOCK`). Use it only in a
/// process without other threads.
pub(crate) fn without_locked_memory<T>(step: impl FnOnce() -> T) -> Option<T> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_MEMLOCK).ok()?;
    setrlimit(Resource::RLIMIT_MEMLOCK, 0, hard).ok()?;
    let result = step();
    setrlimit(Resource::RLIMIT_MEMLOCK, soft, hard).ok()?;
    Some(result)
}

/// Runs `step` with the soft descriptor limit raised to the hard one, for descriptors that must not
/// be lost even if the limit has been lowered.
pub fn with_all_descriptors<T>(step: impl FnOnce() -> T) -> T {
    match descriptor_limits() {
        Ok((soft, hard)) if soft < hard => {
            let raised = setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok();
            let result = step();
            // Unless another thread or process has set a different limit in between.
            let is_ours = descriptor_limits().is_ok_and(|now| now == (hard, hard));
            if raised && is_ours {
                let _ = setrlimit(Resource::RLIMIT_NOFILE, soft, hard);
            }
            result
        }
        _ => step(),
    }
}

/// Number of open descriptors of this process.
#[must_use]
pub fn descriptors_open() -> usize {
    // Reading the directory itself uses one descriptor.
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
