//! When a run is given up, and whether the figures of a finished one may be trusted. Pure.

use serde::{Deserialize, Serialize};

use crate::plan::SECOND_NS;
use crate::tally::ErrorKind;

/// Failures without any success after which a run is given up at once.
const FAILURES_MAX: u64 = 100;
/// Refusals without any answer for this long mean that the target has gone away.
const GONE_NS: u64 = 3 * SECOND_NS;
/// The least share of the asked rate that counts as kept.
const ACHIEVED_MIN: f64 = 0.99;
/// Answers that may be missing whatever the share: the last two do not decide over a short run.
const MISSING_MAX: f64 = 2.0;
/// A larger share of failures, or of answers with a 5xx status, is not a measurement of service.
const FAILED_MAX: f64 = 0.01;
/// A thread that needs more than this of a CPU, whether it gets it or not, is the bottleneck.
const CPU_PERCENT_MAX: f64 = 90.0;
/// Starts later than this at the 99th percentile mean that the plan was not kept.
const LATENESS_P99_US_MAX: f64 = 1000.0;

/// Where a run stands, over all threads and with the warm-up.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Standing {
    pub(crate) elapsed_ns: u64,
    pub(crate) completed: u64,
    pub(crate) failed: u64,
    pub(crate) refused: u64,
    pub(crate) in_flight: u64,
}

/// Why a run is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GiveUp {
    /// Nothing has ever been answered.
    NeverAnswered,
    /// It was answered once, but now every connect is refused.
    Gone,
}

/// Watches a run for a target that is not there.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    completed: u64,
    refused: u64,
    since_ns: u64,
}

impl Watch {
    /// Compares where the run stands now with where it stood.
    pub(crate) fn look(&mut self, standing: Standing) -> Option<GiveUp> {
        if standing.completed != self.completed {
            self.completed = standing.completed;
            self.refused = standing.refused;
            self.since_ns = standing.elapsed_ns;
            return None;
        }
        if standing.completed == 0 {
            let many = standing.failed >= FAILURES_MAX && standing.failed >= standing.in_flight;
            let all = standing.failed > 0 && standing.in_flight == 0;
            let long = standing.elapsed_ns >= SECOND_NS;
            return (many || (all && long)).then_some(GiveUp::NeverAnswered);
        }
        let silent = standing.elapsed_ns.saturating_sub(self.since_ns) >= GONE_NS;
        (silent && standing.refused > self.refused).then_some(GiveUp::Gone)
    }
}

/// Why a run's results are missing or cut short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What was being done.
    pub step: String,
    /// Why it failed.
    pub cause: String,
    /// What the reader can do.
    pub hint: String,
}

/// What to do about failures of a kind.
pub(crate) fn hint(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::ConnectRefused => "start the server, or check the address and port",
        ErrorKind::ConnectTimeout => "check the address, firewalls, and the server's queue length",
        ErrorKind::ConnectFailed => "check that the address can be reached from here",
        ErrorKind::Local => {
            "raise `ulimit -Hn`, use more --sources or --close rst, or give fewer connections"
        }
        ErrorKind::Reset => "look at the server's log: it resets connections",
        ErrorKind::Timeout => "the server is stuck or too slow: lower the load or raise --timeout",
        ErrorKind::ClosedEarly => "look at the server's log: it closes before it has answered",
        ErrorKind::BadResponse => {
            "check that the server speaks what --mode says (http, echo or connect)"
        }
        ErrorKind::TlsFailed => {
            "check the name and the port with `openssl s_client -connect host:port`; SSL_CERT_FILE \
             names further roots, --insecure accepts any certificate"
        }
    }
}

/// Whether a run's figures may be trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Validity {
    /// True if there is no reason against it.
    pub valid: bool,
    /// Why not.
    pub reasons: Vec<Reason>,
}

/// One reason against a run's figures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// For programs: `interrupted`, `nothing_measured`, `requests_failed`, `server_errors`,
    /// `rate_missed`, `starts_dropped`, `starts_late`, `generator_busy`, `listen_overflows` or
    /// `values_saturated`.
    pub code: String,
    /// For people.
    pub text: String,
}

