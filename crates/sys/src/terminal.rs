//! The controlling terminal of this process and the leader of its session.

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::getsid;

/// Whether this process has a controlling terminal (`tty(4)`); closing the terminal removes it.
#[must_use]
pub fn is_present() -> bool {
    let flags = OFlag::O_RDONLY | OFlag::O_NOCTTY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    open("/dev/tty", flags, Mode::empty()).is_ok()
}

/// The session leader of this process, usually a shell.
#[must_use]
pub fn session_leader() -> Option<u32> {
    getsid(None).ok().and_then(|leader| u32::try_from(leader.as_raw()).ok())
}
