//! A listener whose connections are awaited, for every runtime that has tokio's readiness below it.

use crate::error::Result;
use crate::sys::readiness::Readiness;
use crate::worker::{Connection, Listener};

/// A listener, and the readiness of its descriptor.
#[derive(Debug)]
pub(super) struct AsyncListener {
    // Deregistered before what it is a duplicate of is closed.
    ready: Readiness,
    listener: Listener,
}

impl AsyncListener {
    pub(super) fn of(listener: Listener) -> Result<Self> {
        Ok(Self { ready: Readiness::of(&listener)?, listener })
    }

    pub(super) async fn accept(&self) -> Result<Option<Connection>> {
        self.ready.until(|| self.listener.try_accept()).await
    }

    pub(super) fn listener(&self) -> &Listener {
        &self.listener
    }
}
