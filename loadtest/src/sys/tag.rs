//! What a completion belongs to, packed into its 64 bits of user data. Pure.
//!
//! `operation:8 | generation:24 | slot:32`. The generation tells a slot's tenants apart, so that a
//! late completion can never be taken for its successor's.

/// Generations wrap at 24 bits.
const GENERATION_MASK: u32 = 0x00FF_FFFF;

/// The kind of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Operation {
    Connect = 1,
    Send = 2,
    Receive = 3,
    Cancel = 4,
    Close = 5,
}

/// An operation on a slot's present tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tag {
    pub(crate) operation: Operation,
    pub(crate) generation: u32,
    pub(crate) slot: u32,
}

impl Tag {
    pub(crate) fn pack(self) -> u64 {
        let operation = u64::from(self.operation as u8);
        let generation = u64::from(self.generation & GENERATION_MASK);
        operation << 56 | generation << 32 | u64::from(self.slot)
    }

    pub(crate) fn unpack(data: u64) -> Option<Self> {
        let operation = match data >> 56 {
            1 => Operation::Connect,
            2 => Operation::Send,
            3 => Operation::Receive,
            4 => Operation::Cancel,
            5 => Operation::Close,
            _ => return None,
        };
        let low = |bits: u64| u32::try_from(bits & u64::from(u32::MAX)).unwrap_or(0);
        Some(Self { operation, generation: low(data >> 32) & GENERATION_MASK, slot: low(data) })
    }
}

/// The generation after this one.
pub(crate) fn following(generation: u32) -> u32 {
    generation.wrapping_add(1) & GENERATION_MASK
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked(kind in 1_u8..=5, generation in 0_u32..1 << 24, slot: u32) {
            let operation = match kind {
                1 => Operation::Connect,
                2 => Operation::Send,
                3 => Operation::Receive,
                4 => Operation::Cancel,
                _ => Operation::Close,
            };
            let tag = Tag { operation, generation, slot };
            prop_assert_eq!(Tag::unpack(tag.pack()), Some(tag));
            prop_assert!(following(generation) < 1 << 24);
        }

        #[test]
        fn anything_else_is_not_taken_for_a_tag(data: u64) {
            if let Some(tag) = Tag::unpack(data) {
                prop_assert_eq!(tag.pack(), data);
            }
        }
    }
}
