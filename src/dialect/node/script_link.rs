//! The script for Node workers as a descriptor, which each worker can redirect for itself.
//!
//! Owns the memory behind the descriptor, and its name. Node loads `/proc/self/fd/N`, and every
//! thread of it loads that once more; a worker lets N mean `/dev/null` as soon as it has the
//! script, so its threads do not depend on a file that may have been swept. Until then N is memory
//! whose name gives it the file's path as its real path, which Node looks for. A descriptor of the
//! file would not find the file that replaces a swept one.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// What the kernel appends to the name of every piece of memory, so files must end with it, too.
pub(super) const SUFFIX: &str = " (deleted)";

/// No worker can change what the others read.
const SEALS: SealFlag = SealFlag::F_SEAL_WRITE
    .union(SealFlag::F_SEAL_GROW)
    .union(SealFlag::F_SEAL_SHRINK)
    .union(SealFlag::F_SEAL_SEAL);

/// A descriptor whose real path is this one, which ends with [`SUFFIX`]. It contains the text, for
/// programs that do without real paths (`--preserve-symlinks`). `None` if the path is too long for
/// a name (some 240 bytes), without /proc, or without memory.
pub(super) fn link_to(path: &Path, text: &str) -> Option<OwnedFd> {
    let name = path.as_os_str().as_bytes().strip_suffix(SUFFIX.as_bytes())?;
    // The kernel shows it as `/memfd:/..`, the path, and the suffix.
    let name = [b"/..", name].concat();
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut memory = File::from(memfd_create(OsStr::from_bytes(&name), flags).ok()?);
    memory.write_all(text.as_bytes()).ok()?;
    fcntl(&memory, FcntlArg::F_ADD_SEALS(SEALS)).ok()?;
    let shown = fs::read_link(path_of(memory.as_raw_fd())).ok()?;
    let real = Path::new("/").join(shown.strip_prefix("/memfd:/..").ok()?);
    (real == path).then(|| memory.into())
}

/// What a process finds under one of its numbers.
pub(super) fn path_of(number: RawFd) -> PathBuf {
    format!("/proc/self/fd/{number}").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_has_the_path_and_the_text_and_cannot_be_changed() {
        for path in ["/run/a b/script.cjs (deleted)", "/x (deleted)"] {
            let link = link_to(Path::new(path), "text").expect("memory");
            let place = path_of(link.as_raw_fd());
            assert_eq!(fs::read_to_string(&place).expect("it is open"), "text");
            let mut writer = File::options().write(true).open(&place).expect("it is ours");
            assert!(writer.write_all(b"other").is_err());
        }
        assert!(link_to(Path::new("/run/script.cjs"), "").is_none(), "no such real path");
        let long = format!("/{}{SUFFIX}", "x".repeat(300));
        assert!(link_to(Path::new(&long), "").is_none(), "too long for a name");
    }
}
