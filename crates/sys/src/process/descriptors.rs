//! Descriptors by number: what a process has inherited, what its children do not inherit, and
//! copies.

use std::ops::Range;
use std::os::fd::{BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::sys::resource::{Resource, getrlimit};

use crate::error::{Error, Result, errno_of};

/// Where `close_range(2)` is missing, higher numbers are left alone: going through them one by one
/// takes some milliseconds.
const NUMBERS_MAX: RawFd = 65_536;

/// Marks all descriptors from this number on as close-on-exec, with system calls only.
pub(super) fn close_on_exec_from(first: RawFd) {
    if range(first, libc::CLOSE_RANGE_CLOEXEC).is_ok() {
        return;
    }
    for number in numbers_from(first) {
        // SAFETY: numbers; nothing is closed, only marked.
        unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
}

/// Closes all descriptors from this number on, with system calls only, in a process that uses none
/// of them.
pub(crate) fn close_from(first: RawFd) {
    if range(first, 0).is_ok() {
        return;
    }
    for number in numbers_from(first) {
        // SAFETY: a number; the caller says that nothing owns the descriptor.
        unsafe { libc::close(number) };
    }
}

/// Whether one call marks descriptors: from Linux 5.11 on, where no sandbox refuses it.
pub(crate) fn marks_ranges() -> bool {
    // No descriptor has this number.
    range(RawFd::MAX, libc::CLOSE_RANGE_CLOEXEC).is_ok()
}

fn range(first: RawFd, flags: u32) -> std::result::Result<(), Errno> {
    // SAFETY: three numbers.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, flags) };
    Errno::result(result).map(drop)
}

/// The numbers that descriptors may have.
fn numbers_from(first: RawFd) -> Range<RawFd> {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
    first..RawFd::try_from(limit).unwrap_or(NUMBERS_MAX).min(NUMBERS_MAX)
}

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
