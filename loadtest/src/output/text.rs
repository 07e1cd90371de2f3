//! The table at the end of a run, for people: settings, results, and whether to trust them.

use std::io::{self, Write};

use crate::latency::Latency;
use crate::report::Report;
use crate::settings::{CloseBy, Load, Mode, RequestsPerConnection, Settings};
use crate::tally::ErrorKind;
use crate::units::{bytes, count, micros};

/// Writes the table.
pub(crate) fn write(writer: &mut impl Write, report: &Report) -> io::Result<()> {
    writeln!(writer, "{}", headline(&report.settings))?;
    writeln!(writer, "{}\n", environment(report))?;
    latencies(writer, report)?;
    rates(writer, report)?;
    errors(writer, report)?;
    cpu(writer, report)?;
    expectations(writer, report)?;
    verdict(writer, report)
}

fn headline(settings: &Settings) -> String {
    let load = match settings.load {
        Load::Open { rate_per_s, arrivals, .. } => {
            format!("open loop, {rate_per_s}/s {arrivals:?}").to_lowercase()
        }
        Load::Closed { connections } => format!("closed loop, {connections} connections"),
    };
    let reuse = match (settings.mode, settings.requests_per_connection) {
        (Mode::Connect, _) => "connect and close".to_owned(),
        (_, RequestsPerConnection::Between(1, 1)) => "a connection per request".to_owned(),
        (_, RequestsPerConnection::Unlimited) => "connections kept".to_owned(),
        (_, range) => format!("{range} requests per connection"),
    };
    let mut line = format!("{} · {load} · {reuse}", settings.target);
    if !settings.other_targets.is_empty() {
        let count = settings.other_targets.len();
        line = format!("{} and {count} more · {load} · {reuse}", settings.target);
    }
    if settings.pipeline > 1 {
        line.push_str(&format!(" · pipeline of {}", settings.pipeline));
    }
    if settings.hold > 0 {
        line.push_str(&format!(" · {} held idle", settings.hold));
    }
    line
}

fn environment(report: &Report) -> String {
    let settings = &report.settings;
    let environment = &report.environment;
    let mut line = format!("{:.1} s measured", report.measured_ms / 1e3);
    if settings.warmup_ms > 0 {
        line.push_str(&format!(" after {:.1} s warm-up", settings.warmup_ms as f64 / 1e3));
    }
    line.push_str(&format!(" · {} thread(s)", settings.threads));
    match environment.pinned_cpus.as_slice() {
        [] => line.push_str(", not pinned"),
        cpus => line.push_str(&format!(" on CPU {cpus:?}")),
    }
    line.push_str(&format!(" · {} source address(es)", environment.sources));
    match settings.close {
        CloseBy::Fin => line.push_str(" · close by FIN"),
        CloseBy::Rst => line.push_str(" · close by RST"),
    }
    line
}

fn latencies(writer: &mut impl Write, report: &Report) -> io::Result<()> {
    let names = ["count", "min", "mean", "p50", "p90", "p99", "p99.9", "p99.99", "max"];
    write!(writer, "{:<11}", "")?;
    for name in names {
        write!(writer, "{name:>9}")?;
    }
    writeln!(writer)?;
    let rows = [
        ("connect", &report.latency.connect),
        ("first byte", &report.latency.first_byte),
        ("response", &report.latency.response),
    ];
    for (name, latency) in rows.into_iter().filter(|(_, latency)| latency.count > 0) {
        write!(writer, "{name:<11}{:>9}", count(latency.count))?;
        for value in columns(latency) {
            write!(writer, "{:>9}", value.map_or_else(String::new, micros))?;
        }
        writeln!(writer)?;
    }
    let origin = match report.settings.load {
        Load::Open { .. } => "latency counts from the planned start: waiting is part of it",
        Load::Closed { .. } => {
            "uncorrected: a closed loop asks less of a slow server, so these flatter it"
        }
    };
    writeln!(writer, "({origin})\n")
}

fn columns(latency: &Latency) -> [Option<f64>; 8] {
    [
        latency.min_us,
        latency.mean_us,
        latency.p50_us,
        latency.p90_us,
        latency.p99_us,
        latency.p999_us,
        latency.p9999_us,
        latency.max_us,
    ]
}

fn rates(writer: &mut impl Write, report: &Report) -> io::Result<()> {
    let rates = &report.rates;
    let totals = &report.totals;
    write!(writer, "rate       {:.1} answered/s", rates.completed_per_s)?;
    if let (Some(asked), Some(achieved)) = (rates.asked_per_s, rates.achieved_ratio) {
        write!(writer, " of {asked} asked ({:.2} %)", achieved * 100.0)?;
    }
    writeln!(writer, ", {:.1} connects/s", rates.connected_per_s)?;
    if let Some(starts) = &report.starts {
        let lateness = starts.start_lateness_p99_us.map_or_else(|| "-".to_owned(), micros);
        writeln!(
            writer,
            "starts     {} made, {} late (> 1 ms), {} dropped, lateness p99 {lateness}",
            totals.started, starts.late, starts.dropped
        )?;
    }
    if !totals.status.is_empty() {
        let seen = totals.status.iter().filter(|(_, count)| **count > 0);
        let words: Vec<String> = seen.map(|(class, count)| format!("{class} {count}")).collect();
        writeln!(writer, "status     {}", words.join(", "))?;
    }
    let (sent, received) = (bytes(totals.sent_bytes), bytes(totals.received_bytes));
    writeln!(writer, "bytes      {sent} sent, {received} received")
}

fn errors(writer: &mut impl Write, report: &Report) -> io::Result<()> {
    let totals = &report.totals;
    if totals.failed == 0 {
        writeln!(writer, "errors     none")?;
    }
    for kind in ErrorKind::ALL {
        let count = totals.errors.get(&kind).copied().unwrap_or(0);
        if count > 0 {
            let example = totals.error_examples.get(&kind).map_or("", String::as_str);
            writeln!(writer, "errors     {count} {} ({example})", kind.words())?;
        }
    }
    if totals.unfinished > 0 {
        writeln!(writer, "cut off    {} requests by the end of the run", totals.unfinished)?;
    }
    if totals.held_lost > 0 {
        let held = report.settings.hold;
        writeln!(writer, "held       {} of {held} ended by the server", totals.held_lost)?;
    }
    Ok(())
}

fn cpu(writer: &mut impl Write, report: &Report) -> io::Result<()> {
    let cpu = &report.cpu;
    let each = cpu.per_request_us.map_or_else(String::new, |us| format!(", {us:.1} µs/request"));
    writeln!(
        writer,
        "generator  {:.1} % of a CPU (user {:.2} s, system {:.2} s{each})",
        cpu.cpu_percent,
        cpu.user_ms / 1e3,
        cpu.system_ms / 1e3,
    )
}

fn expectations(writer: &mut impl Write, report: &Report) -> io::Result<()> {
    for (place, checked) in report.expectations.iter().enumerate() {
        let head = if place == 0 { "expected" } else { "" };
        let answer = if checked.met { "yes" } else { "no" };
        writeln!(writer, "{head:<10} {}: {answer} ({})", checked.condition, checked.measured)?;
    }
    Ok(())
}

fn verdict(writer: &mut impl Write, report: &Report) -> io::Result<()> {
    if report.validity.valid {
        return writeln!(writer, "valid      yes");
    }
    for (place, reason) in report.validity.reasons.iter().enumerate() {
        let head = if place == 0 { "valid      no:" } else { "              " };
        writeln!(writer, "{head} {}", reason.text)?;
    }
    Ok(())
}
