//! Errors of a run or a request, with remedies.

use std::net::SocketAddr;
use std::time::Duration;

use super::ReadyAfter;
use super::state::{Failure, GoalRefusal};
use crate::{Ending, Error, ErrorKind, Signal, WorkerId};

/// Why a run could not continue.
pub(super) fn of_run(
    failure: &Failure,
    (ready_after, limit): (ReadyAfter, Duration),
    refusal: Option<&Error>,
    past_primary: Option<(WorkerId, SocketAddr)>,
) -> Error {
    if let (false, Some((worker, address))) = (is_fatal(failure), past_primary) {
        return Error::cluster(
            ErrorKind::StartFailed,
            format!(
                "worker {worker} itself listens on {address}, so it gets no connection from here"
            ),
            "remove exclusive: true, reusePort: true, or other options that bypass the primary",
        );
    }
    match failure {
        Failure::StartTimeout if ready_after == ReadyAfter::Message => Error::cluster(
            ErrorKind::StartTimeout,
            format!("not every worker serves and has sent the message \"ready\" after {limit:?}"),
            "send it when the program can serve, or do not ask for it",
        ),
        Failure::StartTimeout => Error::cluster(
            ErrorKind::StartTimeout,
            format!("not every worker serves after {limit:?}"),
            "see what they wait for, or give them more time",
        ),
        Failure::StartFailed { worker, fatal: true, .. } => Error::cluster(
            ErrorKind::StartFailed,
            format!("worker {worker} could not start"),
            "its own message says why",
        ),
        Failure::StartFailed { worker, ending, fatal: false } => {
            let hint = match refusal {
                Some(error) => format!("the last address that was refused: {error}"),
                None => "what it has printed says why".to_owned(),
            };
            let how = ending_in_words(*ending);
            let what = format!(
                "worker {worker} ended {how} before it served anything, as did those before it"
            );
            Error::cluster(ErrorKind::StartFailed, what, hint)
        }
        Failure::NoWorkersLeft => Error::cluster(
            ErrorKind::NoWorkersLeft,
            "no worker is left, and none will be started",
            "the exit events say how they ended; the restart policy says which are replaced",
        ),
    }
}

/// Whether the worker has reported why it could not start, or there is nothing to explain.
fn is_fatal(failure: &Failure) -> bool {
    matches!(failure, Failure::StartFailed { fatal: true, .. } | Failure::NoWorkersLeft)
}

fn ending_in_words(ending: Ending) -> String {
    match ending {
        Ending::Code(code) => format!("with exit code {code}"),
        Ending::Signal(number) => match Signal::from_raw(number) {
            Some(signal) => format!("by {signal}"),
            None => format!("by signal {number}"),
        },
    }
}

/// The error of a refused request.
pub(super) fn of_refusal(refusal: &GoalRefusal) -> Error {
    let (kind, what, hint) = match refusal {
        GoalRefusal::NoSuchWorker(worker) => (
            ErrorKind::NoSuchWorker,
            format!("there is no worker {worker}, or it leaves already"),
            "look at a snapshot for those that there are",
        ),
        GoalRefusal::NotServing => (
            ErrorKind::Busy,
            "the workers do not serve yet".to_owned(),
            "wait for the start, and ask again",
        ),
        GoalRefusal::Ending => {
            (ErrorKind::Ended, "the run is ending".to_owned(), "start another one")
        }
        GoalRefusal::Stopped(reason) => (
            ErrorKind::ReloadStopped,
            format!("replacing stopped: {reason}"),
            "workers that had not been replaced stay as they are; remove the cause, and ask again",
        ),
        GoalRefusal::Superseded => (
            ErrorKind::Busy,
            "another number of workers was asked for since".to_owned(),
            "wait for one before you ask for the next",
        ),
        GoalRefusal::GivenUp(count) => (
            ErrorKind::StartFailed,
            format!("{count} slots have no worker: theirs ended too soon, too often"),
            "mend the cause, and reload: that fills them",
        ),
    };
    Error::cluster(kind, what, hint)
}
