//! A descriptor that wakes a thread which waits for it (`eventfd(2)`).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::error::{Error, Result};

/// Wakes a thread that polls the descriptor. Wakes that come before the thread looks are one.
#[derive(Debug)]
pub struct Waker {
    descriptor: EventFd,
}

impl Waker {
    /// A waker that is clear.
    ///
    /// # Errors
    /// Too few descriptors.
    pub fn new() -> Result<Self> {
        EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map(|descriptor| Self { descriptor })
            .map_err(|errno| Error::system("create a waker (eventfd)", errno))
    }

    /// The waker behind an inherited descriptor, whose other end is in another process.
    #[must_use]
    pub fn inherited(descriptor: OwnedFd) -> Self {
        // SAFETY: any descriptor can be held as an eventfd; one of another kind fails to write.
        let descriptor = unsafe { EventFd::from_owned_fd(descriptor) };
        Self { descriptor }
    }

    /// Makes the descriptor readable. One that is readable stays so.
    pub fn wake(&self) {
        let _ = self.descriptor.write(1);
    }

    /// Makes the descriptor wait for the next wake. Tells whether there was one.
    pub fn clear(&self) -> bool {
        self.descriptor.read().is_ok()
    }
}

impl From<Waker> for OwnedFd {
    fn from(waker: Waker) -> Self {
        waker.descriptor.into()
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wakes_are_one_until_they_are_cleared() {
        let waker = Waker::new().expect("a descriptor");
        assert!(!waker.clear());
        waker.wake();
        waker.wake();
        assert!(waker.clear());
        assert!(!waker.clear());
        let other = waker.as_fd().try_clone_to_owned().expect("a descriptor");
        Waker::inherited(other).wake();
        assert!(waker.clear());
    }
}
