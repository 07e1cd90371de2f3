//! What a run needs of the machine in addition to io_uring: descriptors, locked memory, kernel
//! facilities, the right to choose CPUs.
//!
//! Owns the numbers. `check` shows them and a run refuses to start without them, so the two agree.

use clusterlb::topology::Pin;
use clusterlb::{Error, Result};
use clusterlb_sys::engine::RingShape;
use clusterlb_sys::limits;
use clusterlb_sys::probe::{self, Facility};
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};

use super::server;

/// Descriptors of the primary in addition to connections: its own, and some per worker.
const DESCRIPTORS_BASE: u64 = 64;
const DESCRIPTORS_PER_WORKER: u64 = 6;
/// Locked memory of a worker with the smallest ring: two pages of queues and two of buffers.
const RING_BYTES_LEAST: u64 = 16 * 1024;
/// Rings in addition to those of the workers: the primary's, and a successor's during a reload.
const FURTHER_RINGS: u64 = 2;

/// Descriptors that a primary needs with this many workers.
pub(super) fn descriptors(workers: usize) -> u64 {
    DESCRIPTORS_BASE + workers as u64 * DESCRIPTORS_PER_WORKER
}

/// Locked memory for the rings of a run, at most and at least.
pub(super) fn locked_bytes(workers: usize, backlog: u32) -> (u64, u64) {
    let rings = workers as u64 + FURTHER_RINGS;
    let primary = RingShape::for_backlog(backlog).locked_bytes();
    let most = primary + (rings - 1) * server::ring_bytes();
    (most, rings * RING_BYTES_LEAST)
}

/// Ensures everything but the engine before the run begins.
///
/// # Errors
/// [`Error::Environment`] names what is missing, and the setting that provides it.
pub(super) fn ensure(workers: usize) -> Result<()> {
    ensure_descriptors(workers)?;
    for facility in Facility::ALL.into_iter().filter(|one| *one != Facility::Process) {
        facility.attempt().map_err(refused)?;
    }
    Ok(())
}

/// Leaves the choice of CPUs to the kernel where it allows nothing else.
///
/// # Errors
/// [`Error::Environment`]: the options ask for particular CPUs.
pub(super) fn pin(wanted: &Pin) -> Result<Pin> {
    match wanted {
        Pin::None => Ok(Pin::None),
        wanted if probe::may_pin() => Ok(wanted.clone()),
        Pin::Auto => Ok(Pin::None),
        Pin::List(_) => Err(Error::Environment {
            step: "choose CPUs for the processes (sched_setaffinity)".into(),
            source: Errno::EPERM.into(),
            hint: "allow it in the sandbox, or say --pin none".into(),
        }),
    }
}

/// The error for a facility that does not work here; it names where to allow it.
fn refused(error: Error) -> Error {
    match error {
        Error::System { step, source }
            if matches!(source.into(), Errno::EPERM | Errno::EACCES | Errno::ENOSYS) =>
        {
            let hint = "allow it in the seccomp profile or security policy of the container; \
                        `clusterlb check` lists what is needed";
            Error::Environment { step, source, hint: hint.into() }
        }
        error => error,
    }
}

fn ensure_descriptors(workers: usize) -> Result<()> {
    let limit = limits::raise_descriptor_limit()?;
    let needed = descriptors(workers);
    if limit >= needed {
        return Ok(());
    }
    Err(Error::Environment {
        step: format!("the hard limit of {limit} descriptors is too low for {workers} workers"),
        source: Errno::EMFILE.into(),
        hint: format!("raise it to {needed} or more (`ulimit -Hn`), or start fewer workers"),
    })
}

/// The limit of locked memory per ring, where there is one, for the primary and this many workers
/// with rings.
///
/// # Errors
/// [`Error::Environment`]: the smallest rings do not fit.
pub(super) fn ring_share(workers: usize, backlog: u32) -> Result<Option<u64>> {
    let Ok((limit, _)) = getrlimit(Resource::RLIMIT_MEMLOCK) else { return Ok(None) };
    let (most, _) = locked_bytes(workers, backlog);
    if limit >= most || !probe::counts_locked_memory() {
        return Ok(None);
    }
    share_of(limit, workers, backlog).map(Some)
}

/// The share of each ring in this much locked memory.
///
/// # Errors
/// [`Error::Environment`]: the smallest rings do not fit.
pub(super) fn share_of(limit: u64, workers: usize, backlog: u32) -> Result<u64> {
    let (most, least) = locked_bytes(workers, backlog);
    if limit >= least {
        return Ok(limit / (workers as u64 + FURTHER_RINGS));
    }
    Err(Error::Environment {
        step: format!(
            "the limit of {} KiB of locked memory is too low for the rings of {workers} workers",
            limit / 1024
        ),
        source: Errno::ENOMEM.into(),
        hint: format!(
            "raise `ulimit -l` (LimitMEMLOCK=) to {} KiB, or to {} or more for smaller rings; or \
             start fewer workers",
            most / 1024,
            least / 1024
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_limits_suffice_for_some_dozen_workers() {
        let (most, least) = locked_bytes(36, 4096);
        assert!((7 << 20..9 << 20).contains(&most), "{most}");
        assert_eq!(least, 38 * 16 * 1024);
        assert_eq!(locked_bytes(2, 4096).1, 64 * 1024, "what an older system allows");
        assert_eq!(descriptors(2), 76);
    }
}
