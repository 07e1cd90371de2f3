//! Receive buffers: one anonymous mapping, cut into equal slots.
//!
//! The kernel writes into these buffers at any time, so they have fixed addresses, and references
//! to them exist only for slots that nothing is being received into. The ring keeps that promise,
//! which is why the methods here are `unsafe`. Pages are committed when first written to: an
//! unused slot takes no memory.

use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::error::Error;

/// Bytes of one buffer: the most received at once.
pub(crate) const BUFFER_BYTES: usize = 16 * 1024;

/// The buffers of one ring.
#[derive(Debug)]
pub(super) struct Arena {
    base: NonNull<u8>,
    bytes: NonZeroUsize,
}

impl Arena {
    pub(super) fn new(slots: usize) -> Result<Self, Error> {
        let bytes = slots
            .max(1)
            .checked_mul(BUFFER_BYTES)
            .and_then(NonZeroUsize::new)
            .ok_or_else(|| Error::usage("too many connections", "give fewer"))?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice overlaps nothing.
        let base = unsafe { mmap_anonymous(None, bytes, access, flags) }
            .map_err(|errno| Error::system("map the receive buffers", errno))?;
        Ok(Self { base: base.cast(), bytes })
    }

    /// Where slot `slot`'s buffer continues after `offset` bytes, and how much room is left.
    ///
    /// Panics if the slot or the offset lie outside of the mapping.
    pub(super) fn room(&self, slot: u32, offset: usize) -> (NonNull<u8>, u32) {
        let start = slot as usize * BUFFER_BYTES;
        assert!(start < self.bytes.get() && offset <= BUFFER_BYTES, "a slot of this arena");
        // SAFETY: start + offset is at most the mapping's length, asserted above.
        let pointer = unsafe { self.base.add(start + offset) };
        let room = u32::try_from(BUFFER_BYTES - offset).expect("a buffer's size fits 32 bits");
        (pointer, room)
    }

    /// The first `length` bytes of a slot's buffer.
    ///
    /// # Safety
    /// Nothing may be received into the slot while the reference lives.
    pub(super) unsafe fn bytes(&self, slot: u32, length: usize) -> &[u8] {
        assert!(length <= BUFFER_BYTES, "a length within the buffer");
        let (pointer, _) = self.room(slot, 0);
        // SAFETY: the range is mapped and initialised (anonymous pages are zero), lives as long
        // as `self`, and the caller promises that the kernel does not write to it.
        unsafe { std::slice::from_raw_parts(pointer.as_ptr(), length) }
    }

    /// Moves the bytes `from..to` of a slot's buffer to its front.
    ///
    /// # Safety
    /// Nothing may be received into the slot, and no reference to its bytes may live.
    pub(super) unsafe fn keep(&mut self, slot: u32, from: usize, to: usize) {
        assert!(from <= to && to <= BUFFER_BYTES, "a range within the buffer");
        let (front, _) = self.room(slot, 0);
        let (source, _) = self.room(slot, from);
        // SAFETY: both ranges lie in one slot's mapped bytes; `copy_to` allows them to overlap.
        unsafe { source.copy_to(front, to - from) };
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: this value owns the mapping, and the ring drops it only when the kernel has no
        // operation left that could write to it. Failing would only keep it mapped.
        let _ = unsafe { munmap(self.base.cast(), self.bytes.get()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_apart_and_bytes_are_kept() {
        let mut arena = Arena::new(3).expect("a small mapping");
        let (first, room) = arena.room(1, 0);
        assert_eq!(room as usize, BUFFER_BYTES);
        let (second, _) = arena.room(2, 0);
        assert_eq!(second.as_ptr() as usize - first.as_ptr() as usize, BUFFER_BYTES);
        for (place, byte) in (0..=9_u8).enumerate() {
            let (pointer, _) = arena.room(1, place);
            // SAFETY: the place is within the slot, and no reference to it exists.
            unsafe { pointer.write(byte) };
        }
        // SAFETY: nothing is received into this arena, and no reference is held.
        unsafe { arena.keep(1, 4, 10) };
        // SAFETY: as above.
        let bytes = unsafe { arena.bytes(1, 6) };
        assert_eq!(bytes, [4, 5, 6, 7, 8, 9]);
    }
}
