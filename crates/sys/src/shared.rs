//! One page of atomic words, mapped by two processes and sealed against truncation.
//!
//! Owns the mapping; `scoreboard` owns the meaning of the words. The other process is not trusted:
//! it may write anything, and every word is read only as a number. It cannot shrink the memory,
//! because the seals forbid it.

use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::stat::fstat;
use nix::unistd::ftruncate;

use crate::bpf;
use crate::error::{Error, Result};

/// Size of a page.
pub const PAGE_BYTES: usize = 4096;
/// Size of a line: two cache lines, because the hardware prefetches lines in pairs.
pub const LINE_BYTES: usize = 128;
/// Words per line.
pub const LINE_WORDS: usize = LINE_BYTES / size_of::<u64>();
/// Lines per page.
pub const PAGE_LINES: usize = PAGE_BYTES / LINE_BYTES;

/// The seals: the size is fixed, and the seals cannot be removed.
const SEALS: SealFlag =
    SealFlag::F_SEAL_SHRINK.union(SealFlag::F_SEAL_GROW).union(SealFlag::F_SEAL_SEAL);

type Words = [[AtomicU64; LINE_WORDS]; PAGE_LINES];

/// A mapped page.
#[derive(Debug)]
pub struct SharedPage {
    words: NonNull<Words>,
    memory: OwnedFd,
}

// SAFETY: the mapping is process-wide and holds nothing but atomics, so any thread may own it.
unsafe impl Send for SharedPage {}
// SAFETY: every access through a shared reference is an atomic operation.
unsafe impl Sync for SharedPage {}

impl SharedPage {
    /// Creates a page of zeros.
    ///
    /// # Errors
    /// Memory or descriptors are exhausted.
    pub fn create() -> Result<Self> {
        let failed = |errno| Error::system("create a page of shared counters", errno);
        let memory =
            memfd_create(c"clusterlb-board", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)
                .map_err(failed)?;
        ftruncate(&memory, 4096).map_err(failed)?;
        fcntl(&memory, FcntlArg::F_ADD_SEALS(SEALS)).map_err(failed)?;
        Self::map(memory)
    }

    /// Creates a page of zeros that BPF programs can read, too.
    ///
    /// # Errors
    /// This process may not create BPF maps, memory is exhausted, or there is no /proc.
    pub fn create_map() -> std::result::Result<Self, Errno> {
        let bytes = u32::try_from(PAGE_BYTES).expect("a page is small");
        let memory = bpf::create_array(bytes, true)?;
        // Without /proc other processes could not recognize it, and would refuse it.
        if !bpf::is_page(&memory) {
            return Err(Errno::EOPNOTSUPP);
        }
        Self::map_at(memory)
    }

    /// Maps a page that another process created.
    ///
    /// # Errors
    /// `memory` is neither a sealed page nor a map of one, so reading it could fault.
    pub fn open(memory: OwnedFd) -> Result<Self> {
        if !is_sealed(&memory) && !bpf::is_page(&memory) {
            return Err(Error::system("open the page of shared counters", Errno::EINVAL));
        }
        Self::map(memory)
    }

    fn map(memory: OwnedFd) -> Result<Self> {
        Self::map_at(memory).map_err(|errno| Error::system("map a page of shared counters", errno))
    }

    fn map_at(memory: OwnedFd) -> std::result::Result<Self, Errno> {
        Self::map_part(memory, 0, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)
    }

    /// Maps the page of a BPF ring that its reader writes to, or the one that it only reads.
    pub(crate) fn map_ring(ring: OwnedFd, is_readers: bool) -> std::result::Result<Self, Errno> {
        match is_readers {
            true => Self::map_at(ring),
            false => Self::map_part(ring, 4096, ProtFlags::PROT_READ),
        }
    }

    fn map_part(
        memory: OwnedFd,
        from: libc::off_t,
        protection: ProtFlags,
    ) -> std::result::Result<Self, Errno> {
        let length = NonZeroUsize::new(PAGE_BYTES).expect("a page is not empty");
        let flags = MapFlags::MAP_SHARED;
        // SAFETY: a fresh mapping at an address of the kernel's choice overlaps nothing.
        let address = unsafe { mmap(None, length, protection, flags, &memory, from) }?;
        Ok(Self { words: address.cast(), memory })
    }

    /// Offset of `line` in bytes.
    #[must_use]
    pub const fn offset_of(line: usize) -> usize {
        line * LINE_BYTES
    }

    /// Offset of a word in bytes.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "a page")]
    pub const fn offset_of_word(line: usize, word: usize) -> i16 {
        (Self::offset_of(line) + word * size_of::<u64>()) as i16
    }

    /// The word at `word` of `line`.
    ///
    /// # Panics
    /// If `line` or `word` is outside the page.
    #[must_use]
    pub fn word(&self, line: usize, word: usize) -> &AtomicU64 {
        // SAFETY: the page is mapped, aligned and sealed at this size as long as `self` lives,
        // any bit pattern is an AtomicU64, and all access is atomic.
        let words = unsafe { self.words.as_ref() };
        &words[line][word]
    }
}

/// Whether no process can shrink it.
fn is_sealed(memory: &OwnedFd) -> bool {
    let seals = fcntl(memory, FcntlArg::F_GET_SEALS).map(SealFlag::from_bits_truncate);
    let size = fstat(memory).map(|data| data.st_size);
    seals.is_ok_and(|seals| seals.contains(SEALS)) && size == Ok(4096)
}

impl AsFd for SharedPage {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }
}

impl Drop for SharedPage {
    fn drop(&mut self) {
        let address: NonNull<c_void> = self.words.cast();
        // SAFETY: `address` came from mmap with this length and no reference outlives `self`.
        let _ = unsafe { munmap(address, PAGE_BYTES) };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn two_mappings_see_the_same_words() {
        let first = SharedPage::create().expect("a page can be created");
        let memory = first.as_fd().try_clone_to_owned().expect("the page can be duplicated");
        let second = SharedPage::open(memory).expect("the page can be mapped again");
        first.word(3, 1).store(42, Ordering::Release);
        assert_eq!(second.word(3, 1).load(Ordering::Acquire), 42);
    }

    #[test]
    fn a_map_is_a_page_as_well() {
        let Ok(first) = SharedPage::create_map() else {
            return crate::missing::lacking("CAP_BPF, with which pages are maps");
        };
        let memory = first.as_fd().try_clone_to_owned().expect("the map can be duplicated");
        let second = SharedPage::open(memory).expect("the map can be mapped again");
        first.word(31, 15).store(42, Ordering::Release);
        assert_eq!(second.word(31, 15).load(Ordering::Acquire), 42);
        let other = bpf::create_array(8, false).expect("it was allowed before");
        assert!(SharedPage::open(other).is_err(), "it is shorter");
    }

    #[test]
    fn an_unsealed_file_is_refused() {
        let memory = memfd_create(c"unsealed", MFdFlags::MFD_CLOEXEC).expect("memfd");
        ftruncate(&memory, 4096).expect("a size");
        assert!(SharedPage::open(memory).is_err());
    }
}
