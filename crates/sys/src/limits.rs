//! RLIMIT_NOFILE: raising it, what is left of it, and holding some of it back.

use std::fs;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::error::{Error, Result};

/// Raises the soft descriptor limit to the hard one and tells it (`setrlimit(2)`).
///
/// # Errors
/// `getrlimit` or `setrlimit` refused, which a healthy kernel never does.
pub fn raise_descriptor_limit() -> Result<u64> {
    let (soft, hard) = descriptor_limits()?;
    if soft < hard {
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
