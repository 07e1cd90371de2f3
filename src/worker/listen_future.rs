//! A pending request for an address, for threads and tasks.
//!
//! Owns the clean-up: if the requester gives up, an address that the primary opens later is
//! returned to it.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::shared::{Grant, Shared};
use crate::error::{Error, Result};

/// A requested address. `await` it on any runtime, or block with [`wait`](Self::wait). Dropping it
/// cancels the request.
#[must_use = "the address is asked for; wait for it, or it is given back"]
pub struct ListenFuture<T> {
    shared: Arc<Shared>,
    stage: Stage,
    /// Converts the primary's reply.
    take: fn(&Arc<Shared>, Grant) -> Result<T>,
}

#[derive(Debug)]
enum Stage {
    /// The request has been sent.
    Asked { sequence: u32, address: String },
    /// The request could not be sent.
    Failed(Error),
    /// The result has been returned.
    Done,
}

impl<T> ListenFuture<T> {
    /// Sends the request, unless `address` is already an error.
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

    /// Blocks the thread until the primary replies.
    ///
    /// # Errors
    /// As for awaiting it.
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
            // The primary does not repeat the address.
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
    /// If polled after completion.
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
