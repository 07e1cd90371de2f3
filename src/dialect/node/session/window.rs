//! Limits the unacknowledged connections of a worker. Pure: time is an argument.
//!
//! A connection sent to a Node worker cannot be taken back, so a blocked worker holds as many as
//! its window allows. Node's own primary uses a window of 1; a larger one saves wake-ups of the
//! worker. The window grows while acknowledgements are fast, and a single slow one resets it to 1.

/// How the window is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowRule {
    /// Adaptive, between 1 and this.
    UpTo(u16),
    /// Constant; Node's own primary uses 1.
    Fixed(u16),
}

/// Wider windows were not measurably faster, and the kernel bounds the descriptors in flight.
const WIDTH_MAX: u16 = 16;

impl Default for WindowRule {
    fn default() -> Self {
        Self::UpTo(WIDTH_MAX)
    }
}

impl WindowRule {
    /// An acknowledgement within this time is fast. It includes the time until the primary reads
    /// it.
    pub const FAST_NS: u64 = 1_000_000;
    /// An acknowledgement after this time is slow.
    pub const SLOW_NS: u64 = 5_000_000;

    /// A constant window, clamped to sensible widths.
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

    /// Maximum number of unacknowledged connections, given the age of the oldest.
    pub(super) fn width(&self, oldest_age_ns: u64) -> usize {
        let closed =
            matches!(self.rule, WindowRule::UpTo(_)) && oldest_age_ns > WindowRule::SLOW_NS;
        usize::from(if closed { 1 } else { self.width })
    }

    /// Records a connection taken after `took_ns`.
    pub(super) fn acknowledged(&mut self, took_ns: u64) {
        if let WindowRule::UpTo(most) = self.rule {
            if took_ns <= WindowRule::FAST_NS {
                self.width = self.width.saturating_add(1).min(most.max(1));
            } else if took_ns > WindowRule::SLOW_NS {
                self.width = 1;
            }
        }
    }

    /// Records a refused connection.
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
