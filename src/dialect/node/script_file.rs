//! The location of the script for Node workers, and its lifetime.
//!
//! Owns the choice of the directory, the file and its removal. Every worker reads it once, when it
//! starts. Cleaners of temporary directories (systemd-tmpfiles, tmpreaper) should not remove it,
//! and no other user may replace it. One file serves all primaries of a user. Each holds a shared
//! lock on it, and the last one removes it, so a killed primary leaves at most one file behind,
//! which the next one adopts.

use std::fs::{self, DirBuilder, File, Metadata, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::unistd::{Gid, Uid};

use super::script_link::SUFFIX;

/// A directory writable by all users is safe only if users can replace their own entries only.
const STICKY: u32 = 0o1000;
const OTHERS_WRITE: u32 = 0o022;
/// Maximum number of other primaries starting or ending during one attempt.
const ATTEMPTS_MAX: usize = 16;

/// The user and group that read the file, which are those of the workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reader {
    user: u32,
    group: u32,
}

/// The file, locked by this process.
#[derive(Debug)]
pub(super) struct ScriptFile {
    folder: PathBuf,
    /// Each version has another name, so that no version considers another's file damaged.
    name: String,
    text: String,
    reader: Reader,
    /// `None` after the file was removed and could not be written again.
    lock: Option<Flock<File>>,
}

impl ScriptFile {
    /// Writes the file to the first directory that is safe, readable and not subject to cleaning.
    ///
    /// # Errors
    /// The error of the last directory, with its name.
    pub(super) fn write(
        folders: impl IntoIterator<Item = PathBuf>,
        text: String,
        reader: Reader,
    ) -> io::Result<Self> {
        let name = name_of(&text);
        let mut file = Self { folder: PathBuf::new(), name, text, reader, lock: None };
        let mut failure = io::Error::other("there is no folder for it");
        for folder in folders {
            file.folder = folder;
            match file.restore() {
                Ok(_) => return Ok(file),
                Err(error) => {
                    let text = format!("{}: {error}", file.folder.display());
                    failure = io::Error::new(error.kind(), text);
                }
            }
        }
        Err(failure)
    }

