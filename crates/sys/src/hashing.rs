//! The hash of a client's address, which a program of the kernel computes, too (SplitMix64).

/// An odd number without a pattern: the golden ratio in 64 bits.
pub(crate) const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
/// What the two middle steps multiply by.
pub(crate) const FACTORS: [u64; 2] = [0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb];
/// How far the steps shift.
pub(crate) const SHIFTS: [i32; 3] = [30, 27, 31];

/// The hash of an address in two halves; the upper one is 0 for IPv4.
pub(crate) fn of_address(upper: u64, lower: u64) -> u64 {
    mix(upper.wrapping_mul(GOLDEN) ^ lower)
}

fn mix(mut number: u64) -> u64 {
    for (shift, factor) in SHIFTS.into_iter().zip(FACTORS) {
        number = (number ^ (number >> shift)).wrapping_mul(factor);
    }
    number ^ (number >> SHIFTS[2])
}
