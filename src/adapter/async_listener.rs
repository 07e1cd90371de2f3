//! A listener with an asynchronous `accept`, for every runtime built on tokio's readiness.

use crate::error::Result;
use crate::sys::readiness::Readiness;
use crate::worker::{Connection, Listener};

/// A listener and the readiness of its descriptor.
#[derive(Debug)]
pub(super) struct AsyncListener {
    // Declared first, so that the descriptor is deregistered before its original is closed.
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
