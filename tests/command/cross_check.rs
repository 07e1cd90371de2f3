//! The load generator against others: `wrk`, `ab` and `h2load`, where installed.
//!
//! Counts must agree exactly with the server's own: requests sent by a generator, served by the
//! server, and reported by the generator are one number. Latencies are compared with a server that
//! takes 20 ms: no generator may report less, and the fastest of many answers must be of the same
//! order of magnitude, however busy the machine is.

use std::process::{Command, Stdio};

use serde_json::Value;

use crate::common::{BINARY, Launch, Summary, has_program};

/// A generator's report of a run.
#[derive(Debug)]
struct Told {
    completed: u64,
    failed: u64,
    /// The fastest answer, or the median if the generator does not report it.
    fast_ms: f64,
}

/// A generator: the program, and its arguments for a number of requests and clients.
struct Generator {
    program: &'static str,
    arguments: fn(&Ask, address: &str) -> String,
    told: fn(&str) -> Option<Told>,
}

/// The load.
struct Ask {
    requests: u64,
    clients: u64,
    /// Connections are reused.
    kept: bool,
}

const OWN: Generator = Generator {
    program: BINARY,
    arguments: |ask, address| {
        let Ask { requests, clients, kept } = ask;
        let kept = if *kept { " --requests-per-connection unlimited" } else { "" };
        format!("load --json --quiet --requests {requests} --connections {clients}{kept} {address}")
    },
    told: |output| {
        let report: Value = serde_json::from_str(output).ok()?;
        Some(Told {
            completed: report["totals"]["completed"].as_u64()?,
            failed: report["totals"]["failed"].as_u64()?,
            fast_ms: report["latency"]["response"]["min_us"].as_f64()? / 1e3,
        })
    },
};

const AB: Generator = Generator {
    program: "ab",
    arguments: |ask, address| {
        let Ask { requests, clients, kept } = ask;
        let kept = if *kept { "-k " } else { "" };
        format!("-q {kept}-n {requests} -c {clients} http://{address}/")
    },
    told: |output| {
        Some(Told {
            completed: number(output, "Complete requests:")?,
            failed: number(output, "Failed requests:")?,
            // Minimum, mean, deviation, median and maximum, in whole milliseconds.
            fast_ms: number(output, "Total:")?,
        })
    },
};

const H2LOAD: Generator = Generator {
    program: "h2load",
    arguments: |ask, address| {
        format!("--h1 -n {} -c {} http://{address}/", ask.requests, ask.clients)
    },
    told: |output| {
        // requests: 9 total, 9 started, 9 done, 9 succeeded, 0 failed, 0 errored, 0 timeout
        let requests = after(output, "requests:")?;
        let count = |name: &str| {
            let part = requests.split(',').find(|part| part.trim_end().ends_with(name))?;
            part.split_whitespace().next()?.parse().ok()
        };
        let time = after(output, "time for request:")?;
        Some(Told {
            completed: count("succeeded")?,
            failed: count("failed")?,
            fast_ms: milliseconds(time.split_whitespace().next()?)?,
        })
    },
};

/// Ends after a time instead of a number of requests.
const WRK: Generator = Generator {
    program: "wrk",
    arguments: |ask, address| {
        let close = if ask.kept { "" } else { " -H Connection:close" };
        format!("-t 1 -c {} -d 1s --latency{close} http://{address}/", ask.clients)
    },
    told: |output| {
        let requests = output.lines().find(|line| line.contains(" requests in "))?;
        let troubled = output.contains("Socket errors") || output.contains("Non-2xx");
        Some(Told {
            completed: requests.split_whitespace().next()?.parse().ok()?,
            failed: u64::from(troubled),
            fast_ms: milliseconds(after(output, "50%")?.trim())?,
        })
    },
};

/// The rest of the line after a label at its beginning.
fn after<'a>(output: &'a str, label: &str) -> Option<&'a str> {
    output.lines().find_map(|line| line.trim_start().strip_prefix(label))
}

/// The first number after a label.
fn number<T: std::str::FromStr>(output: &str, label: &str) -> Option<T> {
    after(output, label)?.split_whitespace().next()?.parse().ok()
}

