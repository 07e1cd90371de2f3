//! The user, groups and capabilities of a new process.
//!
//! Owns the order in which privileges are dropped: each step needs one that a later step drops.
//! Allocates nothing, as required between fork and exec.

use std::io;

use nix::errno::Errno;
use nix::libc;
use nix::sys::prctl;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

/// Larger than the highest capability of any kernel.
const CAPABILITIES_MAX: libc::c_ulong = 64;
/// `_LINUX_CAPABILITY_VERSION_3`, with two words of each set.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// The identity to take.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Identity {
    pub(super) user: Option<u32>,
    pub(super) group: Option<u32>,
    /// Drop all supplementary groups.
    pub(super) drops_groups: bool,
    /// Drop all capabilities, and gain none by an exec.
    pub(super) confined: bool,
}

impl Identity {
    /// Takes the identity.
    pub(super) fn assume(self) -> io::Result<()> {
        if self.confined {
            drop_bounding_set();
        }
        if self.drops_groups {
            setgroups(&[])?;
        }
        if let Some(group) = self.group.map(Gid::from_raw) {
            setresgid(group, group, group)?;
        }
        if let Some(user) = self.user.map(Uid::from_raw) {
            setresuid(user, user, user)?;
        }
        if self.confined {
            drop_capabilities()?;
            prctl::set_no_new_privs()?;
        }
        Ok(())
    }
}

/// Errors are ignored: without the permission, or beyond the last capability, nothing changes. The
/// bounding set only affects programs that grant capabilities, which a confined process cannot use.
fn drop_bounding_set() {
    for capability in 0..CAPABILITIES_MAX {
        // SAFETY: prctl takes numbers here.
        let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        if dropped != 0 {
            return;
        }
    }
}

/// The ambient set follows the inheritable one.
fn drop_capabilities() -> Result<(), Errno> {
    let (header, none) = ([CAPABILITY_VERSION, 0], [0_u32; 6]);
    // SAFETY: the kernel reads a header of two words and six words of sets, which live on.
    let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) };
    Errno::result(result).map(drop)
}
