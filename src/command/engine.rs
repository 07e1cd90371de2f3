//! Which options of a run need io_uring, and which engine the run gets.

use clusterlb::{AcceptMechanism, EngineChoice, EngineDecision, EngineKind, Policy};
use clusterlb::{Error, Result};
use clusterlb_sys::probe;
use nix::errno::Errno;

use super::needs;
use super::settings::{Runtime, Settings};

/// Decides, once for the primary and all workers.
///
/// # Errors
/// [`Error::Environment`] where io_uring is asked for, or needed, and unavailable; [`Error::Usage`]
/// where epoll is asked for together with an option that needs io_uring.
pub(super) fn decide(settings: &Settings) -> Result<EngineDecision> {
    let needed = needs_ring(settings);
    if let (EngineChoice::Epoll, Some((what, instead))) = (settings.engine, needed) {
        let what = format!("{what} needs io_uring, and the engine asked for is epoll");
        return Err(Error::usage(what, format!("leave the engine out, or {instead}")));
    }
    let decision = match is_refused_to_workers(settings, probe::io_uring_disabled()) {
        true => EngineDecision {
            kind: EngineKind::Epoll,
            level: None,
            reason: "kernel.io_uring_disabled is 1, which may refuse workers that run as another \
                     user"
                .into(),
        },
        false => settings.engine.decide().map_err(|error| with_way_out(error, settings.engine))?,
    };
    match (decision.kind, needed) {
        (EngineKind::Epoll, Some((what, instead))) => Err(Error::Environment {
            step: format!("{what} needs io_uring ({})", decision.reason),
            source: Errno::EOPNOTSUPP.into(),
            hint: format!("{instead}; `clusterlb check` says what refuses io_uring here"),
        }),
        _ => Ok(decision),
    }
}

/// Adds the option for epoll to the error where io_uring is asked for and refused. A lack of memory
/// or descriptors is not a refusal.
fn with_way_out(error: Error, choice: EngineChoice) -> Error {
    match error {
        Error::Environment { step, source, hint }
            if choice == EngineChoice::IoUring
                && !matches!(source.into(), Errno::ENOMEM | Errno::EMFILE | Errno::ENFILE) =>
        {
            Error::Environment { step, source, hint: format!("{hint}: --engine auto") }
        }
        error => error,
    }
}

/// Decides, and makes sure of the locked memory for rings. Returns the limit of each ring, if there
/// is one.
///
/// # Errors
/// As [`decide`]; [`Error::Environment`] where the smallest rings do not fit.
pub(super) fn decide_with_memory(
    settings: &Settings,
    workers: usize,
) -> Result<(EngineDecision, Option<u64>)> {
    let decision = decide(settings)?;
    if decision.kind != EngineKind::IoUring {
        return Ok((decision, None));
    }
    // External programs have no ring.
    let workers = if settings.program.is_none() { workers } else { 0 };
    needs::ring_share(workers, settings.backlog).map(|share| (decision, share))
}

/// The primary may create a ring where workers of another user may not; probing here does not show
/// it.
fn is_refused_to_workers(settings: &Settings, io_uring_disabled: Option<u8>) -> bool {
    let changes_user = settings.program.is_none() && settings.worker_environment.user.is_some();
    settings.engine == EngineChoice::Auto && changes_user && io_uring_disabled == Some(1)
}

/// The option that needs a ring, and one that does not.
fn needs_ring(settings: &Settings) -> Option<(&'static str, &'static str)> {
    if settings.program.is_some() {
        return None;
    }
    match (settings.policy, settings.accept) {
        (Policy::None, AcceptMechanism::Uring) => {
            return Some(("--accept uring", "use --accept epoll"));
        }
        (Policy::None, AcceptMechanism::UringMultishot) => {
            return Some(("--accept uring-multishot", "use --accept epoll"));
        }
        _ => {}
    }
    match settings.serve.runtime {
        Runtime::Ring => None,
        #[cfg(feature = "tokio-uring")]
        Runtime::TokioUring => Some(("--runtime tokio-uring", "use --runtime ring")),
    }
}