/// A time with its unit, as `20.31ms`.
fn milliseconds(text: &str) -> Option<f64> {
    let units = [("us", 1e-3), ("ms", 1.0), ("s", 1e3)];
    let (value, scale) =
        units.iter().find_map(|(unit, scale)| Some((text.strip_suffix(unit)?, scale)))?;
    value.parse::<f64>().ok().map(|value| value * scale)
}

impl Generator {
    /// Loads a fresh server and returns both reports.
    fn run(&self, ask: &Ask, server: &str) -> (Told, Summary) {
        let cluster = Launch::new(server).start();
        let arguments = (self.arguments)(ask, &cluster.address());
        let output = Command::new(self.program)
            .args(arguments.split_whitespace())
            .stdin(Stdio::null())
            .output()
            .expect("it was there a moment ago");
        let text = String::from_utf8_lossy(&output.stdout);
        let told = (self.told)(&text).unwrap_or_else(|| {
            panic!("{} {arguments} tells nothing: {output:?}", self.program);
        });
        assert!(output.status.success(), "{} {arguments}: {output:?}", self.program);
        (told, cluster.end())
    }
}

fn served(summary: &Summary) -> u64 {
    summary.workers.iter().map(|worker| worker.requests).sum()
}

/// The installed generators; the others are reported as missing.
fn there(all: &[Generator]) -> impl Iterator<Item = &Generator> {
    all.iter().filter(|one| one.program == BINARY || has_program(one.program))
}

#[test]
fn what_is_asked_is_what_is_served_and_what_is_told() {
    let ask = Ask { requests: 500, clients: 8, kept: false };
    // h2load cannot open a connection for each request.
    for generator in there(&[OWN, AB]) {
        let (told, summary) = generator.run(&ask, "--workers 2");
        let name = generator.program;
        assert_eq!((told.completed, told.failed), (500, 0), "{name}: {told:?}");
        assert_eq!(served(&summary), 500, "{name}: {summary:?}");
        // At its end ab opens one more connection per client without a request.
        let unused = if name == BINARY { 0 } else { ask.clients };
        assert!((500..=500 + unused).contains(&summary.accepted), "{name}: {summary:?}");
    }
}

#[test]
fn kept_connections_are_counted_alike() {
    let ask = Ask { requests: 500, clients: 8, kept: true };
    for generator in there(&[OWN, AB, H2LOAD]) {
        let (told, summary) = generator.run(&ask, "--workers 2");
        let name = generator.program;
        assert_eq!((told.completed, told.failed), (500, 0), "{name}: {told:?}");
        assert_eq!(served(&summary), 500, "{name}: {summary:?}");
        assert!((1..=8).contains(&summary.accepted), "{name}: {summary:?}");
    }
}

#[test]
fn a_run_that_time_ends_is_off_by_what_is_under_way() {
    for kept in [true, false] {
        let ask = Ask { requests: 0, clients: 8, kept };
        for generator in there(&[WRK]) {
            let (told, summary) = generator.run(&ask, "--workers 2");
            let served = served(&summary);
            assert_eq!(told.failed, 0, "{told:?}");
            assert!(told.completed > 0 && told.completed <= served, "{told:?}, {summary:?}");
            assert!(served <= told.completed + ask.clients, "{told:?}, {summary:?}");
        }
    }
}

#[test]
fn a_known_delay_is_reported_by_every_generator() {
    for kept in [true, false] {
        let ask = Ask { requests: 60, clients: 2, kept };
        let all = [OWN, AB, WRK, H2LOAD];
        for generator in there(if kept { &all[..] } else { &all[..3] }) {
            let name = generator.program;
            // wrk tells the median, in which other load of the machine shows; so it may try again.
            let fast = (0..10).find_map(|_| {
                let (told, _) = generator.run(&ask, "--workers 2 --work block:20ms");
                assert_eq!(told.failed, 0, "{name}: {told:?}");
                assert!(told.fast_ms >= 20.0, "{name}, kept {kept}: {told:?}");
                (told.fast_ms < 200.0).then_some(told)
            });
            assert!(fast.is_some(), "{name}, kept {kept}");
        }
    }
}
