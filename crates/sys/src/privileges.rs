//! Drops the rights of root permanently, except those that a primary still needs.
//!
//! Owns the order of the steps, and the set of remaining capabilities. Call it while the process
//! has no other threads that need rights: capabilities belong to threads, and later threads inherit
//! them.

use std::ffi::CString;

use caps::{CapSet, Capability, CapsHashSet};
use nix::unistd::{Gid, Uid, initgroups, setgroups, setresgid, setresuid};

use crate::account::Account;
use crate::error::{Error, Result, errno_of};

/// To listen on ports below 1024 at any time.
const ALWAYS: [Capability; 1] = [Capability::CAP_NET_BIND_SERVICE];
/// To start processes as another user, without rights, and to end them.
const FOR_OTHER_USERS: [Capability; 4] =
    [Capability::CAP_SETUID, Capability::CAP_SETGID, Capability::CAP_SETPCAP, Capability::CAP_KILL];

/// Becomes this user, in its groups. The remaining capabilities are CAP_NET_BIND_SERVICE, and with
/// `starts_other_users` CAP_SETUID, CAP_SETGID, CAP_SETPCAP and CAP_KILL. Programs started as the
/// same user have none.
///
/// # Errors
/// This process may not do so, or the user's group is unknown.
pub fn become_user(account: &Account, starts_other_users: bool) -> Result<()> {
    let failed = |step: &str| {
        let step = format!("become the user {}: {step}", account.user);
        move |errno| Error::system(step, errno)
    };
    let group = account.group.map(Gid::from_raw).ok_or_else(|| {
        Error::usage(
            format!("nothing says which group the user {} is in", account.user),
            "name a user that the system knows",
        )
    })?;
    let user = Uid::from_raw(account.user);
    let kept = kept(starts_other_users)?;
    for capability in caps::all() {
        if !kept.contains(&capability) {
            // Fails for capabilities that this kernel does not know. The bounding set matters only
            // to programs that grant capabilities.
            let _ = caps::drop(None, CapSet::Bounding, capability);
        }
    }
    caps::securebits::set_keepcaps(true).map_err(refused)?;
    let name = account.entry.as_ref().and_then(|entry| CString::new(&*entry.name).ok());
    match name {
        Some(name) => initgroups(&name, group).map_err(failed("take its groups"))?,
        None => setgroups(&[group]).map_err(failed("leave all groups"))?,
    }
    setresgid(group, group, group).map_err(failed("take its group"))?;
    setresuid(user, user, user).map_err(failed("take its id"))?;
    for set in [CapSet::Permitted, CapSet::Effective] {
        caps::set(None, set, &kept).map_err(refused)?;
    }
    caps::securebits::set_keepcaps(false).map_err(refused)
}

/// The needed capabilities that this process has.
fn kept(starts_other_users: bool) -> Result<CapsHashSet> {
    let permitted = caps::read(None, CapSet::Permitted).map_err(refused)?;
    let others: &[_] = if starts_other_users { &FOR_OTHER_USERS } else { &[] };
    Ok(ALWAYS.iter().chain(others).filter(|one| permitted.contains(one)).copied().collect())
}

fn refused(_: caps::errors::CapsError) -> Error {
    let errno = errno_of(&std::io::Error::last_os_error());
    Error::system("change the capabilities of this process (capset)", errno)
}
