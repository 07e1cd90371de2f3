//! What command lines become: settings, refusals, help.

use clap::{CommandFactory, Parser};

use super::*;

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    load: LoadArgs,
}

fn settings(words: &str) -> Result<Settings, Error> {
    let all = std::iter::once("load").chain(words.split(' '));
    Command::try_parse_from(all).expect(words).load.settings()
}

#[test]
fn the_command_is_well_formed() {
    Command::command().debug_assert();
}

#[test]
fn defaults_depend_on_what_is_given() {
    let closed = settings("h:1").expect("the least that can be typed");
    assert_eq!(closed.load, Load::Closed { connections: 64 });
    assert_eq!(closed.duration_ms, Some(10_000));
    let counted = settings("-n 5k --rate 1.5M tcp://h:1").expect("an open loop");
    assert_eq!((counted.duration_ms, counted.requests), (None, Some(5000)));
    assert_eq!((counted.mode, counted.body_bytes), (Mode::Echo, 64));
    assert!(matches!(counted.load, Load::Open { rate_per_s: 1.5e6, .. }));
}

#[test]
fn a_time_without_a_unit_is_in_seconds() {
    let settings = settings("-d 10 -w 2 --timeout 0.5 h:1").expect("times");
    let times = (settings.duration_ms, settings.warmup_ms, settings.timeout_ms);
    assert_eq!(times, (Some(10_000), 2000, 500));
    let settings = self::settings("-d 1m h:1").expect("a minute");
    assert_eq!(settings.duration_ms, Some(60_000));
}

#[test]
fn a_body_makes_a_post_and_methods_may_be_in_lower_case() {
    let settings = settings("--body abc -H a:b --header c:d h:1").expect("a body");
    assert_eq!((settings.method(), settings.body_bytes), ("POST", 3));
    assert_eq!(settings.headers, ["a:b", "c:d"]);
    let settings = self::settings("-X delete h:1").expect("a method");
    assert_eq!(settings.method(), "DELETE");
}

#[test]
fn several_urls_and_conditions_are_kept_in_order() {
    let words = "--expect p99<5ms,errors=0 --expect rate>5 http://a/ http://b/ http://c/";
    let settings = settings(words).expect("three URLs");
    let urls: Vec<String> = settings.targets().map(ToString::to_string).collect();
    assert_eq!(urls, ["http://a:80/", "http://b:80/", "http://c:80/"]);
    let conditions: Vec<String> = settings.expect.iter().map(ToString::to_string).collect();
    assert_eq!(conditions, ["p99<5ms", "errors=0", "rate>5"]);
}

#[test]
fn the_short_help_fits_one_screen_and_is_grouped() {
    let help = Command::command().term_width(100).render_help().to_string();
    assert!(help.lines().count() <= 45, "{} lines:\n{help}", help.lines().count());
    for word in ["Load:", "Request:", "TLS:", "Results:", "Examples", "--help"] {
        assert!(help.contains(word), "{word} is missing:\n{help}");
    }
    let all = Command::command().term_width(100).render_long_help().to_string();
    for word in ["--hdr-log", "--spin-us", "Exit codes", "SSL_CERT_FILE"] {
        assert!(all.contains(word), "{word} is missing");
    }
    assert!(all.lines().all(|line| line.chars().count() <= 100), "{all}");
}

#[test]
fn what_cannot_be_is_refused_as_usage() {
    for words in [
        "-d 0s h:1",
        "-n 0 h:1",
        "-c 0 h:1",
        "-t 0 h:1",
        "-c 2 -t 3 h:1",
        "--timeout 0s h:1",
        "--pipeline 4 h:1",
        "--pipeline 0 h:1",
        "--mode echo http://h:1",
        "--mode http tcp://h:1",
        "--mode connect --body-bytes 4 h:1",
        "--mode echo --body-bytes 0 h:1",
        "--header nothing h:1",
        "--header Content-Length:1 h:1",
        "--close rst unix:/a",
        "--sources 0 h:1",
        "--pin 0,1 h:1",
        "--spin-us 2000 h:1",
        "--rate 90M h:1",
        "--mode echo https://h",
        "http://h:1 tcp://h:2",
        "--mode echo --body a tcp://h:1",
        "-X CONNECT h:1",
        "-X a,b h:1",
        "-X HEAD --body a h:1",
        "-X GET tcp://h:1",
        "--body-file /nowhere/at/all h:1",
        "--body-file / h:1",
        "-c 1 --requests-per-connection unlimited h:1 h:2",
    ] {
        let error = settings(words).expect_err(words);
        assert_eq!(error.exit_code(), 2, "{words}");
        assert!(!error.hint().is_empty(), "{words}");
    }
}

#[test]
fn values_that_cannot_be_read_are_refused_at_once() {
    for words in [
        "load --rate 0 h:1",
        "load --rate -5 h:1",
        "load --rate nan h:1",
        "load --rate 5 --connections 3 h:1",
        "load --arrivals poisson h:1",
        "load -d ten h:1",
        "load --expect p99 h:1",
        "load --body a --body-bytes 5 h:1",
        "load --tls-resumption maybe https://h",
        "load",
        "load -n 99999999999999999M h:1",
        "load --requests-per-connection 5-2 h:1",
        "load --pin 3-1 h:1",
        "load --sources some h:1",
    ] {
        assert!(Command::try_parse_from(words.split(' ')).is_err(), "{words}");
    }
}

#[test]
fn a_target_that_cannot_be_read_comes_with_a_remedy() {
    for (words, remedy) in [("load localhost", "http://localhost"), ("load ftp://h/", "https://")] {
        let refused = Command::try_parse_from(words.split(' ')).map(|_| ()).expect_err(words);
        assert!(refused.to_string().contains(remedy), "{refused}");
    }
}
