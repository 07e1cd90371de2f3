//! A pending request for an address, for threads and tasks.
//!
//! Owns the clean-up: if the requester gives up, an address that the primary opens later is
//! returned to it.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::shared::Shared;
use crate::error::{Error, Result};
use crate::protocol::worker_end::Grant;

/// A requested address. `await` it on any runtime, or block with [`wait`](Self::wait). Dropping it
/// cancels the request.
#[must_use = "the address is asked for; wait for it, or it is given back"]
pub struct BindFuture<T> {
    shared: Arc<Shared>,
    stage: BindStage,
    /// Converts the primary's reply.
    take: fn(&Arc<Shared>, Grant) -> Result<T>,
}

#[derive(Debug)]
enum BindStage {
    /// The request has been sent.
    Asked { sequence: u32 },
    /// The request could not be sent.
    Failed(Error),
    /// The result has been returned.
    Done,
}

impl<T> BindFuture<T> {
    /// Waits for the reply to a request, if it could be sent.
    pub(crate) fn new(
        shared: &Arc<Shared>,
        asked: Result<u32>,
        take: fn(&Arc<Shared>, Grant) -> Result<T>,
    ) -> Self {
        let stage = match asked {
            Ok(sequence) => BindStage::Asked { sequence },
            Err(error) => BindStage::Failed(error),
        };
        Self { shared: Arc::clone(shared), stage, take }
    }

    /// Blocks the thread until the primary replies.
    ///
    /// # Errors
    /// As for awaiting it.
    pub fn wait(mut self) -> Result<T> {
        match std::mem::replace(&mut self.stage, BindStage::Done) {
            BindStage::Asked { sequence } => {
                let grant = self.shared.await_answer(sequence)?;
                (self.take)(&self.shared, grant)
            }
            BindStage::Failed(error) => Err(error),
            BindStage::Done => unreachable!("it is taken by its only wait"),
        }
    }
}

impl<T> Future for BindFuture<T> {
    type Output = Result<T>;

    /// # Panics
    /// If polled after completion.
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<T>> {
        match std::mem::replace(&mut self.stage, BindStage::Done) {
            BindStage::Asked { sequence } => match self.shared.poll_answer(sequence, context) {
                Poll::Ready(grant) => {
                    Poll::Ready(grant.and_then(|grant| (self.take)(&self.shared, grant)))
                }
                Poll::Pending => {
                    self.stage = BindStage::Asked { sequence };
                    Poll::Pending
                }
            },
            BindStage::Failed(error) => Poll::Ready(Err(error)),
            BindStage::Done => panic!("an address is given once, and was awaited again"),
        }
    }
}

impl<T> Drop for BindFuture<T> {
    fn drop(&mut self) {
        if let BindStage::Asked { sequence } = self.stage {
            self.shared.forget_request(sequence);
        }
    }
}

impl<T> fmt::Debug for BindFuture<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BindFuture").field("stage", &self.stage).finish_non_exhaustive()
    }
}
