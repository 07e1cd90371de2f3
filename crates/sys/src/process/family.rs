//! Where this program's file is, and children that it has not started itself.

use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc;

/// What the kernel calls the file of the running program.
const LINK: &str = "/proc/self/exe";

/// The file of the running program. Where /proc is not mounted, it is the path that the program
/// was started by, which may mean another file by now.
#[must_use]
pub fn own_program() -> PathBuf {
    let link = PathBuf::from(LINK);
    if link.exists() {
        return link;
    }
    started_by().unwrap_or(link)
}

/// The path that was executed (`getauxval(3)`), from the root.
pub(super) fn started_by() -> Option<PathBuf> {
    // SAFETY: the call takes a number and reads what the kernel has left at the start.
    let address = unsafe { libc::getauxval(libc::AT_EXECFN) };
    if address == 0 {
        return None;
    }
    // SAFETY: the kernel has put a string there, which ends with a zero and lives as long as the
    // process does.
    let name = unsafe { CStr::from_ptr(address as *const libc::c_char) };
    std::path::absolute(Path::new(OsStr::from_bytes(name.to_bytes()))).ok()
}

/// Reaps the children of the calling thread that have ended, and counts them. With the workers
/// started by another thread these are what the process did not start: orphans, if it is the init
/// process of a container (PID 1), and what it had before its exec. For the main thread, which the
/// kernel gives them to.
pub fn reap_orphans() -> usize {
    let mut reaped = 0;
    loop {
        let mut status = 0;
        let flags = libc::WNOHANG | libc::__WNOTHREAD | libc::__WALL;
        // SAFETY: the kernel writes to the status, which lives until the call returns.
        let result = unsafe { libc::waitpid(-1, &raw mut status, flags) };
        match Errno::result(result) {
            Ok(0) | Err(_) => return reaped,
            Ok(_) => reaped += 1,
        }
    }
}
