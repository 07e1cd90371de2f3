//! A group of receive buffers from which the kernel picks (a provided buffer ring, Linux 5.19).
//!
//! Owns the memory. A buffer is either offered (the kernel may write to it) or held (this process
//! may read it); a [`BufferId`] exists only while it is held.

use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;
use io_uring::{IoUring, Submitter};
use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::engine::event::BufferId;
use crate::error::{Error, Result, errno_of};
use crate::probe::without_hurry;

/// Shape of a group.
#[derive(Clone, Copy, Debug)]
pub(super) struct GroupShape {
    /// Id of the group, unique in its ring.
    pub(super) group: u16,
    /// Number of buffers: a power of two up to 32768.
    pub(super) count: u16,
    /// Size of each buffer in bytes.
    pub(super) buffer_bytes: u32,
}

#[derive(Debug)]
struct Mapping {
    address: NonNull<c_void>,
    bytes: NonZeroUsize,
}

/// The buffers.
#[derive(Debug)]
pub(super) struct BufferGroup {
    shape: GroupShape,
    entries: Mapping,
    data: Mapping,
    tail: u16,
    offered: u16,
    held_back: Vec<u16>,
}

// SAFETY: the mappings belong to this value alone, which moves as a whole.
unsafe impl Send for BufferGroup {}

impl BufferGroup {
    /// Maps the memory and registers the group without offering any buffer.
    ///
    /// # Errors
    /// Memory is exhausted, or the kernel is older than 5.19.
    pub(super) fn register(ring: &IoUring, shape: GroupShape) -> Result<Self> {
        let entries = Mapping::new(usize::from(shape.count) * size_of::<BufRingEntry>())?;
        let data = Mapping::new(usize::from(shape.count) * shape.buffer_bytes as usize)?;
        let address = entries.address.as_ptr() as u64;
        let submitter: Submitter<'_> = ring.submitter();
        // Locked memory of a ring just dropped stays counted for a moment.
        let registered = without_hurry(|| {
            // SAFETY: the entries are mapped, page-aligned and outlive the ring, since the ring
            // that holds this group is torn down first.
            unsafe { submitter.register_buf_ring_with_flags(address, shape.count, shape.group, 0) }
        });
        registered.map_err(|error| {
            Error::system("register receive buffers with the io_uring", errno_of(&error))
        })?;
        let held_back = (0..shape.count).rev().collect();
        Ok(Self { shape, entries, data, tail: 0, offered: 0, held_back })
    }

    /// Id of the group.
    pub(super) fn group(&self) -> u16 {
        self.shape.group
    }

    /// Number of buffers that the kernel may fill now.
    pub(super) fn offered(&self) -> u16 {
        self.offered
    }

    /// Offers held-back buffers until the kernel has `target`, as far as there are any.
    pub(super) fn offer_up_to(&mut self, target: u16) {
        let before = self.offered;
        while self.offered < target {
            let Some(number) = self.held_back.pop() else {
                break;
            };
            self.write_entry(number);
        }
        if self.offered != before {
            self.publish();
        }
    }

    /// Records that the kernel has filled a buffer, which is held from now on.
    pub(super) fn take(&mut self, number: u16) -> BufferId {
        self.offered = self.offered.saturating_sub(1);
        BufferId(number)
    }

    /// The first `length` bytes of a held buffer.
    pub(super) fn bytes(&self, buffer: &BufferId, length: usize) -> &[u8] {
        let size = self.shape.buffer_bytes as usize;
        let start = usize::from(buffer.0 % self.shape.count) * size;
        let base = self.data.address.cast::<u8>();
        // SAFETY: `start` is at most the mapping's length less one buffer.
        let address = unsafe { base.add(start) };
        // SAFETY: the bytes lie inside the mapping, are initialised (anonymous memory starts as
        // zeros) and the kernel does not write to a buffer that is not offered.
        unsafe { slice::from_raw_parts(address.as_ptr(), length.min(size)) }
    }

    /// Holds a buffer back until [`BufferGroup::offer_up_to`] needs it.
    pub(super) fn hold_back(&mut self, buffer: BufferId) {
        self.held_back.push(buffer.0);
    }

    /// Offers a held buffer again at once.
    pub(super) fn recycle(&mut self, buffer: BufferId) {
        self.write_entry(buffer.0);
        self.publish();
    }

    fn write_entry(&mut self, number: u16) {
        let mask = self.shape.count - 1;
        let place = usize::from(self.tail & mask);
        let base = self.entries.address.cast::<BufRingEntry>();
        // SAFETY: `place` is below the number of entries that were mapped.
        let mut entry = unsafe { base.add(place) };
        let offset = usize::from(number) * self.shape.buffer_bytes as usize;
        let address = self.data.address.as_ptr() as u64 + offset as u64;
        // SAFETY: the entry at the tail is ours until the tail is published; there is no other
        // reference to it in this process.
        let entry = unsafe { entry.as_mut() };
        entry.set_addr(address);
        entry.set_len(self.shape.buffer_bytes);
        entry.set_bid(number);
        self.tail = self.tail.wrapping_add(1);
        self.offered += 1;
    }

    fn publish(&self) {
        let base = self.entries.address.cast::<BufRingEntry>().as_ptr();
        // SAFETY: `base` is the first entry of the mapped ring.
        let tail = unsafe { BufRingEntry::tail(base) };
        // SAFETY: the tail is an aligned u16 in memory that lives as long as `self`; the kernel
        // only reads it.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }
}

impl Mapping {
    fn new(bytes: usize) -> Result<Self> {
        let bytes = NonZeroUsize::new(bytes).expect("a group has at least one buffer");
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh anonymous mapping overlaps nothing.
        let address = unsafe { mmap_anonymous(None, bytes, protection, MapFlags::MAP_PRIVATE) };
        let failed = |errno: Errno| Error::system("map receive buffers", errno);
        Ok(Self { address: address.map_err(failed)?, bytes })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this address and length, and the ring that could
        // still write into it has been torn down (see `Ring`'s drop).
        let _ = unsafe { munmap(self.address, self.bytes.get()) };
    }
}
