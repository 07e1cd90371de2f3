//! `--seccomp`: the primary and the built-in workers may make only the system calls that they need.
//!
//! Owns when each role is confined and what becomes of another call; `calls.rs` has the lists with
//! the reasons. A filter is inherited, so the primary's list contains what a worker needs to start,
//! and a program other than the built-in worker cannot run behind it.

mod calls;

use std::sync::atomic::AtomicU64;

use clusterlb::{EngineKind, Result};
use clusterlb_sys::engine::ring;
use clusterlb_sys::seccomp::{self, Refusal};

/// Restricts the rings that this process creates from now on, whose operations no filter sees.
pub(super) fn restrict_rings() {
    ring::restrict_operations();
}

/// Confines the primary, before it opens anything. Another call fails with EPERM and is reported:
/// a run that serves does not end because of a call that this list forgets.
///
/// # Errors
/// The kernel has no seccomp, or a sandbox forbids it.
pub(super) fn confine_primary() -> Result<()> {
    seccomp::confine(calls::of_primary(), Refusal::Fails)
}

/// Confines a built-in worker, once it has its engine. Another call ends it by SIGSYS and is
/// reported, also in `record` for the primary, which replaces it.
///
/// # Errors
/// As [`confine_primary`].
pub(super) fn confine_worker(engine: EngineKind, record: &'static AtomicU64) -> Result<()> {
    seccomp::confine(calls::of_worker(engine), Refusal::Ends(record))
}

/// The name of a system call, or its number.
pub(super) fn in_words(call: u32) -> String {
    seccomp::name_of(call).map_or_else(|| format!("system call {call}"), str::to_owned)
}
