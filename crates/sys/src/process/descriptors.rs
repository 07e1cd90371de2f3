//! Descriptors by number: what a process has inherited, and copies.

use std::os::fd::{BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use crate::error::{Error, Result, errno_of};

/// Duplicates the descriptor with this number.
///
/// # Errors
/// It is not open, or descriptors are exhausted.
pub fn copy_of(number: RawFd) -> Result<OwnedFd> {
    let failed = |errno| Error::system(format!("duplicate descriptor {number}"), errno);
    if number < 0 {
        return Err(failed(Errno::EBADF));
    }
    // SAFETY: the descriptor is only duplicated, and only while this function runs.
    let original = unsafe { BorrowedFd::borrow_raw(number) };
    original.try_clone_to_owned().map_err(|error| failed(errno_of(&error)))
}

/// Duplicates a descriptor to a number above this one.
///
/// # Errors
/// Descriptors are exhausted.
pub fn copy_above(number: RawFd, descriptor: BorrowedFd<'_>) -> Result<OwnedFd> {
    let copy = fcntl(descriptor, FcntlArg::F_DUPFD_CLOEXEC(number + 1))
        .map_err(|errno| Error::system("duplicate a descriptor for a worker", errno))?;
    // SAFETY: the kernel has just installed this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Takes ownership of a descriptor that the parent passed under `number`; works once.
///
/// # Errors
/// The number is not open, or is close-on-exec and therefore was not inherited.
pub fn inherited(number: RawFd, what: &str) -> Result<OwnedFd> {
    let failed = |errno| Error::system(format!("take over {what} (descriptor {number})"), errno);
    if number < 3 {
        return Err(failed(Errno::EBADF));
    }
    // SAFETY: the descriptor is only asked about, and only while this function runs.
    let candidate = unsafe { BorrowedFd::borrow_raw(number) };
    let flags = fcntl(candidate, FcntlArg::F_GETFD).map_err(failed)?;
    if FdFlag::from_bits_truncate(flags).contains(FdFlag::FD_CLOEXEC) {
        return Err(failed(Errno::EBADF));
    }
    fcntl(candidate, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(failed)?;
    // SAFETY: an open, inherited descriptor that nothing here owns: what this process opens is
    // close-on-exec, and so is this one from now on, so that it cannot be taken twice.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