    pub(super) fn is_for(&self, reader: Reader) -> bool {
        self.reader == reader
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn path(&self) -> PathBuf {
        self.folder.join(&self.name)
    }

    /// Writes the file again at the same path if it is missing or changed. Returns whether it was.
    ///
    /// # Errors
    /// The directory is no longer writable, or belongs to another user.
    pub(super) fn restore(&mut self) -> io::Result<bool> {
        if self.lock.as_ref().is_some_and(|lock| self.is_intact(lock)) {
            return Ok(false);
        }
        self.lock = None;
        self.make_folder()?;
        for _ in 0..ATTEMPTS_MAX {
            match self.open() {
                Ok(Some(lock)) => {
                    self.lock = Some(lock);
                    return Ok(true);
                }
                Ok(None) => self.create()?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => self.create()?,
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other("the file keeps disappearing"))
    }

    fn make_folder(&self) -> io::Result<()> {
        let parent = self.folder.parent().unwrap_or_else(|| Path::new("/"));
        ensure_safe(&fs::canonicalize(parent)?, self.reader)?;
        match DirBuilder::new().mode(0o755).create(&self.folder) {
            // Whatever bits the umask has removed.
            Ok(()) => fs::set_permissions(&self.folder, Permissions::from_mode(0o755))?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        let data = fs::symlink_metadata(&self.folder)?;
        let is_own = data.is_dir() && is_own(&data);
        if is_own { Ok(()) } else { Err(foreign("the folder")) }
    }

    /// The file under a shared lock; `None` if it must be written first.
    fn open(&self) -> io::Result<Option<Flock<File>>> {
        let data = fs::symlink_metadata(self.path())?;
        if !data.is_file() || !is_own(&data) {
            return Err(foreign("the file"));
        }
        let file = File::open(self.path())?;
        let Ok(mut lock) = Flock::lock(file, FlockArg::LockShared) else {
            return Err(io::Error::other("the file cannot be locked"));
        };
        let mut text = String::new();
        lock.read_to_string(&mut text)?;
        if text != self.text {
            fs::remove_file(self.path())?;
            return Ok(None);
        }
        // Its last user may have removed it between the two calls.
        Ok(self.is_intact(&lock).then_some(lock))
    }

    fn create(&self) -> io::Result<()> {
        let mut file = tempfile::Builder::new()
            .prefix(".new-")
            .permissions(Permissions::from_mode(0o644))
            .tempfile_in(&self.folder)?;
        file.write_all(self.text.as_bytes())?;
        file.as_file().set_permissions(Permissions::from_mode(0o644))?;
        match file.persist_noclobber(self.path()) {
            Err(failure) if failure.error.kind() != io::ErrorKind::AlreadyExists => {
                Err(failure.error)
            }
            _ => Ok(()),
        }
    }

    /// Whether the path still names the locked file, with its full length.
    fn is_intact(&self, lock: &Flock<File>) -> bool {
        let (Ok(locked), Ok(named)) = (lock.metadata(), fs::symlink_metadata(self.path())) else {
            return false;
        };
        let is_same = (locked.dev(), locked.ino()) == (named.dev(), named.ino());
        is_same && named.len() == self.text.len() as u64
    }
}

impl Drop for ScriptFile {
    fn drop(&mut self) {
        let Some(lock) = self.lock.take().filter(|lock| self.is_intact(lock)) else { return };
        // Only the last primary that uses the file gets this lock.
        if lock.relock(FlockArg::LockExclusiveNonblock).is_ok() {
            let _ = fs::remove_file(self.path());
            let _ = fs::remove_dir(&self.folder);
        }
    }
}

impl Reader {
    /// The workers' user and group; `None` for those of this process.
    #[must_use]
    pub fn from_ids(user: Option<u32>, group: Option<u32>) -> Self {
        let user = user.unwrap_or_else(|| Uid::effective().as_raw());
        let group = group.unwrap_or_else(|| Gid::effective().as_raw());
        Self { user, group }
    }
}

/// Not `.js`, whose meaning depends on a `package.json` in a parent directory.
fn name_of(text: &str) -> String {
    format!("preload-{:016x}.cjs{SUFFIX}", checksum(text))
}

/// FNV-1a, which distinguishes versions of a text.
fn checksum(text: &str) -> u64 {
    let step = |sum: u64, byte: u8| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    text.bytes().fold(0xcbf2_9ce4_8422_2325, step)
}

/// Candidate directories, best first: those that are not cleaned come before those that are.
pub(super) fn folders() -> Vec<PathBuf> {
    let user = Uid::effective();
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let own = format!("clusterlb-{user}");
    // systemd's RuntimeDirectory=; the first of several.
    let runtime = variable("RUNTIME_DIRECTORY")
        .and_then(|folders| std::env::split_paths(&folders).next())
        .map(|folder| folder.join("clusterlb"));
    let system = user.is_root().then(|| PathBuf::from("/run/clusterlb"));
    let temporary = [PathBuf::from("/dev/shm"), std::env::temp_dir(), "/var/tmp".into()];
    let temporary = temporary.map(|folder| folder.join(&own));
    // This one is removed when the user logs out, which the run may outlive.
    let session = variable("XDG_RUNTIME_DIR").map(|folder| Path::new(&folder).join("clusterlb"));
    let home = variable("HOME").map(|folder| Path::new(&folder).join(".clusterlb"));
    let all = runtime.into_iter().chain(system).chain(temporary).chain(session).chain(home);
    all.filter(|folder| folder.is_absolute()).collect()
}

/// Checks that no other user can replace entries of this directory and that the reader can access
/// it.
fn ensure_safe(folder: &Path, reader: Reader) -> io::Result<()> {
    for folder in folder.ancestors() {
        let data = fs::symlink_metadata(folder)?;
        let belongs = data.uid() == 0 || data.uid() == Uid::effective().as_raw();
        let is_shared = data.mode() & OTHERS_WRITE != 0;
        if !belongs || is_shared && data.mode() & STICKY == 0 {
            return Err(io::Error::other(format!(
                "another user can replace what lies in {}",
                folder.display()
            )));
        }
        if !is_searchable(&data, reader) {
            return Err(io::Error::other(format!(
                "{} is closed to the user that workers run as",
                folder.display()
            )));
        }
    }
    Ok(())
}

fn is_searchable(data: &Metadata, reader: Reader) -> bool {
    let bit = match (data.uid() == reader.user, data.gid() == reader.group) {
        _ if reader.user == 0 => return true,
        (true, _) => 0o100,
        (false, true) => 0o010,
        (false, false) => 0o001,
    };
    data.mode() & bit != 0
}

fn is_own(data: &Metadata) -> bool {
    data.uid() == Uid::effective().as_raw() && data.mode() & OTHERS_WRITE == 0
}

fn foreign(what: &str) -> io::Error {
    io::Error::other(format!("{what} there is not of this user alone"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "'use strict';";

    fn own() -> Reader {
        Reader::from_ids(None, None)
    }

    fn write_to(folders: &[PathBuf], reader: Reader) -> io::Result<ScriptFile> {
        ScriptFile::write(folders.iter().cloned(), TEXT.to_owned(), reader)
    }

    fn write(folder: &Path) -> io::Result<ScriptFile> {
        write_to(&[folder.join("clusterlb")], own())
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("it is there").permissions().mode() & 0o7777
    }

    #[test]
    fn everyone_may_read_the_file_and_only_its_owner_may_change_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = write(folder.path()).expect("room");
        assert_eq!(fs::read_to_string(file.path()).expect("it is there"), TEXT);
        assert_eq!((mode(file.folder()), mode(&file.path())), (0o755, 0o644));
    }

    #[test]
    fn the_file_is_removed_with_its_last_user() {
        let folder = tempfile::tempdir().expect("a folder");
        let (first, second) = (write(folder.path()).expect("room"), write(folder.path()));
        let second = second.expect("it is there already");
        assert_eq!(first.path(), second.path());
        let path = first.path();
        drop(first);
        assert!(path.exists());
        drop(second);
        assert!(!path.exists() && !folder.path().join("clusterlb").exists());
    }

    #[test]
    fn what_a_killed_primary_left_behind_is_adopted() {
        let folder = tempfile::tempdir().expect("a folder");
        let own = folder.path().join("clusterlb");
        for text in [TEXT, "something else"] {
            fs::create_dir(&own).expect("room");
            let path = own.join(name_of(TEXT));
            fs::write(&path, text).expect("room");
            fs::set_permissions(&path, Permissions::from_mode(0o644)).expect("it is ours");
            let file = write(folder.path()).expect("room");
            assert_eq!(file.path(), path);
            assert_eq!(fs::read_to_string(file.path()).expect("it is there"), TEXT);
            drop(file);
            assert!(!own.exists());
        }
    }

    #[test]
    fn a_file_that_was_swept_away_is_written_again_at_its_path() {
        let folder = tempfile::tempdir().expect("a folder");
        let (mut first, mut second) =
            (write(folder.path()).expect("room"), write(folder.path()).expect("room"));
        let path = first.path();
        fs::remove_file(&path).expect("it is there");
        first.restore().expect("room");
        second.restore().expect("it is there again");
        fs::remove_dir_all(first.folder()).expect("it is there");
        second.restore().expect("room");
        first.restore().expect("it is there again");
        assert_eq!(fs::read_to_string(&path).expect("it is there"), TEXT);
        drop(first);
        assert!(path.exists(), "the other one still needs it");
    }

    #[test]
    fn folders_in_which_others_could_replace_the_file_are_passed_over() {
        let folder = tempfile::tempdir().expect("a folder");
        let open = folder.path().join("open");
        fs::create_dir(&open).expect("room");
        fs::set_permissions(&open, Permissions::from_mode(0o777)).expect("it is ours");
        let error = write(&open).expect_err("anyone may rename what is in it");
        assert!(error.to_string().contains("another user can replace"), "{error}");
        let folders = [open.join("clusterlb"), folder.path().join("clusterlb")];
        let file = write_to(&folders, own()).expect("the second");
        assert_eq!(file.folder(), folder.path().join("clusterlb"));
        fs::set_permissions(&open, Permissions::from_mode(0o1777)).expect("it is ours");
        write(&open).expect("other users cannot rename its entries");
    }

    #[test]
    fn a_link_or_a_file_that_others_may_write_is_not_used() {
        let folder = tempfile::tempdir().expect("a folder");
        let own = folder.path().join("clusterlb");
        std::os::unix::fs::symlink("/tmp", &own).expect("room");
        assert!(write(folder.path()).is_err(), "the folder is a link");
        fs::remove_file(&own).expect("it is a link");
        fs::create_dir(&own).expect("room");
        let path = own.join(name_of(TEXT));
        fs::write(&path, TEXT).expect("room");
        fs::set_permissions(&path, Permissions::from_mode(0o666)).expect("it is ours");
        assert!(write(folder.path()).is_err(), "others may write it");
    }

    #[test]
    fn a_folder_that_the_reader_cannot_enter_is_passed_over() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::set_permissions(folder.path(), Permissions::from_mode(0o700)).expect("it is ours");
        let stranger = Reader::from_ids(Some(65_534), Some(65_534));
        let error = write_to(&[folder.path().join("clusterlb")], stranger)
            .expect_err("others cannot enter");
        assert!(error.to_string().contains("is closed to"), "{error}");
    }
}
