//! An address that has been asked for: waited for by threads and by tasks alike.
//!
//! Owns that nothing is left behind when nobody waits any more: what the primary then gives is
//! given back.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::shared::{Grant, Shared};
use crate::error::{Error, Result};

/// An address on its way from the primary, which opens it: `await` it on any runtime, or
/// [`wait`](Self::wait) for it. Dropping it takes the request back.
#[must_use = "the address is asked for; wait for it, or it is given back"]
pub struct ListenFuture<T> {
    shared: Arc<Shared>,
    stage: Stage,
    /// What becomes of the primary's answer.
    take: fn(&Arc<Shared>, Grant) -> Result<T>,
}

#[derive(Debug)]
enum Stage {
    /// The primary has been asked.
    Asked { sequence: u32, address: String },
    /// It could not be.
    Failed(Error),
    /// The answer has been given on.
    Done,
}

impl<T> ListenFuture<T> {
    /// Asks, unless finding out what for has failed.
    pub(crate) fn new(
        shared: &Arc<Shared>,
        asked: Result<(u32, String)>,
        take: fn(&Arc<Shared>, Grant) -> Result<T>,
    ) -> Self {
        let stage = match asked {
            Ok((sequence, address)) => Stage::Asked { sequence, address },
            Err(error) => Stage::Failed(error),
        };
        Self { shared: Arc::clone(shared), stage, take }
    }

    /// Blocks the thread until the primary has answered.
    ///
    /// # Errors
    /// As awaiting it.
    pub fn wait(mut self) -> Result<T> {
        match std::mem::replace(&mut self.stage, Stage::Done) {
            Stage::Asked { sequence, address } => {
                let grant = self.shared.await_answer(sequence);
                self.finish(&address, grant)
            }
            Stage::Failed(error) => Err(error),
            Stage::Done => unreachable!("it is taken by its only wait"),
        }
    }

    fn finish(&self, address: &str, grant: Result<Grant>) -> Result<T> {
        let grant = grant.map_err(|error| match error {
            // The primary does not say it again.
            Error::Listen { step, source, .. } => {
                Error::Listen { address: address.to_owned(), step, source }
            }
            error => error,
        })?;
        (self.take)(&self.shared, grant)
    }
}

impl<T> Future for ListenFuture<T> {
    type Output = Result<T>;

    /// # Panics
    /// When it is polled after its end.
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<T>> {
        match std::mem::replace(&mut self.stage, Stage::Done) {
            Stage::Asked { sequence, address } => {
                match self.shared.poll_answer(sequence, context) {
                    Poll::Ready(grant) => Poll::Ready(self.finish(&address, grant)),
                    Poll::Pending => {
                        self.stage = Stage::Asked { sequence, address };
                        Poll::Pending
                    }
                }
            }
            Stage::Failed(error) => Poll::Ready(Err(error)),
            Stage::Done => panic!("an address is given once, and was awaited again"),
        }
    }
}

impl<T> Drop for ListenFuture<T> {
    fn drop(&mut self) {
        if let Stage::Asked { sequence, .. } = self.stage {
            self.shared.forget_request(sequence);
        }
    }
}

impl<T> fmt::Debug for ListenFuture<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opening").field("stage", &self.stage).finish_non_exhaustive()
    }
}
