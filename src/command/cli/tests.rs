//! Command lines that are accepted, and those that are refused.

use std::time::Duration;

use super::*;
use clusterlb::topology::{Pin, Workers};
use clusterlb::{ErrorKind, Policy, Readiness};

fn read(line: &str) -> Result<Cli> {
    let words = std::iter::once("clusterlb").chain(line.split_whitespace());
    Cli::read(words.map(OsString::from)).map_err(Unread::into_error)
}

fn settings(line: &str) -> Result<Settings> {
    read(line).expect("clap accepts the line").run.settings(&Cli::commands())
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn no_arguments_mean_hello_on_port_8000() {
    let settings = settings("").expect("the defaults are valid");
    assert_eq!(settings.listen, ["127.0.0.1:8000".parse().expect("an address")]);
    assert_eq!((settings.workers, settings.grace), (Workers::Auto, Duration::from_secs(10)));
}

#[test]
fn contradictions_are_refused() {
    for line in [
        "--policy none --max-inflight 3",
        "--policy none --accept reuseport --listen unix:/tmp/x",
        "--policy none --runtime tokio-uring",
        "--serve echo --work cpu:1ms",
        "--listen 127.0.0.1:80 --listen 127.0.0.1:80",
        "--listen 127.0.0.1:80 --dialect node -- /bin/true",
        "--policy none --accept uring --dialect node -- /bin/true",
        "--policy rr --dialect listen-fds -- /bin/true",
        "--policy fastest --dispatch kernel --dialect listen-fds -- /bin/true",
        "--policy none --dispatch kernel --dialect listen-fds -- /bin/true",
        "--accept reuseport --dispatch kernel --dialect listen-fds -- /bin/true",
        "--policy none --accept uring --dialect listen-fds -- /bin/true",
        "--accept reuseport --listen unix:/tmp/x --dialect listen-fds -- /bin/true",
        "--max-inflight 3 --dialect listen-fds -- /bin/true",
        "--fdname a:b --dialect listen-fds -- /bin/true",
        "--fdname a --dialect node -- /bin/true",
        "--ready-after 1s -- /bin/true",
        "--ready-after message --dialect listen-fds -- /bin/true",
        "--companion self --dialect listen-fds -- /bin/true",
        "--companion self --dialect native -- /bin/true",
        "--companion missing.js --dialect node -- /bin/true",
        "--user no-such-user",
        "--chdir /nowhere/at/all",
        "-- /nowhere/at/all",
    ] {
        assert_eq!(settings(line).expect_err(line).kind(), ErrorKind::Usage);
    }
    assert!(settings("--listen 127.0.0.1:0 --listen 127.0.0.1:0").is_ok());
}

#[test]
fn programs_that_take_sockets_over_accept_by_themselves() {
    let plain = settings("--dialect listen-fds -- /bin/true").expect("the defaults are valid");
    assert_eq!(plain.listen, ["127.0.0.1:8000".parse().expect("an address")]);
    assert_eq!((plain.policy, &plain.pin), (Policy::None, &Pin::None));
    let dispatched = settings("--dispatch kernel --dialect listen-fds -- /bin/true");
    assert_eq!(dispatched.expect("the kernel can choose").policy, Policy::Rr);
    for policy in ["least", "sticky"] {
        let line = format!("--dispatch kernel --policy {policy} --dialect listen-fds -- /bin/true");
        settings(&line).expect(policy);
    }
    let line = "--policy none --accept reuseport --listen 0.0.0.0:80 --fdname web:a \
                --listen [::1]:81 --ready-after notify --dialect listen-fds -- /bin/true";
    let program = settings(line).expect("all of this fits together").program;
    let program = program.expect("there is one");
    assert_eq!(program.readiness, Readiness::Notified);
    assert_eq!(program.socket_names, ["web", "a"]);
}

#[test]
fn nonsense_is_refused_by_name() {
    for line in [
        "--workers 0",
        "--workers many",
        "--policy fair",
        "--pin 3-1",
        "--grace soon",
        "--header-timeout 0s",
        "--listen nowhere",
        "--max-inflight 0",
        "--overload-factor 0.5",
        "--credits 0",
        "--hang-after 0ms",
        "--coalesce 0us",
        "--coalesce 2ms",
        "--backlog 0",
        "--serve pie",
        "--serialization advanced",
        "--wrokers 3",
        "--dialect node",
        "--dialect listen-fds",
        "--ready-after soon --dialect listen-fds -- /bin/true",
        "--env NAME",
        "--serve echo -- node server.js",
        "--workers 2 check",
    ] {
        let error = read(line).expect_err(line);
        assert_eq!(error.kind(), ErrorKind::Usage, "{line}");
    }
}
