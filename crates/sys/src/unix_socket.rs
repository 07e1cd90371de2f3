//! The file of a unix socket: created in an opened directory, with its mode from the start, and
//! removed only if it is still the same file.
//!
//! A user with write access to a directory can replace a socket by a link, or move the directory.
//! No path is therefore resolved twice: the directory is opened once, names are looked up relative
//! to it, and modes are never changed by name.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, connect, socket};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat, lstat, umask};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchdir, fchownat, geteuid, unlinkat};

use crate::error::errno_of;

/// Permission bits that a mode may set.
const MODE_MASK: u32 = 0o777;
/// Bits that let users other than the owner write to a directory.
const WRITABLE_BY_OTHERS: u32 = 0o022;
/// In a sticky directory, users can remove or rename their own files only.
const STICKY: u32 = 0o1000;

/// The location of a socket's file.
#[derive(Debug)]
pub(crate) struct SocketPlace {
    path: PathBuf,
    folder: OwnedFd,
    name: OsString,
}

/// The file of a socket; dropping it removes the file unless it has been replaced.
#[derive(Debug)]
pub(crate) struct SocketFile {
    place: SocketPlace,
    identity: (u64, u64),
}

impl SocketPlace {
    /// Opens the directory of `path`.
    ///
    /// # Errors
    /// The directory does not exist, or the path does not name a file.
    pub(crate) fn open(path: &Path) -> Result<Self, Errno> {
        let name = path.file_name().ok_or(Errno::EISDIR)?.to_owned();
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let folder = open(parent_of(path), flags, Mode::empty())?;
        Ok(Self { path: path.to_owned(), folder, name })
    }

    fn look(&self) -> Result<FileStat, Errno> {
        fstatat(&self.folder, &*self.name, AtFlags::AT_SYMLINK_NOFOLLOW)
    }

    fn remove(&self) -> Result<(), Errno> {
        unlinkat(&self.folder, &*self.name, UnlinkatFlags::NoRemoveDir)
    }

    /// Removes the file of a socket that has no listener, as SIGKILL leaves it behind.
    ///
    /// # Errors
    /// EADDRINUSE if the socket has a listener, or the file is not a socket.
    pub(crate) fn remove_stale(&self) -> Result<(), Errno> {
        let found = match self.look() {
            Err(Errno::ENOENT) => return Ok(()),
            found => found?,
        };
        if !is_socket(&found) || !self.is_deserted()? {
            return Err(Errno::EADDRINUSE);
        }
        self.remove()
    }

    /// Whether the socket has no listener. Does not wait if the listener's queue is full.
    fn is_deserted(&self) -> Result<bool, Errno> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let probe = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        let address = UnixAddr::new(&self.path)?;
        Ok(connect(probe.as_raw_fd(), &address) == Err(Errno::ECONNREFUSED))
    }

    /// Binds `socket`. Its file gets these permissions, or those that the umask leaves.
    ///
    /// # Errors
    /// Those of `bind(2)`.
    pub(crate) fn bind(self, socket: &OwnedFd, mode: Option<u32>) -> Result<SocketFile, Errno> {
        let settled = self.settled_path();
        let outcome = match (&settled, mode) {
            (Some(path), None) => bind_to(socket, path.as_os_str()),
            _ => self.bind_aside(socket, settled.as_deref(), mode),
        };
        outcome?;
        let identity = identity_of(&self.look()?);
        Ok(SocketFile { place: self, identity })
    }

    /// Binds in a separate thread with its own umask and working directory.
    fn bind_aside(
        &self,
        socket: &OwnedFd,
        settled: Option<&Path>,
        mode: Option<u32>,
    ) -> Result<(), Errno> {
        let mode = mode.map(|mode| Mode::from_bits_truncate(mode & MODE_MASK));
        if let Some(mode) = mode {
            // The file of a socket is created with the socket's mode, less the umask.
            fchmod(socket, mode)?;
        }
        let body = || {
            // Where that is forbidden, as in some containers, both change briefly for the whole
            // process.
            let is_apart = unshare(CloneFlags::CLONE_FS).is_ok();
            let before = mode.map(|_| umask(Mode::empty()));
            let outcome = match settled {
                Some(path) => bind_to(socket, path.as_os_str()),
                None if is_apart => fchdir(&self.folder).and_then(|()| bind_to(socket, &self.name)),
                None => bind_to(socket, self.path_by_descriptor().as_os_str()),
            };
            if let Some(before) = before {
                umask(before);
            }
            outcome
        };
        thread::scope(|scope| {
            let thread = thread::Builder::new().name("bind".into()).spawn_scoped(scope, body);
            let thread = thread.map_err(|error| errno_of(&error))?;
            thread.join().unwrap_or(Err(Errno::EIO))
        })
    }

    fn path_by_descriptor(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.folder.as_raw_fd())).join(&self.name)
    }

    /// The path, if only this user and root can redirect it. It then refers to the opened
    /// directory, and tools that list sockets show where this one is.
    fn settled_path(&self) -> Option<PathBuf> {
        let folder = fs::canonicalize(parent_of(&self.path)).ok()?;
        let own = geteuid().as_raw();
        let is_settled = |level: &Path| {
            let data = fs::symlink_metadata(level).ok()?;
            let is_ours = data.st_uid() == own || data.st_uid() == 0;
            let mode = data.st_mode();
            (is_ours && (mode & WRITABLE_BY_OTHERS == 0 || mode & STICKY != 0)).then_some(())
        };
        folder.ancestors().try_for_each(is_settled)?;
        let seen = fs::metadata(&folder).ok()?;
        let opened = fstat(&self.folder).ok()?;
        if (seen.st_dev(), seen.st_ino()) != identity_of(&opened) {
            return None;
        }
        if self.path.is_relative() || parent_of(&self.path) == folder {
            return Some(self.path.clone());
        }
        Some(folder.join(&self.name))
    }
}

