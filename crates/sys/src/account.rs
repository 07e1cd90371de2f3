//! Looks up users and groups, and checks whether this process may start others under them.
//!
//! Owns queries to the system's databases. Does not change anything.

use std::path::PathBuf;

use nix::unistd::{Gid, Group, Uid, User, getegid, geteuid};

use crate::error::{Error, Result};

/// A user of the system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// User id.
    pub user: u32,
    /// Primary group id; `None` for an id without an entry.
    pub group: Option<u32>,
    /// Name and home directory; `None` for an id without an entry.
    pub entry: Option<Entry>,
}

/// The database entry of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// User name.
    pub name: String,
    /// Home directory.
    pub home: PathBuf,
}

/// Finds a user by name or id; an id needs no entry.
///
/// # Errors
/// The database cannot be read.
pub fn find_user(text: &str) -> Result<Option<Account>> {
    let failed = |errno| Error::system("look a user up (getpwnam)", errno);
    let number = text.parse().ok();
    let found = match number {
        Some(number) => User::from_uid(Uid::from_raw(number)),
        None => User::from_name(text),
    };
    let entry = found.map_err(failed)?;
    Ok(match entry {
        Some(user) => Some(Account {
            user: user.uid.as_raw(),
            group: Some(user.gid.as_raw()),
            entry: Some(Entry { name: user.name, home: user.dir }),
        }),
        None => number.map(|user| Account { user, group: None, entry: None }),
    })
}

/// Finds a group by name or id; an id needs no entry.
///
/// # Errors
/// The database cannot be read.
pub fn find_group(text: &str) -> Result<Option<u32>> {
    if let Ok(number) = text.parse() {
        return Ok(Some(Gid::from_raw(number).as_raw()));
    }
    let found = Group::from_name(text);
    let found = found.map_err(|errno| Error::system("look a group up (getgrnam)", errno))?;
    Ok(found.map(|group| group.gid.as_raw()))
}

/// Whether this process may start processes as this user and group.
#[must_use]
pub fn may_become(user: Option<u32>, group: Option<u32>) -> bool {
    let own = user.is_none_or(|user| user == geteuid().as_raw())
        && group.is_none_or(|group| group == getegid().as_raw());
    own || geteuid().is_root()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_groups_are_found_by_name_and_number() {
        let root = find_user("root").expect("there are users").expect("root is one of them");
        assert_eq!((root.user, root.group), (0, Some(0)));
        assert_eq!(root.entry.as_ref().map(|entry| entry.name.as_str()), Some("root"));
        assert_eq!(find_user("0").expect("there are users"), Some(root));
        let nobody_knows = Some(Account { user: 4_000_000_000, group: None, entry: None });
        assert_eq!(find_user("4000000000").expect("there are users"), nobody_knows);
        assert_eq!(find_user("no such user").expect("there are users"), None);
        assert_eq!(find_group("root").expect("there are groups"), Some(0));
        assert_eq!(find_group("4000000000").expect("there are groups"), Some(4_000_000_000));
        assert_eq!(find_group("no such group").expect("there are groups"), None);
    }

    #[test]
    fn any_user_may_keep_its_identity() {
        let (user, group) = (geteuid().as_raw(), getegid().as_raw());
        assert!(may_become(None, None) && may_become(Some(user), Some(group)));
        assert_eq!(may_become(Some(user.wrapping_add(1)), None), geteuid().is_root());
    }
}
