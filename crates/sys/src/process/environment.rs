//! The environment of a new process, prepared before the fork.
//!
//! Owns the block of `NAME=value` strings and the one value that is known only in the new process,
//! its pid. Allocates nothing between fork and exec.

use std::collections::BTreeMap;
use std::ffi::{OsString, c_char};
use std::os::unix::ffi::OsStringExt as _;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use nix::errno::Errno;

/// Maximum number of digits of a pid.
const DIGITS_MAX: usize = 10;

unsafe extern "C" {
    /// Where `execvp(3)` takes the environment of the new program and looks for `PATH`
    /// (`environ(7)`).
    static mut environ: *const *const c_char;
}

/// An environment, ready for use after a fork.
#[derive(Debug)]
pub(super) struct Block {
    /// The `NAME=value` strings with their final zeros.
    strings: Vec<Vec<u8>>,
    /// Pointers to the strings and a final null; filled in by [`install`](Self::install).
    places: Vec<AtomicPtr<c_char>>,
    /// The string that gets the pid, and the offset of its value.
    own_id: Option<(usize, usize)>,
}

impl Block {
    /// This process's environment without the variables `removed`, with others added or replaced.
    /// The value of `own_id` will be the pid of the new process.
    ///
    /// # Errors
    /// EINVAL for an invalid name or value.
    pub(super) fn new(
        removed: &[OsString],
        added: Vec<(OsString, OsString)>,
        own_id: Option<&str>,
    ) -> Result<Self, Errno> {
        let inherited = std::env::vars_os();
        let mut variables: BTreeMap<OsString, OsString> =
            inherited.filter(|(name, _)| !removed.contains(name)).collect();
        variables.extend(added);
        if let Some(name) = own_id {
            variables.insert(name.into(), "0".repeat(DIGITS_MAX).into());
        }
        let mut strings = Vec::with_capacity(variables.len());
        let mut place = None;
        for (name, value) in variables {
            let is_own_id = own_id.is_some_and(|own_id| name == own_id);
            let mut string = name.into_vec();
            if string.is_empty() || string.contains(&b'=') {
                return Err(Errno::EINVAL);
            }
            string.push(b'=');
            if is_own_id {
                place = Some((strings.len(), string.len()));
            }
            string.extend(value.into_vec());
            if string.contains(&0) {
                return Err(Errno::EINVAL);
            }
            string.push(0);
            strings.push(string);
        }
        let places = (0..=strings.len()).map(|_| AtomicPtr::new(ptr::null_mut())).collect();
        Ok(Self { strings, places, own_id: place })
    }

    /// Installs this environment in the current process, a new one with a single thread. It only
    /// writes to existing memory, as required between fork and exec.
    pub(super) fn install(&mut self, own_id: u32) {
        if let Some((string, value)) = self.own_id {
            write_decimal(&mut self.strings[string][value..], own_id);
        }
        for (place, string) in self.places.iter().zip(&mut self.strings) {
            place.store(string.as_mut_ptr().cast(), Ordering::Relaxed);
        }
        // SAFETY: this process has no other thread, so there is no concurrent reader. An AtomicPtr
        // is laid out as a pointer, the last one is null, and all of it lives until the exec, or
        // the process's end.
        unsafe { environ = self.places.as_ptr().cast() };
    }
}

/// Writes digits and a final zero, for which there is room.
fn write_decimal(into: &mut [u8], number: u32) {
    let mut digits = [0; DIGITS_MAX];
    let (mut rest, mut count) = (number, 0);
    loop {
        digits[count] = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        (rest, count) = (rest / 10, count + 1);
        if rest == 0 {
            break;
        }
    }
    for (place, digit) in into.iter_mut().zip(digits[..count].iter().rev()) {
        *place = *digit;
    }
    into[count] = 0;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn find<'a>(block: &'a Block, name: &str) -> Option<&'a [u8]> {
        let begin = format!("{name}=");
        block.strings.iter().find_map(|string| string.strip_prefix(begin.as_bytes()))
    }

    #[test]
    fn what_is_added_replaces_what_was_there() {
        let added = vec![("PATH".into(), "/here".into()), ("NEW_ONE".into(), "".into())];
        let removed = ["CARGO_MANIFEST_DIR".into()];
        let block = Block::new(&removed, added, Some("OWN_ID")).expect("they are variables");
        assert!(std::env::var_os(&removed[0]).is_some(), "cargo has set it");
        assert_eq!(find(&block, "CARGO_MANIFEST_DIR"), None);
        assert_eq!(find(&block, "PATH"), Some(&b"/here\0"[..]));
        assert_eq!(find(&block, "NEW_ONE"), Some(&b"\0"[..]));
        assert_eq!(block.places.len(), block.strings.len() + 1);
        for (name, value) in [("", "a"), ("A=B", "c"), ("A", "b\0c"), ("A\0", "b")] {
            let added = vec![(name.into(), value.into())];
            assert_eq!(Block::new(&[], added, None).err(), Some(Errno::EINVAL), "{name}={value}");
        }
    }

    proptest! {
        #[test]
        fn any_id_is_written_as_it_is_printed(number: u32) {
            let mut room = [b'#'; DIGITS_MAX + 1];
            write_decimal(&mut room, number);
            let digits = number.to_string();
            prop_assert_eq!(&room[..digits.len()], digits.as_bytes());
            prop_assert_eq!(room[digits.len()], 0);
        }
    }
}