/// What a run's validity is judged by.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Evidence {
    pub(crate) open_loop: bool,
    pub(crate) planned: u64,
    pub(crate) completed: u64,
    pub(crate) completed_in_time: u64,
    pub(crate) failed: u64,
    pub(crate) server_errors: u64,
    pub(crate) dropped: u64,
    pub(crate) lateness_p99_us: f64,
    pub(crate) busiest_cpu_percent: f64,
    pub(crate) busiest_waiting_percent: f64,
    pub(crate) listen_overflows: u64,
    pub(crate) saturated: u64,
    pub(crate) interrupted: bool,
    pub(crate) measured_s: f64,
    /// A latency that nine of ten answers exceed: what even the last request of a run needs.
    pub(crate) response_p10_s: f64,
}

impl Evidence {
    /// The share of the requests that could be answered in time and were.
    pub(crate) fn achieved(&self) -> f64 {
        let possible = self.possible();
        if possible <= 0.0 {
            return 1.0;
        }
        (self.completed_in_time as f64 / possible).min(1.0)
    }

    /// Requests that could be answered in time: not those planned right before the end.
    fn possible(&self) -> f64 {
        let share = 1.0 - self.response_p10_s / self.measured_s.max(1e-9);
        self.planned as f64 * share.max(0.0)
    }

    /// Gives the reasons against the figures, if there are any.
    pub(crate) fn judge(&self) -> Validity {
        let reasons: Vec<Reason> =
            self.against_answers().into_iter().chain(self.against_generator()).flatten().collect();
        Validity { valid: reasons.is_empty(), reasons }
    }

    /// Reasons that lie with the target.
    fn against_answers(&self) -> [Option<Reason>; 5] {
        let missing = self.possible() - self.completed_in_time as f64;
        let percent = self.achieved() * 100.0;
        let missed = self.open_loop && self.achieved() < ACHIEVED_MIN && missing > MISSING_MAX;
        let failing = self.failed as f64 > FAILED_MAX * self.planned as f64;
        let refusing = self.server_errors as f64 > FAILED_MAX * self.completed as f64;
        [
            reason(self.completed == 0, "nothing_measured", || "no request was answered".into()),
            reason(failing, "requests_failed", || {
                format!("{} of {} requests failed", self.failed, self.planned)
            }),
            reason(refusing, "server_errors", || {
                format!("{} answers have a 5xx status", self.server_errors)
            }),
            reason(missed, "rate_missed", || {
                format!("{percent:.1} % of the requested rate was answered in time")
            }),
            reason(self.listen_overflows > 0, "listen_overflows", || {
                format!("listen queues overflowed {} times on this machine", self.listen_overflows)
            }),
        ]
    }

    /// Reasons that lie with the generator.
    fn against_generator(&self) -> [Option<Reason>; 5] {
        let (used, waited) = (self.busiest_cpu_percent, self.busiest_waiting_percent);
        let busy = used + waited > CPU_PERCENT_MAX;
        let late = self.lateness_p99_us > LATENESS_P99_US_MAX;
        [
            reason(self.interrupted, "interrupted", || "the run was ended before its time".into()),
            reason(self.dropped > 0, "starts_dropped", || {
                format!("{} planned starts found no connection in time", self.dropped)
            }),
            reason(late, "starts_late", || {
                format!("the 99th percentile of starts is {:.0} µs late", self.lateness_p99_us)
            }),
            reason(busy, "generator_busy", || {
                let wait = match waited {
                    ..1.0 => String::new(),
                    _ => format!(" and waited for a CPU {waited:.0} % of the time"),
                };
                format!("a generator thread was {used:.0} % busy{wait}: it may be the bottleneck")
            }),
            reason(self.saturated > 0, "values_saturated", || {
                format!("{} latencies exceed the histogram's 60 s", self.saturated)
            }),
        ]
    }
}

