//! Sockets that a service manager passes to this process (`sd_listen_fds(3)`): those of socket
//! units, and those that an earlier run stored.
//!
//! Owns the descriptors from 3 on that `LISTEN_FDS` announces. The caller determines their types.

use std::ffi::OsString;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// The first passed descriptor.
const FIRST: RawFd = 3;
/// Most sockets to take; a service manager passes fewer.
const SOCKETS_MAX: usize = 1024;

/// Taken once, because they have one owner.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// A socket that was passed.
#[derive(Debug)]
pub struct Passed {
    /// Its name (`FileDescriptorName=`), if it has one.
    pub name: String,
    /// The socket, close-on-exec from now on.
    pub socket: OwnedFd,
}

impl Passed {
    /// The number of its descriptor, as in `fd:N`.
    #[must_use]
    pub fn number(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// Takes the sockets passed to this process; none the second time.
pub fn take() -> Vec<Passed> {
    let variable = |name: &str| std::env::var_os(name);
    let announced = announced(
        std::process::id(),
        variable("LISTEN_PID"),
        variable("LISTEN_FDS"),
        variable("LISTEN_FDNAMES"),
    );
    if announced.is_empty() || TAKEN.swap(true, Ordering::Relaxed) {
        return Vec::new();
    }
    (FIRST..).zip(announced).filter_map(|(number, name)| own(number, name)).collect()
}

/// An announced descriptor, if it is open.
fn own(number: RawFd, name: String) -> Option<Passed> {
    // SAFETY: the descriptor is only asked about and marked, while this function runs.
    let candidate = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl(candidate, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).ok()?;
    // SAFETY: it is open, and announced for this process. It was open before this process opened
    // any descriptor, and it is taken once.
    Some(Passed { name, socket: unsafe { OwnedFd::from_raw_fd(number) } })
}

/// The names of the sockets in order, if they are for this process.
fn announced(
    pid: u32,
    receiver: Option<OsString>,
    count: Option<OsString>,
    names: Option<OsString>,
) -> Vec<String> {
    let number = |text: Option<OsString>| text?.to_str()?.parse::<u32>().ok();
    if number(receiver) != Some(pid) {
        return Vec::new();
    }
    let count = number(count).and_then(|count| usize::try_from(count).ok()).unwrap_or(0);
    let names = names.map(|names| names.to_string_lossy().into_owned()).unwrap_or_default();
    let names = names.split(':').map(str::to_owned).chain(std::iter::repeat(String::new()));
    names.take(count.min(SOCKETS_MAX)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_for_this_process_are_counted_and_named() {
        let found = |receiver: &str, count: &str, names: Option<&str>| {
            announced(7, Some(receiver.into()), Some(count.into()), names.map(OsString::from))
        };
        assert_eq!(found("7", "2", Some("web:admin")), ["web", "admin"]);
        assert_eq!(found("7", "2", Some("web")), ["web", ""]);
        assert_eq!(found("7", "1", None), [""]);
        assert_eq!(found("7", "4000000000", None).len(), SOCKETS_MAX);
        for (receiver, count) in [("8", "2"), ("", "2"), ("7", "-1"), ("7", "many"), ("7", "0")] {
            assert!(found(receiver, count, Some("web")).is_empty(), "{receiver} {count}");
        }
        assert!(announced(7, None, Some("1".into()), None).is_empty());
    }
}
