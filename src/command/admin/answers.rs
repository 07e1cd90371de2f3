//! Answers of the admin interface: JSON with a status, and refusals with a remedy.

use axum::body::Body;
use axum::http::{Response, StatusCode, header};
use axum::response::IntoResponse;
use clusterlb::{Error, ErrorKind};
use serde::Serialize;

use super::query::Wrong;
use super::views::RefusedView;

/// An answer in JSON.
pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    let mut text = serde_json::to_string(value).expect("views are plain data with string keys");
    text.push('\n');
    typed(status, "application/json", text)
}

/// An answer of another type. It must not be cached: it describes the present moment.
pub(super) fn typed(
    status: StatusCode,
    kind: &'static str,
    body: impl Into<Body>,
) -> Response<Body> {
    let fields = [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-store")];
    (status, fields, body.into()).into_response()
}

/// A refusal.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) status: StatusCode,
    pub(super) view: RefusedView,
}

impl Refused {
    pub(super) fn new(
        status: StatusCode,
        error: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let view = RefusedView { error: error.into(), remedy: remedy.into(), paths: Vec::new() };
        Self { status, view }
    }
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        let status = match error.kind() {
            ErrorKind::Usage => StatusCode::UNPROCESSABLE_ENTITY,
            ErrorKind::NoSuchWorker => StatusCode::NOT_FOUND,
            ErrorKind::Busy
            | ErrorKind::Ended
            | ErrorKind::ReloadStopped
            | ErrorKind::StartFailed => StatusCode::CONFLICT,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let remedy = match error.kind() {
            ErrorKind::NoSuchWorker => "GET /workers lists those that there are".into(),
            _ => error.hint(),
        };
        Self::new(status, error.to_string(), remedy)
    }
}

impl From<Wrong> for Refused {
    fn from(Wrong { is_nowhere, error, remedy }: Wrong) -> Self {
        let status = match is_nowhere {
            true => StatusCode::NOT_FOUND,
            false => StatusCode::UNPROCESSABLE_ENTITY,
        };
        Self::new(status, error, remedy)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response<Body> {
        json(self.status, &self.view)
    }
}
