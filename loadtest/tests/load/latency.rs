//! Cross-checks of the clock: servers whose delay is known must be reported with that delay.
//!
//! All bounds are from below. A busy machine can only add to a latency, so no bound here can be
//! broken by noise.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::common::{Server, good, hello, http, report, sleep_ms, write};

#[test]
fn a_known_delay_is_reported_as_that_delay() {
    let server = Server::start(http(|stream, _| {
        sleep_ms(30);
        write(stream, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhel");
        sleep_ms(40);
        write(stream, "lo\n");
    }));
    for load in ["--connections 4", "--rate 40"] {
        let report = good(&format!("{load} --requests 30 {}", server.address));
        assert_eq!(report.totals.completed, 30);
        let first_us = report.latency.first_byte.min_us.expect("30 first bytes");
        let response_us = report.latency.response.min_us.expect("30 responses");
        // Three significant digits may round down by a thousandth.
        assert!(first_us >= 29_900.0, "{load}: first byte after {first_us} µs");
        assert!(response_us >= 69_900.0, "{load}: response after {response_us} µs");
        assert_eq!(report.latency.response.corrected, load.starts_with("--rate"));
        assert_eq!(report.latency.connect.count, 30);
    }
}

#[test]
fn a_stall_of_a_second_shows_in_the_percentiles_as_arithmetic_says() {
    const RATE: f64 = 200.0;
    const SECONDS: f64 = 4.0;
    let first = OnceLock::new();
    let server = Server::start(http(move |stream, _| {
        let elapsed = first.get_or_init(Instant::now).elapsed();
        let (stall, over) = (Duration::from_secs(1), Duration::from_secs(2));
        if elapsed >= stall {
            std::thread::sleep(over.saturating_sub(elapsed));
        }
        hello(stream);
    }));
    let report = good(&format!("--rate {RATE} --duration {SECONDS}s {}", server.address));
    assert_eq!(report.totals.completed, 800, "every planned request was made and answered");
    // Starts are spaced evenly, so those of the stall's first half wait more than 500 ms:
    // 0.5 · 200 of 4 · 200 requests, an eighth. Asserted is a tenth; the rest is for a server
    // whose clock starts a little after the plan.
    let curve = &report.latency.response.curve;
    let slow = curve.iter().find(|point| point.value_us >= 500_000.0).expect("slow responses");
    assert!(slow.percentile <= 90.0, "only {} % were faster", slow.percentile);
    let p90_us = report.latency.response.p90_us.expect("800 responses");
    assert!(p90_us >= 500_000.0, "p90 is {p90_us} µs");
    let max_us = report.latency.response.max_us.expect("800 responses");
    assert!(max_us >= 900_000.0, "the longest wait is {max_us} µs");
}

#[test]
fn waiting_for_a_connection_is_part_of_the_latency() {
    let server = Server::start(http(|stream, _| {
        sleep_ms(20);
        hello(stream);
    }));
    // One connection serves at most 50 a second, 100 are planned: the last one, planned at
    // 0.99 s, is the hundredth to be served, at 2 s at the earliest.
    let words = "--rate 100 --connections-max 1 --duration 1s";
    let report = good(&format!("{words} {}", server.address));
    assert_eq!(report.totals.completed, 100);
    let max_us = report.latency.response.max_us.expect("100 responses");
    assert!(max_us >= 1_000_000.0, "the last waited {max_us} µs");
    let p50_us = report.latency.response.p50_us.expect("100 responses");
    assert!(p50_us >= 490_000.0, "the fiftieth waited {p50_us} µs");
    let lateness_us = report.starts.and_then(|starts| starts.start_lateness_max_us);
    assert!(lateness_us.expect("100 starts") >= 980_000.0);
    assert!(!report.validity.valid);
    assert!(report.validity.reasons.iter().any(|reason| reason.code == "rate_missed"));
}

#[test]
fn starts_that_find_no_connection_are_counted_as_dropped() {
    let server = Server::start(http(|stream, _| {
        sleep_ms(100);
        hello(stream);
    }));
    let words = "--rate 100 --connections-max 1 --duration 1s --timeout 600ms";
    // The connection is free ten times a second, a hundred requests are planned: they wait longer
    // and longer, up to half of the timeout.
    let (report, _) = report(&format!("{words} {}", server.address));
    let starts = report.starts.expect("an open loop");
    assert!(starts.dropped > 0);
    let accounted = report.totals.completed + report.totals.failed + starts.dropped;
    assert_eq!(accounted, 100, "each planned start is accounted for");
    assert!(report.validity.reasons.iter().any(|reason| reason.code == "starts_dropped"));
}

#[test]
fn a_warm_up_is_carried_out_but_not_counted() {
    let server = Server::start(http(|stream, _| hello(stream)));
    let report = good(&format!("--rate 100 --warmup 500ms --requests 20 {}", server.address));
    assert_eq!(report.totals.completed, 20);
    assert_eq!(report.latency.response.count, 20);
    assert_eq!(server.seen.requests(), 70);
}

#[test]
fn poisson_arrivals_repeat_with_their_seed() {
    let server = Server::start(http(|stream, _| hello(stream)));
    let words = "--rate 300 --arrivals poisson --duration 1s";
    let run = |seed: u32| {
        let report = good(&format!("{words} --seed {seed} {}", server.address));
        report.totals.completed
    };
    let (first, second) = (run(7), run(7));
    assert_eq!(first, second);
    // 300 on average; ten deviations of 17 are never left.
    assert!((130..=470).contains(&first), "{first}");
}
