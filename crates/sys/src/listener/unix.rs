//! Unix sockets and their files: opened, given to those who may use them, replaced if no process
//! listens on one any more, removed with their listener.

use std::fs::{self, Permissions};
use std::os::fd::AsRawFd as _;
use std::os::linux::fs::MetadataExt as _;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _, lchown};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, UnixAddr, bind, connect};

use super::{Listener, OpenOptions, failure, finish, listen, stream};
use crate::address::{FileAccess, ListenAddress};
use crate::error::{Result, errno_of};

/// A unix socket's file; removed with its listener unless somebody else has replaced it.
#[derive(Debug)]
pub(super) struct SocketFile {
    pub(super) path: PathBuf,
    pub(super) identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity_of(&self.path) == Some(self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

pub(super) fn identity_of(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|data| (data.st_dev(), data.st_ino()))
}

pub(super) fn open_unix(
    address: &ListenAddress,
    wanted: Option<(&PathBuf, &FileAccess)>,
    options: OpenOptions,
) -> Result<Listener> {
    let bind_failed = failure(address, "bind");
    let path = wanted.map(|(path, _)| path.as_path());
    if let Some(path) = path {
        remove_stale(path).map_err(&bind_failed)?;
    }
    let name = match address {
        ListenAddress::Abstract(name) => UnixAddr::new_abstract(name.as_bytes()),
        _ => UnixAddr::new(path.unwrap_or_else(|| Path::new(""))),
    };
    let name = name.map_err(&bind_failed)?;
    let socket = stream(AddressFamily::Unix).map_err(failure(address, "open a socket for"))?;
    bind(socket.as_raw_fd(), &name).map_err(bind_failed)?;
    let file = path.and_then(|path| {
        let identity = identity_of(path)?;
        Some(SocketFile { path: path.to_owned(), identity })
    });
    if let Some((path, access)) = wanted {
        // Nobody can connect before it listens, so nobody gets in with other permissions.
        give_access(address, path, access, options.mode)?;
    }
    listen(&socket, options.backlog).map_err(failure(address, "listen on"))?;
    finish(address, socket, file)
}

/// Lets others use a socket's file. Its owner first: giving a file away may change its mode.
fn give_access(
    address: &ListenAddress,
    path: &Path,
    access: &FileAccess,
    mode: Option<u32>,
) -> Result<()> {
    let number = |text: &Option<String>| {
        let number = text.as_ref().map(|text| text.parse::<u32>()).transpose();
        number.map_err(|_| failure(address, "find the owner of")(Errno::ENOENT))
    };
    let (user, group) = (number(&access.user)?, number(&access.group)?);
    if user.is_some() || group.is_some() {
        lchown(path, user, group)
            .map_err(|error| failure(address, "change the owner of")(errno_of(&error)))?;
    }
    if let Some(mode) = access.mode.or(mode) {
        let set = fs::set_permissions(path, Permissions::from_mode(mode));
        set.map_err(|error| failure(address, "set the mode of")(errno_of(&error)))?;
    }
    Ok(())
}

/// Removes a socket file that nobody listens on, as an end by SIGKILL leaves it behind.
fn remove_stale(path: &Path) -> std::result::Result<(), Errno> {
    let Ok(data) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !data.file_type().is_socket() {
        return Err(Errno::EADDRINUSE);
    }
    // Not blocking: with a full queue the answer is that somebody has it (EAGAIN).
    let socket = stream(AddressFamily::Unix)?;
    match connect(socket.as_raw_fd(), &UnixAddr::new(path)?) {
        Err(Errno::ECONNREFUSED) => fs::remove_file(path).map_err(|error| errno_of(&error)),
        _ => Err(Errno::EADDRINUSE),
    }
}
