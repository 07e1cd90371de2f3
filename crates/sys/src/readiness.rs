//! Waits for a descriptor inside a tokio runtime.
//!
//! Owns a duplicate of the descriptor, so that the registered one stays open and unchanged for the
//! duration of the registration.

use std::os::fd::{AsFd, OwnedFd};
use std::task::Poll;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::error::{Error, Result, errno_of};

/// The readiness of a descriptor.
#[derive(Debug)]
pub struct Readiness {
    descriptor: AsyncFd<OwnedFd>,
}

impl Readiness {
    /// Registers `descriptor` for reading. Call it inside a runtime.
    ///
    /// # Errors
    /// Descriptors are exhausted, or this one cannot be polled.
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

    /// Waits until there may be something to read. Until it is read, further waits end at once.
    ///
    /// # Errors
    /// The runtime is shutting down.
    pub async fn readable(&self) -> Result<()> {
        let guard = self.descriptor.readable().await;
        guard.map(drop).map_err(|error| Error::system("wait for a descriptor", errno_of(&error)))
    }

    /// Repeats an attempt whenever there may be something to read, until it succeeds. Several tasks
    /// may do so concurrently, on any thread. Cancel safe.
    ///
    /// # Errors
    /// Those of the attempt, or the runtime is shutting down.
    pub async fn until<T>(&self, mut attempt: impl FnMut() -> Result<Poll<T>>) -> Result<T> {
        loop {
            let ready = self.descriptor.readable().await;
            let mut ready =
                ready.map_err(|error| Error::system("wait for a descriptor", errno_of(&error)))?;
            if let Poll::Ready(found) = attempt()? {
                return Ok(found);
            }
            // Clears only the readiness known before the attempt; what arrived during it stays.
            ready.clear_ready();
        }
    }
}
