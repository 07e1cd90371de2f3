//! What requests to the admin interface ask for: the numbers in paths and the values of parameters.
//!
//! Owns their names, ranges and remedies. Pure: any text is understood or refused.

use std::collections::BTreeMap;
use std::time::Duration;

use clusterlb::{Policy, SchedulerConfig, WORKERS_MAX, WorkerId};

use super::values::{Switch, coalescing, credits, factor, nanoseconds, switched_time, time};

/// Why a value is refused, and what to write instead.
#[derive(Debug)]
pub(super) struct Wrong {
    /// It names no worker, so there is nothing at this path.
    pub(super) is_nowhere: bool,
    pub(super) error: String,
    pub(super) remedy: String,
}

/// The rules that can change, by their option names.
pub(super) const NAMES: [&str; 10] = [
    "policy",
    "overload-factor",
    "max-inflight",
    "credits",
    "hang-after",
    "take-back-after",
    "unserved-limit",
    "slow-start",
    "coalesce",
    "eject-outliers",
];

/// The parameters of an action.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ActionParameters {
    /// Number of workers, for `/scale`.
    pub(super) workers: Option<String>,
    /// Answers before the action is done.
    pub(super) at_once: bool,
    /// Grace period of open connections, for `/drain`.
    pub(super) grace: Option<String>,
}

/// The parameters of an action that knows these. A mistyped one is refused, because the action
/// would be another one than is meant.
pub(super) fn parameters(
    pairs: Vec<(String, String)>,
    known: &[&str],
) -> Result<ActionParameters, Wrong> {
    let mut parameters = ActionParameters::default();
    for (name, value) in each_once(pairs)? {
        if !known.contains(&&*name) {
            let known = known.join(" and ");
            return Err(wrong(
                format!("there is no parameter {name}"),
                format!("it takes {known}"),
            ));
        }
        match (&*name, &*value) {
            ("workers", _) => parameters.workers = Some(value),
            ("grace", _) => parameters.grace = Some(value),
            (_, "0") => parameters.at_once = true,
            (_, "1") => parameters.at_once = false,
            _ => {
                let remedy = "write wait=0 for an answer at once, or leave it out";
                return Err(wrong(format!("{name}={value}"), remedy.into()));
            }
        }
    }
    Ok(parameters)
}

/// Parameters by name. Of two with one name neither is certain to be meant.
pub(super) fn each_once(pairs: Vec<(String, String)>) -> Result<BTreeMap<String, String>, Wrong> {
    let mut all = BTreeMap::new();
    for (name, value) in pairs {
        if all.contains_key(&name) {
            return Err(wrong(format!("{name} is named twice"), "name it once".into()));
        }
        all.insert(name, value);
    }
    Ok(all)
}

/// The grace period of `/drain`.
pub(super) fn grace(text: &str) -> Result<Duration, Wrong> {
    humantime::parse_duration(text).map_err(|error| {
        wrong(format!("grace={text}: {error}"), "write a number and a unit, such as 10s".into())
    })
}

/// The number of workers that `/scale` asks for: absolute, or relative to the present one. In a
/// query a plus sign arrives as a space.
pub(super) fn workers(text: &str, now: u16) -> Result<u16, Wrong> {
    let range = format!("write workers=N, from 1 to {WORKERS_MAX}, or a step such as +1 or -1");
    let wrong = |why: String| wrong(why, range.clone());
    if text.is_empty() {
        return Err(wrong("/scale needs a number of workers".into()));
    }
    let text = text.replacen(' ', "+", 1);
    let number: i64 = text.parse().map_err(|_| wrong(format!("{text} is no number of workers")))?;
    let is_step = text.starts_with(['+', '-']);
    let number = if is_step { number.saturating_add(now.into()) } else { number };
    let fits = u16::try_from(number).ok();
    let fits = fits.filter(|number| (1..=WORKERS_MAX).contains(&usize::from(*number)));
    fits.ok_or_else(|| wrong(format!("{number} workers cannot be")))
}

