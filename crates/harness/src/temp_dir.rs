//! A private folder for the configuration of a server under measurement.
//!
//! Owns its being private and its removal. Refuses one that is there already.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::{Error, Result, errno_of};

/// A private folder, removed when it is dropped.
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
        // One that somebody else has made is refused.
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
        // What cannot be removed is a few small files in a temporary folder.
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