fn reason(holds: bool, code: &str, text: impl FnOnce() -> String) -> Option<Reason> {
    holds.then(|| Reason { code: code.to_owned(), text: text() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(seconds: f64, completed: u64, failed: u64, in_flight: u64) -> Standing {
        Standing {
            elapsed_ns: crate::plan::nanoseconds(seconds),
            completed,
            failed,
            refused: failed,
            in_flight,
        }
    }

    #[test]
    fn a_target_that_is_not_there_is_given_up_soon() {
        let mut watch = Watch::default();
        assert_eq!(watch.look(standing(0.1, 0, 50, 0)), None);
        assert_eq!(watch.look(standing(0.2, 0, 100, 0)), Some(GiveUp::NeverAnswered));
        assert_eq!(watch.look(standing(1.0, 0, 1, 0)), Some(GiveUp::NeverAnswered));
    }

    #[test]
    fn a_slow_target_is_waited_for() {
        let mut watch = Watch::default();
        assert_eq!(watch.look(standing(5.0, 0, 0, 64)), None);
        assert_eq!(watch.look(standing(5.0, 0, 1, 64)), None);
    }

    #[test]
    fn a_target_that_goes_away_is_noticed_but_a_respawn_is_tolerated() {
        let mut watch = Watch::default();
        assert_eq!(watch.look(standing(1.0, 10, 0, 0)), None);
        assert_eq!(watch.look(standing(3.9, 10, 500, 0)), None);
        assert_eq!(watch.look(standing(3.95, 11, 600, 0)), None);
        assert_eq!(watch.look(standing(6.9, 11, 900, 0)), None);
        assert_eq!(watch.look(standing(7.0, 11, 900, 0)), Some(GiveUp::Gone));
        // A stall without refusals is a measurement, not an absence.
        let mut watch = Watch::default();
        assert_eq!(watch.look(standing(1.0, 10, 0, 5)), None);
        assert_eq!(watch.look(standing(9.0, 10, 0, 900)), None);
    }

    fn good() -> Evidence {
        Evidence {
            open_loop: true,
            planned: 1000,
            completed: 1000,
            completed_in_time: 999,
            measured_s: 10.0,
            ..Evidence::default()
        }
    }

    #[test]
    fn a_clean_run_is_valid_and_each_flaw_is_named() {
        assert!(good().judge().valid);
        type Flaw = fn(&mut Evidence);
        let flaws: [(&str, Flaw); 10] = [
            ("requests_failed", |evidence| evidence.failed = 11),
            ("server_errors", |evidence| evidence.server_errors = 11),
            ("rate_missed", |evidence| evidence.completed_in_time = 900),
            ("listen_overflows", |evidence| evidence.listen_overflows = 1),
            ("interrupted", |evidence| evidence.interrupted = true),
            ("starts_dropped", |evidence| evidence.dropped = 1),
            ("starts_late", |evidence| evidence.lateness_p99_us = 1500.0),
            ("generator_busy", |evidence| evidence.busiest_cpu_percent = 99.0),
            ("generator_busy", |evidence| {
                evidence.busiest_cpu_percent = 50.0;
                evidence.busiest_waiting_percent = 45.0;
            }),
            ("values_saturated", |evidence| evidence.saturated = 1),
        ];
        for (code, spoil) in flaws {
            let mut evidence = good();
            spoil(&mut evidence);
            let validity = evidence.judge();
            assert!(!validity.valid);
            assert_eq!(validity.reasons[0].code, code);
        }
    }

    #[test]
    fn requests_planned_right_before_the_end_do_not_count_against_a_run() {
        // 10/s for 1 s against a server that needs 100 ms: the tenth cannot be answered in time.
        let evidence = Evidence {
            planned: 10,
            completed: 10,
            completed_in_time: 9,
            measured_s: 1.0,
            response_p10_s: 0.1,
            ..good()
        };
        assert!(evidence.judge().valid);
        assert!((evidence.achieved() - 1.0).abs() < 1e-9);
    }
}
