//! Waiting for a descriptor inside a tokio runtime.
//!
//! Owns a duplicate of the descriptor, so that what is registered stays open and the same for as
//! long as it is registered, whatever becomes of the original.

use std::os::fd::{AsFd, OwnedFd};
use std::task::Poll;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::error::{Error, Result, errno_of};

/// A descriptor's readiness.
#[derive(Debug)]
pub struct Readiness {
    descriptor: AsyncFd<OwnedFd>,
}

impl Readiness {
    /// Watches `descriptor` for something to read. Must be called inside a runtime.
    ///
    /// # Errors
    /// Too few descriptors, or the descriptor cannot be watched.
    pub fn of(descriptor: &impl AsFd) -> Result<Self> {
        let failed =
            |error| Error::system("watch a descriptor inside the runtime", errno_of(&error));
        let duplicate = descriptor.as_fd().try_clone_to_owned().map_err(failed)?;
        // SAFETY: the registered descriptor is owned by the registration and nothing can take or
        // replace it, so it stays open and the same until it is deregistered.
        let registered = unsafe { AsyncFd::register_with_interest(duplicate, Interest::READABLE) };
        let descriptor = registered.map_err(|error| failed(error.into()))?;
        Ok(Self { descriptor })
    }

    /// Waits until there may be something to read. Whoever then finds nothing calls
    /// [`Readiness::exhausted`]; without that, the next wait ends at once.
    ///
    /// # Errors
    /// The runtime is shutting down.
    pub async fn readable(&self) -> Result<()> {
        let guard = self.descriptor.readable().await;
        guard.map(drop).map_err(|error| Error::system("wait for a descriptor", errno_of(&error)))
    }

    /// Makes an attempt whenever there may be something to read, until one comes to something.
    /// Several tasks may do so at once, on any thread. Nothing is lost when it is dropped.
    ///
    /// # Errors
    /// What the attempt says; the runtime is shutting down.
    pub async fn until<T>(&self, mut attempt: impl FnMut() -> Result<Poll<T>>) -> Result<T> {
        loop {
            let ready = self.descriptor.readable().await;
            let mut ready =
                ready.map_err(|error| Error::system("wait for a descriptor", errno_of(&error)))?;
            if let Poll::Ready(found) = attempt()? {
                return Ok(found);
            }
            // Only forgets what was known before the attempt; what came during it stays.
            ready.clear_ready();
        }
    }

    /// Nothing was left to read.
    pub async fn exhausted(&self) {
        if let Ok(mut guard) = self.descriptor.readable().await {
            guard.clear_ready();
        }
    }
}
