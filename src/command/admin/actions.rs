//! The actions of the admin interface. Each asks the supervisor and answers once it has succeeded
//! or failed.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, Response, StatusCode, header};
use clusterlb::{Completion, Result as ClusterResult, SupervisorHandle};

use super::Run;
use super::answers::{Refused, json};
use super::door::Access;
use super::query::{ActionParameters, grace, parameters, worker, workers};
use super::views::DoneView;

type Answer = Result<Response<Body>, Refused>;

/// The client and its request.
pub(super) type Asking = (Extension<Access>, HeaderMap, Query<Vec<(String, String)>>);

/// What every action takes.
const WAIT: &str = "wait";

pub(super) fn ending() -> Refused {
    Refused::new(StatusCode::CONFLICT, "the run is ending", "start another one")
}

pub(super) async fn reload(State(run): State<Arc<Run>>, asking: Asking) -> Answer {
    let parameters = permitted(asking, &[WAIT])?;
    act(&run, &parameters, "every worker is replaced", |handle| handle.reload()).await
}

pub(super) async fn drain(State(run): State<Arc<Run>>, asking: Asking) -> Answer {
    let parameters = permitted(asking, &["grace", WAIT])?;
    let grace = parameters.grace.as_deref().map(grace).transpose()?;
    // The interface ends with the run, so it cannot answer afterwards.
    let parameters = ActionParameters { at_once: true, ..parameters };
    act(&run, &parameters, "the run drains, and ends", move |handle| handle.stop(grace)).await
}

pub(super) async fn scale(State(run): State<Arc<Run>>, asking: Asking) -> Answer {
    let parameters = permitted(asking, &["workers", WAIT])?;
    // Held until the number has changed, so two concurrent steps add up.
    let guard = run.scaling.lock().await;
    let now = run.ledger().wanted;
    let workers = workers(parameters.workers.as_deref().unwrap_or_default(), now)?;
    let asked = ask(&run, move |handle| handle.scale(workers)).await?;
    drop(guard);
    finish(asked, &parameters, &format!("{workers} workers")).await
}

pub(super) async fn drain_worker(
    State(run): State<Arc<Run>>,
    Path(id): Path<String>,
    asking: Asking,
) -> Answer {
    let (worker, parameters) = (worker(&id)?, permitted(asking, &[WAIT])?);
    let done = format!("worker {worker} has left");
    act(&run, &parameters, &done, move |handle| handle.drain(worker)).await
}

pub(super) async fn kill_worker(
    State(run): State<Arc<Run>>,
    Path(id): Path<String>,
    asking: Asking,
) -> Answer {
    let (worker, parameters) = (worker(&id)?, permitted(asking, &[WAIT])?);
    let done = format!("worker {worker} has ended");
    act(&run, &parameters, &done, move |handle| handle.kill(worker)).await
}

pub(super) async fn replace_worker(
    State(run): State<Arc<Run>>,
    Path(id): Path<String>,
    asking: Asking,
) -> Answer {
    let (worker, parameters) = (worker(&id)?, permitted(asking, &[WAIT])?);
    let done = format!("worker {worker} is replaced");
    act(&run, &parameters, &done, move |handle| handle.replace(worker)).await
}

/// Runs an action.
async fn act(
    run: &Arc<Run>,
    parameters: &ActionParameters,
    done: &str,
    what: impl FnOnce(&SupervisorHandle) -> ClusterResult<Completion> + Send + 'static,
) -> Answer {
    let asked = ask(run, what).await?;
    finish(asked, parameters, done).await
}

/// The parameters, if this client may act and the action knows them.
fn permitted(
    (Extension(access), fields, Query(pairs)): Asking,
    known: &[&str],
) -> Result<ActionParameters, Refused> {
    ensure_permitted(access, &fields)?;
    Ok(parameters(pairs, known)?)
}

/// Whether this client may act. Browsers send the origin of the page that asks; no web page may
/// act.
pub(super) fn ensure_permitted(access: Access, fields: &HeaderMap) -> Result<(), Refused> {
    let refused =
        |error: &str, remedy: &str| Err(Refused::new(StatusCode::FORBIDDEN, error, remedy));
    if access != Access::Full {
        return refused(
            "this address allows no actions",
            "use a unix socket, or start the run with --admin-allow-actions",
        );
    }
    if fields.contains_key(header::ORIGIN) {
        return refused(
            "a web page sent this request",
            "use the command, or a client that is no browser",
        );
    }
    Ok(())
}

/// An action in progress and the permit it holds.
type Asked = (Completion, tokio::sync::OwnedSemaphorePermit);

/// Asks the supervisor on a thread that may block.
async fn ask(
    run: &Arc<Run>,
    what: impl FnOnce(&SupervisorHandle) -> ClusterResult<Completion> + Send + 'static,
) -> Result<Asked, Refused> {
    let Ok(permit) = Arc::clone(&run.actions).try_acquire_owned() else {
        return Err(Refused::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{} actions are under way already", super::ACTIONS_MAX),
            "wait for the answer to one of them",
        ));
    };
    let handle = run.handle.clone();
    match tokio::task::spawn_blocking(move || what(&handle)).await {
        Ok(completion) => Ok((completion?, permit)),
        Err(_) => Err(ending()),
    }
}

async fn finish((completion, _permit): Asked, parameters: &ActionParameters, done: &str) -> Answer {
    if parameters.at_once {
        let done = format!("requested: {done}");
        return Ok(json(StatusCode::ACCEPTED, &DoneView { done }));
    }
    completion.clone().await;
    match completion.failure() {
        Some(error) => Err(error.into()),
        None => Ok(json(StatusCode::OK, &DoneView { done: done.to_owned() })),
    }
}