impl SocketFile {
    /// Changes the owner or group of the file, without following a link that has replaced it.
    ///
    /// # Errors
    /// EPERM without the permission to do so.
    pub(crate) fn give_to(&self, user: Option<u32>, group: Option<u32>) -> Result<(), Errno> {
        if user.is_none() && group.is_none() {
            return Ok(());
        }
        let (user, group) = (user.map(Uid::from_raw), group.map(Gid::from_raw));
        let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
        fchownat(&self.place.folder, &*self.place.name, user, group, flags)
    }

    /// Whether its path still leads to it.
    pub(crate) fn is_reachable(&self) -> bool {
        lstat(&self.place.path).is_ok_and(|found| identity_of(&found) == self.identity)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.place.look().is_ok_and(|found| identity_of(&found) == self.identity) {
            let _ = self.place.remove();
        }
    }
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn bind_to(socket: &OwnedFd, path: &OsStr) -> Result<(), Errno> {
    bind(socket.as_raw_fd(), &UnixAddr::new(path)?)
}

fn is_socket(found: &FileStat) -> bool {
    SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFSOCK
}

fn identity_of(found: &FileStat) -> (u64, u64) {
    (found.st_dev, found.st_ino)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::os::unix::net::UnixListener;

    use super::*;

    fn stream() -> OwnedFd {
        socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("one")
    }

    fn bound(path: &Path, mode: Option<u32>) -> Result<(SocketFile, OwnedFd), Errno> {
        let socket = stream();
        let place = SocketPlace::open(path)?;
        place.remove_stale()?;
        Ok((place.bind(&socket, mode)?, socket))
    }

    fn mode_of(path: &Path) -> u32 {
        fs::symlink_metadata(path).expect("it is there").permissions().mode() & 0o7777
    }

    /// A directory that other users may write to, so that its path may change at any time.
    fn open_to_all() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).expect("it is ours");
        folder
    }

    #[test]
    fn a_mode_is_there_from_the_beginning_and_nothing_but_permissions() {
        for folder in [tempfile::tempdir().expect("a folder"), open_to_all()] {
            let path = folder.path().join("s");
            for (asked, given) in [(0o666, 0o666), (0o4777, 0o777), (0o600, 0o600)] {
                let (file, _socket) = bound(&path, Some(asked)).expect("the folder is ours");
                assert_eq!(mode_of(&path), given);
                drop(file);
                assert!(!path.exists());
            }
        }
    }

    #[test]
    fn a_link_is_not_followed() {
        let folder = open_to_all();
        let (victim, path) = (folder.path().join("victim"), folder.path().join("s"));
        fs::write(&victim, "").expect("the folder is ours");
        fs::set_permissions(&victim, fs::Permissions::from_mode(0o600)).expect("it is ours");
        symlink(&victim, &path).expect("a link");
        assert_eq!(bound(&path, Some(0o666)).err(), Some(Errno::EADDRINUSE));
        assert_eq!((mode_of(&victim), path.exists()), (0o600, true));
    }

    #[test]
    fn what_has_replaced_the_file_stays() {
        let folder = open_to_all();
        let path = folder.path().join("s");
        let (file, _socket) = bound(&path, None).expect("the folder is ours");
        fs::remove_file(&path).expect("it is there");
        let other = UnixListener::bind(&path).expect("the name is free");
        drop(file);
        assert!(path.exists());
        assert_eq!(bound(&path, None).err(), Some(Errno::EADDRINUSE), "{other:?} listens");
        drop(other);
        let (file, _socket) = bound(&path, None).expect("the socket has no listener");
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn the_folder_is_the_one_that_was_opened() {
        let outer = open_to_all();
        let (first, moved) = (outer.path().join("first"), outer.path().join("moved"));
        fs::create_dir(&first).expect("the folder is ours");
        fs::set_permissions(&first, fs::Permissions::from_mode(0o777)).expect("it is ours");
        let place = SocketPlace::open(&first.join("s")).expect("it is there");
        fs::rename(&first, &moved).expect("both are ours");
        fs::create_dir(&first).expect("the name is free");
        let socket = stream();
        let file = place.bind(&socket, None).expect("the folder is still there");
        assert!(moved.join("s").exists() && !first.join("s").exists());
        drop(file);
        assert!(!moved.join("s").exists());
    }
}
