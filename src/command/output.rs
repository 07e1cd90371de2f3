//! Standard output of the subcommands that print something and end: all of it is written, or the
//! command fails with the reason.

use std::io::Write as _;

use clusterlb_sys::inherited;
use nix::errno::Errno;

use clusterlb::{Error, Result};
use clusterlb_sys::error::errno_of;

/// Prints all of a text, unless its reader has gone away: it has had enough.
///
/// # Errors
/// Standard output is closed, or its disk is full.
pub(super) fn print(text: &str) -> Result<()> {
    ensure_open()?;
    let mut output = std::io::stdout().lock();
    let written = output.write_all(text.as_bytes()).and_then(|()| output.flush());
    match written.map_err(|error| errno_of(&error)) {
        Ok(()) | Err(Errno::EPIPE) => Ok(()),
        Err(errno) => Err(failed(errno)),
    }
}

/// Whether anything can be printed at all.
///
/// # Errors
/// This process was started with standard output closed.
pub(super) fn ensure_open() -> Result<()> {
    match inherited::was_closed(1) {
        true => Err(failed(Errno::EBADF)),
        false => Ok(()),
    }
}

/// What is said when standard output has failed.
pub(super) fn failed(errno: Errno) -> Error {
    Error::system("write to standard output", errno)
}
