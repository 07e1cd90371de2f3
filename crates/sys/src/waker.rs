//! A descriptor that wakes a waiting thread (`eventfd(2)`).

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::error::{Error, Result};

/// Wakes a thread that polls the descriptor. Several wakes before it is cleared count as one.
#[derive(Debug)]
pub struct Waker {
    descriptor: EventFd,
}

impl Waker {
    /// Creates a cleared waker.
    ///
    /// # Errors
    /// Descriptors are exhausted.
    pub fn new() -> Result<Self> {
        EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map(|descriptor| Self { descriptor })
            .map_err(|errno| Error::system("create a waker (eventfd)", errno))
    }

    /// Wraps an inherited eventfd that wakes another process.
    #[must_use]
    pub fn inherited(descriptor: OwnedFd) -> Self {
        // SAFETY: any descriptor can be held as an eventfd; one of another kind fails to write.
        let descriptor = unsafe { EventFd::from_owned_fd(descriptor) };
        Self { descriptor }
    }

    /// Makes the descriptor readable, if it is not already.
    pub fn wake(&self) {
        let _ = self.descriptor.write(1);
    }

    /// Resets the descriptor and returns whether it had been woken. Never blocks, even if another
    /// process that shares the descriptor has made it blocking.
    pub fn clear(&self) -> bool {
        let mut count = [0_u8; 8];
        let part = libc::iovec { iov_base: count.as_mut_ptr().cast(), iov_len: count.len() };
        let raw = self.descriptor.as_fd().as_raw_fd();
        // SAFETY: the kernel writes at most eight bytes to `count`, which lives during the call.
        let read = unsafe { libc::preadv2(raw, &raw const part, 1, -1, libc::RWF_NOWAIT) };
        match Errno::result(read) {
            Ok(_) => true,
            // Kernels without this flag rely on the descriptor being non-blocking.
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => self.descriptor.read().is_ok(),
            Err(_) => false,
        }
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
    use nix::fcntl::{FcntlArg, OFlag, fcntl};

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

    #[test]
    fn to_clear_never_waits_whatever_another_holder_does() {
        let waker = Waker::new().expect("a descriptor");
        let other = waker.as_fd().try_clone_to_owned().expect("a descriptor");
        fcntl(&other, FcntlArg::F_SETFL(OFlag::empty())).expect("it is open");
        assert!(!waker.clear());
        Waker::inherited(other).wake();
        assert!(waker.clear() && !waker.clear());
    }
}
