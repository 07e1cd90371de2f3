//! Repeatable random numbers for arrivals and for requests per connection.
//!
//! Owns one small generator (the SplitMix64 step: a counter passed through a mixing function).
//! Refuses to be seeded by anything but its caller: equal seeds give equal runs.

/// A stream of random numbers that its seed determines.
#[derive(Clone, Debug)]
pub(crate) struct Random {
    state: u64,
}

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    pub(crate) fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Uniform in [0, 1): 53 bits, all that a double can hold.
    pub(crate) fn unit(&mut self) -> f64 {
        const STEPS: f64 = (1_u64 << 53) as f64;
        (self.next_u64() >> 11) as f64 / STEPS
    }

    /// Uniform in `low..=high`.
    pub(crate) fn between(&mut self, low: u32, high: u32) -> u32 {
        let span = u64::from(high.saturating_sub(low)) + 1;
        // A product of two 32-bit numbers, scaled down: the bias is below 2^-32.
        let offset = ((self.next_u64() >> 32) * span) >> 32;
        low + u32::try_from(offset).expect("the offset is below the span, which fits 32 bits")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn stays_in_range(seed: u64, low in 0_u32..1000, width in 0_u32..1000) {
            let mut random = Random::new(seed);
            for _ in 0..50 {
                let value = random.between(low, low + width);
                prop_assert!((low..=low + width).contains(&value));
                let unit = random.unit();
                prop_assert!((0.0..1.0).contains(&unit));
            }
        }
    }

    #[test]
    fn the_whole_range_of_counts_is_possible() {
        let mut random = Random::new(1);
        assert!((0..100).any(|_| random.between(0, u32::MAX) > u32::MAX / 2));
    }
}
