//! The paths of the admin interface, and the answers to read-only requests.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Method, Response, StatusCode, Uri, header};
use axum::response::IntoResponse as _;
use axum::routing::{get, post};
use hyper::body::{Bytes, Frame};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::answers::{Refused, json, typed};
use super::exposition::Format;
use super::views::{ListenerView, ListenersView, RefusedView};
use super::{Run, actions, metrics, observed, policy};

/// Every path, listed in the answer to an unknown one.
const PATHS: [&str; 15] = [
    "GET /livez",
    "GET /readyz",
    "GET /metrics",
    "GET /workers",
    "GET /listeners",
    "GET /config",
    "GET /policy",
    "GET /events",
    "POST /reload",
    "POST /scale?workers=N",
    "POST /drain",
    "POST /policy?NAME=VALUE",
    "POST /workers/ID/drain",
    "POST /workers/ID/kill",
    "POST /workers/ID/replace",
];

/// How long a scrape waits for the listeners: less than scrapers wait for it.
const LISTENERS_WITHIN: Duration = Duration::from_secs(5);
/// Lines queued for one reader.
const LINES_MAX: usize = 16;

/// Marks an answer without a time limit: it lasts as long as its reader.
#[derive(Clone, Copy, Debug)]
pub(super) struct Following;

/// The routes.
pub(super) fn router(run: Arc<Run>) -> Router {
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(show_metrics))
        .route("/workers", get(show_workers))
        .route("/listeners", get(show_listeners))
        .route("/config", get(show_config))
        .route("/events", get(follow))
        .route("/policy", get(policy::show).post(policy::change))
        .route("/reload", post(actions::reload))
        .route("/scale", post(actions::scale))
        .route("/drain", post(actions::drain))
        .route("/workers/{id}/drain", post(actions::drain_worker))
        .route("/workers/{id}/kill", post(actions::kill_worker))
        .route("/workers/{id}/replace", post(actions::replace_worker))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .with_state(run)
}

/// The answer to another user's process.
pub(super) fn stranger() -> Response<Body> {
    Refused::new(
        StatusCode::FORBIDDEN,
        "this run belongs to another user",
        "ask as its user, or as root",
    )
    .into_response()
}

/// The answer to a request that a web page of the internet may have sent.
pub(super) fn rebound() -> Response<Body> {
    Refused::new(
        StatusCode::FORBIDDEN,
        "a loopback address is asked for by a name of the internet, as web pages can",
        "name the address itself, or localhost",
    )
    .into_response()
}

async fn unknown_path(uri: Uri) -> Response<Body> {
    let view = RefusedView {
        error: format!("there is no {}", uri.path()),
        remedy: "ask for one of the paths".into(),
        paths: PATHS.map(str::to_owned).to_vec(),
    };
    json(StatusCode::NOT_FOUND, &view)
}

async fn wrong_method(method: Method, uri: Uri) -> Refused {
    Refused::new(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("{method} is not for {}", uri.path()),
        "GET reads, POST acts; the field Allow names what this path accepts",
    )
}

async fn livez() -> Response<Body> {
    typed(StatusCode::OK, "text/plain", "ok\n")
}

async fn readyz(State(run): State<Arc<Run>>) -> Response<Body> {
    match observed::readiness(&run.handle.snapshot()) {
        Ok(()) => typed(StatusCode::OK, "text/plain", "ok\n"),
        Err(why) => typed(StatusCode::SERVICE_UNAVAILABLE, "text/plain", format!("{why}\n")),
    }
}

async fn show_metrics(State(run): State<Arc<Run>>, fields: HeaderMap) -> Response<Body> {
    let accept = fields.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let format = Format::accepted(accept.unwrap_or_default());
    // Without the control plane's answer the other numbers are still useful.
    let listeners = timeout(LISTENERS_WITHIN, run.cluster.listeners_async()).await;
    let listeners = listeners.map_or_else(|_| Vec::new(), Result::unwrap_or_default);
    typed(StatusCode::OK, format.content_type(), metrics::render(&run, &listeners, format))
}

async fn show_workers(State(run): State<Arc<Run>>) -> Response<Body> {
    json(StatusCode::OK, &observed::workers(&run))
}

async fn show_listeners(State(run): State<Arc<Run>>) -> Result<Response<Body>, Refused> {
    let listeners = run.cluster.listeners_async().await?;
    let counts = run.cluster.listener_counts();
    let listeners = listeners.into_iter().map(|one| {
        let counts = counts.get(&one.id);
        ListenerView::new(one, counts)
    });
    Ok(json(StatusCode::OK, &ListenersView { listeners: listeners.collect() }))
}

async fn show_config(State(run): State<Arc<Run>>) -> Response<Body> {
    let mut config = run.config.clone();
    if let Some(config) = config.as_object_mut() {
        config.extend(policy::current(&run.cluster.settings()));
    }
    json(StatusCode::OK, &config)
}

/// The lines of `--json`, from now on.
async fn follow(State(run): State<Arc<Run>>) -> Result<Response<Body>, Refused> {
    let Ok(permit) = Arc::clone(&run.followers).try_acquire_owned() else {
        return Err(Refused::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{} readers follow the events already", super::FOLLOWERS_MAX),
            "end one of them",
        ));
    };
    let Some(mut lines) = run.feed.subscribe() else { return Err(actions::ending()) };
    let (sender, receiver) = mpsc::channel(LINES_MAX);
    tokio::spawn(async move {
        loop {
            use tokio::sync::broadcast::error::RecvError;
            let line = tokio::select! {
                line = lines.recv() => line,
                () = sender.closed() => return,
            };
            let line = match line {
                Ok(line) => format!("{line}\n"),
                Err(RecvError::Lagged(count)) => {
                    format!("{{\"event\":\"note\",\"text\":\"{count} lines were missed\"}}\n")
                }
                Err(RecvError::Closed) => return,
            };
            if sender.send(Bytes::from(line)).await.is_err() {
                return;
            }
        }
    });
    let body = Body::new(EndlessBody { receiver, _permit: permit });
    let mut response = typed(StatusCode::OK, "application/x-ndjson", body);
    response.extensions_mut().insert(Following);
    Ok(response)
}

/// A body without an end.
struct EndlessBody {
    receiver: mpsc::Receiver<Bytes>,
    _permit: OwnedSemaphorePermit,
}

impl hyper::body::Body for EndlessBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.receiver.poll_recv(context).map(|line| line.map(|line| Ok(Frame::data(line))))
    }
}
