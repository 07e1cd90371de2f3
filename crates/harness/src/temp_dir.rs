//! A private directory for the configuration of a server under measurement.
//!
//! Owns its permissions and its removal. Fails if the directory exists.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::{Error, Result, errno_of};

/// A private directory, removed on drop.
#[derive(Debug)]
pub(super) struct TempDir {
    pub(super) path: PathBuf,
}

static FOLDERS: AtomicU32 = AtomicU32::new(0);

impl TempDir {
    pub(super) fn new() -> Result<Self> {
        let number = FOLDERS.fetch_add(1, Ordering::Relaxed);
        let name = format!("clusterlb-bench-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        // `create` fails if the directory exists: another user may have prepared it.
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(|error| {
            Error::system(format!("make the folder {}", path.display()), errno_of(&error))
        })?;
        Ok(Self { path })
    }

    pub(super) fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::write(&path, text).map_err(|error| {
            Error::system(format!("write {}", path.display()), errno_of(&error))
        })?;
        Ok(path)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        // If removal fails, a few small files stay in the temporary directory.
        let _ = fs::remove_dir_all(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_with_all_that_is_in_it() {
        let (one, other) = (TempDir::new().expect("a folder"), TempDir::new().expect("another"));
        assert_ne!(one.path, other.path);
        let file = one.write("a.conf", "text").expect("a file");
        assert_eq!(fs::read_to_string(&file).ok().as_deref(), Some("text"));
        drop(one);
        assert!(!file.exists() && other.path.is_dir());
    }
}
