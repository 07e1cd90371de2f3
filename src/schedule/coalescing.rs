//! Whether to hand over at once or to wait for more connections. Pure: times are arguments.
//!
//! What network cards call interrupt coalescing. A connection that is handed over alone costs the
//! primary a wake-up and a message, and its worker a wake-up. While many arrive, waiting for a
//! short time lets several share all three. Waiting costs latency, so nobody waits while the
//! primary has time to spare, or while there would be nobody to wait for.

/// Load and rate are measured over so many windows at a time: long enough that neither a burst nor
/// chance counts for much.
const SLOT_WINDOWS: u64 = 200;
/// The share of a CPU, in percent, that the primary needs before it begins to save it. It is
/// small because the workers pay most of what handing over one by one costs.
const BEGIN_PERCENT: u64 = 15;
/// Below this share it stops. Lower, because saving makes it need less.
const END_PERCENT: u64 = 10;

/// Watches the rate of arrivals and the primary's own load, and says how long to wait.
#[derive(Clone, Debug)]
pub struct Coalescing {
    /// How long to wait; never, if none.
    window_ns: Option<u64>,
    slot_begun_ns: u64,
    slot_arrivals: u64,
    /// When the CPU time was last read, and what it was.
    read_at_ns: u64,
    cpu_ns: u64,
    busy: bool,
}

impl Coalescing {
    /// Waits for `window_ns` at a time while the primary is busy and at least three connections
    /// arrive in two such times.
    #[must_use]
    pub fn new(window_ns: Option<u64>) -> Self {
        Self {
            window_ns: window_ns.filter(|window_ns| *window_ns > 0),
            slot_begun_ns: 0,
            slot_arrivals: 0,
            read_at_ns: 0,
            cpu_ns: 0,
            busy: false,
        }
    }

    /// Takes note of arrivals, and tells for how long, in nanoseconds, to wait for more before
    /// the loop looks again. What has arrived is handed over before that wait.
    ///
    /// `cpu_ns` reads how much CPU time the primary's loop has used. It is asked only when the
    /// rate alone does not decide.
    pub fn wait_ns(
        &mut self,
        arrivals: u64,
        now_ns: u64,
        cpu_ns: impl FnOnce() -> u64,
    ) -> Option<u64> {
        let window_ns = self.window_ns?;
        let passed_ns = now_ns.saturating_sub(self.slot_begun_ns);
        if passed_ns >= window_ns.saturating_mul(SLOT_WINDOWS) {
            let windows = passed_ns / window_ns;
            let worthwhile = self.slot_arrivals.saturating_mul(2) >= windows.saturating_mul(3);
            self.busy = worthwhile && self.is_loaded(now_ns, cpu_ns());
            self.slot_begun_ns = now_ns;
            self.slot_arrivals = 0;
        }
        self.slot_arrivals += arrivals;
        (self.busy && arrivals > 0).then_some(window_ns)
    }

    fn is_loaded(&mut self, now_ns: u64, cpu_ns: u64) -> bool {
        let passed_ns = now_ns.saturating_sub(self.read_at_ns);
        let used_ns = cpu_ns.saturating_sub(self.cpu_ns);
        (self.read_at_ns, self.cpu_ns) = (now_ns, cpu_ns);
        let needed_percent = if self.busy { END_PERCENT } else { BEGIN_PERCENT };
        used_ns.saturating_mul(100) >= passed_ns.saturating_mul(needed_percent)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WINDOW_NS: u64 = 50_000;

    /// A loop to which a connection comes every `gap_ns` and which needs `percent` of its CPU.
    struct Loop {
        coalescing: Coalescing,
        now_ns: u64,
        cpu_ns: u64,
    }

    impl Loop {
        fn new(window_ns: Option<u64>) -> Self {
            Self { coalescing: Coalescing::new(window_ns), now_ns: 1, cpu_ns: 0 }
        }

        /// How many of three thousand connections are followed by a wait.
        fn waits(&mut self, gap_ns: u64, percent: u64) -> u64 {
            let mut waits = 0;
            for _ in 0..3000 {
                self.now_ns += gap_ns;
                self.cpu_ns += gap_ns * percent / 100;
                let wait = self.coalescing.wait_ns(1, self.now_ns, || self.cpu_ns);
                waits += u64::from(wait.is_some());
            }
            waits
        }
    }

    #[test]
    fn many_wait_if_the_loop_is_loaded() {
        let fresh = || Loop::new(Some(WINDOW_NS));
        assert_eq!(fresh().waits(WINDOW_NS / 2, BEGIN_PERCENT - 1), 0, "time to spare");
        assert_eq!(fresh().waits(WINDOW_NS - 1, 100), 0, "hardly anybody to wait for");
        let mut this = fresh();
        let begun = this.waits(WINDOW_NS / 2, BEGIN_PERCENT);
        assert!((2100..3000).contains(&begun), "{begun}");
        assert_eq!(this.waits(WINDOW_NS / 2, END_PERCENT), 3000, "what it saves does not end it");
        let ended = this.waits(WINDOW_NS / 2, END_PERCENT - 1);
        assert!(ended < 900, "{ended}");
    }

    #[test]
    fn the_first_after_a_pause_does_not_wait() {
        let mut this = Loop::new(Some(WINDOW_NS));
        assert!(this.waits(WINDOW_NS / 10, 100) > 0);
        this.now_ns += 1_000_000_000;
        assert_eq!(this.coalescing.wait_ns(1, this.now_ns, || u64::MAX), None);
    }

    #[test]
    fn switched_off_it_never_waits() {
        for window_ns in [None, Some(0)] {
            assert_eq!(Loop::new(window_ns).waits(1, 100), 0);
        }
    }

    proptest! {
        /// Whatever arrives when, nobody waits for nothing, or for longer than the window.
        #[test]
        fn waits_are_bounded_and_follow_an_arrival(
            window_ns in 1u64..1_000_000,
            steps in prop::collection::vec((0u64..50, 0u64..2_000_000, any::<u64>()), 1..200),
        ) {
            let mut coalescing = Coalescing::new(Some(window_ns));
            let mut now_ns = 0;
            for (arrivals, passed_ns, cpu_ns) in steps {
                now_ns += passed_ns;
                let wait = coalescing.wait_ns(arrivals, now_ns, || cpu_ns);
                prop_assert!(wait.is_none() || arrivals > 0 && wait == Some(window_ns));
            }
        }
    }
}