/// The worker that a path names.
pub(super) fn worker(id: &str) -> Result<WorkerId, Wrong> {
    id.parse().map(WorkerId::new).map_err(|_| Wrong {
        is_nowhere: true,
        error: format!("there is no worker {id}"),
        remedy: "GET /workers lists those that there are".into(),
    })
}

/// The refusal of a `POST /policy` without parameters.
pub(super) fn nothing_named() -> Wrong {
    wrong("the request names nothing to change".into(), known())
}

fn known() -> String {
    format!("name some of {}, each with a value as on the command line", NAMES.join(", "))
}

fn wrong(error: String, remedy: String) -> Wrong {
    Wrong { is_nowhere: false, error, remedy }
}

/// Changes one of the rules.
pub(super) fn set(
    policy: &mut Policy,
    rules: &mut SchedulerConfig,
    name: &str,
    value: &str,
) -> Result<(), Wrong> {
    let ns = |switch: Switch<Duration>| switch.0.map(nanoseconds);
    let done = match name {
        "policy" => value
            .parse()
            .map(|one| *policy = one)
            .map_err(|error: clusterlb::UnknownName| error.to_string()),
        "overload-factor" => factor(value).map(|one| rules.limits.overload_factor = one),
        "max-inflight" => most(value).map(|one| rules.limits.inflight_max = one),
        "credits" => credits(value).map(|one| rules.credits = one),
        "hang-after" => switched_time(value).map(|one| rules.hang_after_ns = ns(one)),
        "take-back-after" => switched_time(value).map(|one| rules.take_back_after_ns = ns(one)),
        "unserved-limit" => switched_time(value).map(|one| rules.unserved_limit_ns = ns(one)),
        "slow-start" => time(value).map(|one| rules.slow_start_ns = nanoseconds(one)),
        "coalesce" => coalescing(value).map(|one| rules.coalesce_ns = ns(one)),
        "eject-outliers" => switched_time(value).map(|one| rules.eject_outliers_ns = ns(one)),
        _ => return Err(wrong(format!("{name} cannot change during a run"), known())),
    };
    done.map_err(|why| wrong(format!("{name}={value}"), why))
}

/// A limit, or off.
fn most(text: &str) -> Result<Option<u32>, String> {
    match (text, text.parse()) {
        ("off", _) => Ok(None),
        (_, Ok(count @ 1..)) => Ok(Some(count)),
        _ => Err("write off or a number from 1".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(query: &[(&str, &str)]) -> Vec<(String, String)> {
        query.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
    }

    #[test]
    fn parameters_that_are_unknown_or_named_twice_are_refused() {
        let known = ["grace", "wait"];
        let understood =
            parameters(pairs(&[("grace", "5s"), ("wait", "0")]), &known).expect("known");
        let wanted = ActionParameters { grace: Some("5s".into()), at_once: true, workers: None };
        assert_eq!(understood, wanted);
        for (query, word) in [
            (&[("grase", "5s")][..], "grace and wait"),
            (&[("workers", "3")], "grace and wait"),
            (&[("grace", "5s"), ("grace", "6s")], "once"),
            (&[("wait", "no")], "wait=0"),
        ] {
            let refused = parameters(pairs(query), &known).expect_err(word);
            assert!(refused.remedy.contains(word), "{refused:?}");
        }
    }

    #[test]
    fn numbers_and_steps_are_understood_and_the_range_is_told() {
        for (text, number) in [("3", 3), (" 1", 5), ("+2", 6), ("-1", 3), ("1024", 1024)] {
            assert_eq!(workers(text, 4).expect(text), number);
        }
        for text in ["", "0", "1025", "100000", "-4", "many", "99999999999999999999"] {
            let refused = workers(text, 4).expect_err(text);
            assert!(!refused.is_nowhere);
            assert!(refused.remedy.contains("from 1 to 1024"), "{refused:?}");
        }
    }
}
