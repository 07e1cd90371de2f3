//! Values of options as on the command line: times, switches, factors, and types of this program.

use std::time::Duration;

use clusterlb::Error;
use clusterlb_schedule::{CREDITS_MAX, CreditRule, OverloadFactor};

/// A value that can be switched off.
#[derive(Clone, Copy, Debug)]
pub(super) struct Switch<T>(pub(super) Option<T>);

pub(super) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn switch<T>(text: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<Switch<T>, String> {
    match text {
        "off" => Ok(Switch(None)),
        text => parse(text).map(|value| Switch(Some(value))),
    }
}

/// Longer waits would be noticed, and exceed the cost of any wake-up.
const COALESCE_MAX: Duration = Duration::from_millis(1);

pub(super) fn coalescing(text: &str) -> Result<Switch<Duration>, String> {
    match switch(text, positive_time)? {
        Switch(Some(time)) if time > COALESCE_MAX => Err("it must be at most 1ms".into()),
        switch => Ok(switch),
    }
}

pub(super) fn switched_time(text: &str) -> Result<Switch<Duration>, String> {
    switch(text, positive_time)
}

pub(super) fn factor(text: &str) -> Result<OverloadFactor, String> {
    match (text, text.parse::<f32>()) {
        ("auto", _) => Ok(OverloadFactor::Auto),
        ("off", _) => Ok(OverloadFactor::Off),
        (_, Ok(factor)) if (1.0..=1000.0).contains(&factor) => Ok(OverloadFactor::Times(factor)),
        _ => Err("write auto, off or a number from 1 to 1000; 1 is the average itself".into()),
    }
}

pub(super) fn credits(text: &str) -> Result<CreditRule, String> {
    match (text, text.parse()) {
        ("auto", _) => Ok(CreditRule::Adaptive),
        (_, Ok(count @ 1..=CREDITS_MAX)) => Ok(CreditRule::Fixed(count)),
        _ => Err(format!("write auto or a number from 1 to {CREDITS_MAX}")),
    }
}

/// Parses one of our types, with the remedy in the message.
pub(super) fn parse<T: std::str::FromStr<Err = Error>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: Error| format!("{error}; {}", error.hint()))
}

pub(super) fn time(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write a number and a unit, such as 10s or 500ms"))
}

pub(super) fn positive_time(text: &str) -> Result<Duration, String> {
    time(text).and_then(|duration| match duration {
        Duration::ZERO => Err("must not be 0".into()),
        duration => Ok(duration),
    })
}
