//! Standard output of the subcommands that print something and end: all of it is written, or the
//! command fails with the reason.

use std::io::Write as _;

use clusterlb_sys::inherited;
use nix::errno::Errno;

use clusterlb::{Error, Result};
use clusterlb_sys::error::errno_of;

/// Prints all of a text.
///
/// # Errors
/// Standard output is closed, its disk is full, or its reader has gone.
pub(super) fn print(text: &str) -> Result<()> {
    ensure_open()?;
    let mut output = std::io::stdout().lock();
    let written = output.write_all(text.as_bytes()).and_then(|()| output.flush());
    written.map_err(|error| failed(errno_of(&error)))
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
