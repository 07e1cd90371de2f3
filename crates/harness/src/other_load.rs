//! What else ran on the CPUs of a measurement.
//!
//! The machine's CPU time without that of this process and of what it has started. Does not judge
//! short measurements: a tick is 10 ms.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;

/// Length of a tick in `/proc/stat`.
const TICK: Duration = Duration::from_millis(10);
/// Others that take more than this share of the CPUs change who gets a connection: workers that
/// wait for a CPU are passed over.
pub const SHARE_MAX: f64 = 0.25;
/// What that comes to.
const EFFECT: &str = "they may have shifted the load";
/// Too few ticks to tell.
const SHORTEST: Duration = Duration::from_millis(100);

/// The CPU time up to a moment.
#[derive(Clone, Debug)]
pub struct OtherLoad {
    at: Instant,
    busy: Duration,
    own: Duration,
    cpus: Vec<usize>,
}

impl OtherLoad {
    /// Begins to look at these CPUs.
    #[must_use]
    pub fn look(cpus: impl IntoIterator<Item = usize>) -> Self {
        let mut cpus: Vec<usize> = cpus.into_iter().collect();
        cpus.sort_unstable();
        cpus.dedup();
        let busy = busy(&fs::read_to_string("/proc/stat").unwrap_or_default(), &cpus);
        Self { at: Instant::now(), busy, own: own(), cpus }
    }

    /// The objection to a measurement that began with this sample, if other processes were too
    /// busy. Everything that it started must have ended.
    #[must_use]
    pub fn objection(&self) -> Option<String> {
        self.share().filter(|share| *share > SHARE_MAX).map(|share| {
            format!("other processes took {:.0} % of the CPUs during this: {EFFECT}", 100.0 * share)
        })
    }

    /// Whether a text is such an objection.
    #[must_use]
    pub fn is_objection(text: &str) -> bool {
        text.ends_with(EFFECT)
    }

    /// Such an objection to several of a number of measurements.
    #[must_use]
    pub fn objection_to(several: usize, all: usize) -> String {
        format!(
            "In {several} of {all} runs other processes took more than {:.0} % of the CPUs: \
             {EFFECT}. Each is named with --json and --csv.",
            100.0 * SHARE_MAX
        )
    }

    /// The share of these CPUs that other processes have taken since; none after too short a time.
    #[must_use]
    pub fn share(&self) -> Option<f64> {
        let now = Self::look(self.cpus.iter().copied());
        let passed = now.at.duration_since(self.at);
        let busy = now.busy.saturating_sub(self.busy);
        share(passed, busy, now.own.saturating_sub(self.own), self.cpus.len())
    }
}

/// Share of the CPUs that was neither idle nor ours.
fn share(passed: Duration, busy: Duration, own: Duration, cpus: usize) -> Option<f64> {
    let cpus = f64::from(u32::try_from(cpus).ok()?);
    (passed >= SHORTEST && cpus > 0.0)
        .then(|| busy.saturating_sub(own).as_secs_f64() / (passed.as_secs_f64() * cpus))
}

/// Time that these CPUs were not idle, or were taken by the hypervisor.
fn busy(stat: &str, cpus: &[usize]) -> Duration {
    let ticks = cpus.iter().filter_map(|cpu| {
        let name = format!("cpu{cpu} ");
        let line = stat.lines().find_map(|line| line.strip_prefix(&name))?;
        let ticks: Vec<u32> =
            line.split_ascii_whitespace().map_while(|ticks| ticks.parse().ok()).collect();
        // user nice system idle iowait irq softirq steal
        let part = |place: usize| ticks.get(place).copied().unwrap_or(0);
        Some([0, 1, 2, 5, 6, 7].map(part).iter().sum::<u32>())
    });
    ticks.map(|ticks| TICK * ticks).sum()
}

/// CPU time of this process, and of all that it has started and that has ended.
fn own() -> Duration {
    let of = |who| {
        let usage = getrusage(who).ok();
        usage.map_or(Duration::ZERO, |usage| {
            let time = usage.user_time() + usage.system_time();
            Duration::from_micros(u64::try_from(time.num_microseconds()).unwrap_or(0))
        })
    };
    of(UsageWho::RUSAGE_SELF) + of(UsageWho::RUSAGE_CHILDREN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_others_is_what_is_left() {
        let ms = Duration::from_millis;
        assert_eq!(share(ms(1000), ms(1500), ms(500), 2), Some(0.5));
        assert_eq!(share(ms(1000), ms(400), ms(500), 2), Some(0.0));
        assert_eq!(share(ms(50), ms(50), ms(0), 2), None);
    }

    #[test]
    fn only_the_cpus_of_the_measurement_count() {
        let stat = "cpu  9 9 9 9 9 9 9 9\ncpu0 1 2 3 100 100 4 5 6 7 8\ncpu1 9 0 0 0\ncpu10 7\n";
        assert_eq!(busy(stat, &[0]), TICK * 21);
        assert_eq!(busy(stat, &[0, 1, 10, 11]), TICK * 37);
        assert!(own() > Duration::ZERO && !OtherLoad::look([0]).cpus.is_empty());
    }
}
