//! The path of this program's file, and children that this process did not start.

use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc;

/// The kernel's link to the file of the running program.
const LINK: &str = "/proc/self/exe";

/// The file of the running program. If /proc is not mounted, the path by which it was started,
/// which may name another file by now.
#[must_use]
pub fn own_program() -> PathBuf {
    let link = PathBuf::from(LINK);
    if link.exists() {
        return link;
    }
    started_by().unwrap_or(link)
}

/// The absolute path that was executed (`getauxval(3)`).
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

/// Reaps the calling thread's children that have ended, and counts them. Workers are started by
/// another thread, so these are processes that this one did not start: orphans, if it is the init
/// process of a container (PID 1), and children from before its exec. Call it in the main thread,
/// to which the kernel assigns them.
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
