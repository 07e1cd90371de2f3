//! How many handed-over connections a worker may leave unacknowledged. Pure: time is an argument.
//!
//! What has been sent to a Node worker cannot be taken back, so a blocked worker holds as many
//! connections as its window is wide. One is what Node's own primary does; more saves the worker
//! wake-ups. So the window grows while acknowledgements are fast, and one slow one closes it to 1.

/// How the window is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowRule {
    /// Between one and so many.
    UpTo(u16),
    /// Always the same; 1 is what Node's own primary does.
    Fixed(u16),
}

/// Wider windows were not measurably faster, and descriptors under way are bounded by the kernel.
const WIDTH_MAX: u16 = 16;

impl Default for WindowRule {
    fn default() -> Self {
        Self::UpTo(WIDTH_MAX)
    }
}

impl WindowRule {
    /// An acknowledgement within this time is fast. Whoever reads acknowledgements late makes
    /// them slower by as much.
    pub const FAST_NS: u64 = 1_000_000;
    /// One that takes longer than this is slow.
    pub const SLOW_NS: u64 = 5_000_000;

    /// Always so many, as far as that is sensible.
    #[must_use]
    pub fn fixed(count: u32) -> Self {
        Self::Fixed(u16::try_from(count).unwrap_or(WIDTH_MAX).min(WIDTH_MAX))
    }
}

/// A worker's window.
#[derive(Clone, Debug)]
pub(super) struct Window {
    rule: WindowRule,
    width: u16,
}

impl Window {
    pub(super) fn new(rule: WindowRule) -> Self {
        let width = match rule {
            WindowRule::UpTo(_) => 1,
            WindowRule::Fixed(width) => width.max(1),
        };
        Self { rule, width }
    }

    /// How many may be unacknowledged, when the oldest of them was sent so long ago.
    pub(super) fn width(&self, oldest_age_ns: u64) -> usize {
        let closed =
            matches!(self.rule, WindowRule::UpTo(_)) && oldest_age_ns > WindowRule::SLOW_NS;
        usize::from(if closed { 1 } else { self.width })
    }

    /// A connection was taken after so long.
    pub(super) fn acknowledged(&mut self, took_ns: u64) {
        if let WindowRule::UpTo(most) = self.rule {
            if took_ns <= WindowRule::FAST_NS {
                self.width = self.width.saturating_add(1).min(most.max(1));
            } else if took_ns > WindowRule::SLOW_NS {
                self.width = 1;
            }
        }
    }

    /// A connection was refused.
    pub(super) fn refused(&mut self) {
        if let WindowRule::UpTo(_) = self.rule {
            self.width = 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAST_NS: u64 = WindowRule::FAST_NS;
    const SLOW_NS: u64 = WindowRule::SLOW_NS;

    #[test]
    fn fast_answers_open_the_window_and_a_slow_one_closes_it() {
        let mut window = Window::new(WindowRule::UpTo(4));
        let widths = [0, FAST_NS, FAST_NS, FAST_NS, SLOW_NS].map(|took_ns| {
            window.acknowledged(took_ns);
            window.width(0)
        });
        assert_eq!(widths, [2, 3, 4, 4, 4]);
        assert_eq!(window.width(SLOW_NS + 1), 1, "an answer that is overdue counts already");
        window.acknowledged(SLOW_NS + 1);
        assert_eq!(window.width(0), 1);
    }

    #[test]
    fn a_fixed_window_stays() {
        let mut window = Window::new(WindowRule::Fixed(3));
        window.acknowledged(SLOW_NS + 1);
        window.refused();
        assert_eq!(window.width(SLOW_NS + 1), 3);
        assert_eq!([1, 7, 256].map(WindowRule::fixed), [1, 7, 16].map(WindowRule::Fixed));
        assert_eq!(Window::new(WindowRule::Fixed(0)).width(0), 1, "none would be for ever");
    }
}
