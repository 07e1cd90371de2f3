//! Standard output of the subcommands that print and end: they write all of it, or fail with the
//! reason.

use std::io::Write as _;

use clusterlb_sys::inherited;
use nix::errno::Errno;

use clusterlb::{Error, Result};
use clusterlb_sys::error::errno_of;

/// Prints a text, unless its reader has closed, which is not an error.
///
/// # Errors
/// Standard output is closed, or its disk is full.
pub(super) fn print(text: &str) -> Result<()> {
    ensure_open()?;
    pass_on(text.as_bytes()).map(drop)
}

/// Prints a part of what follows. Returns whether a reader is there for the rest.
///
/// # Errors
/// The disk of standard output is full.
pub(super) fn pass_on(bytes: &[u8]) -> Result<bool> {
    let mut output = std::io::stdout().lock();
    let written = output.write_all(bytes).and_then(|()| output.flush());
    match written.map_err(|error| errno_of(&error)) {
        Ok(()) => Ok(true),
        Err(Errno::EPIPE) => Ok(false),
        Err(errno) => Err(failed(errno)),
    }
}

/// Ensures that standard output is open.
///
/// # Errors
/// This process was started with standard output closed.
pub(super) fn ensure_open() -> Result<()> {
    match inherited::was_closed(1) {
        true => Err(failed(Errno::EBADF)),
        false => Ok(()),
    }
}

/// The error when writing standard output fails.
pub(super) fn failed(errno: Errno) -> Error {
    Error::system("write to standard output", errno)
}
