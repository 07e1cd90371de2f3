//! Invariants of requests to the admin interface, for arbitrary text: a number is in its range, a
//! refused rule changes nothing and has a remedy, and an accepted one is accepted again.

#[path = "../src/command/admin/query.rs"]
#[allow(dead_code, unreachable_pub, reason = "the command uses the rest of it")]
mod query;
#[path = "../src/command/values.rs"]
#[allow(dead_code, unreachable_pub, reason = "the command uses the rest of it")]
mod values;

use axum::extract::Query;
use axum::http::Uri;
use clusterlb::{Policy, SchedulerConfig, WORKERS_MAX};

/// Checks one input, a request's path and query in each line.
pub(crate) fn queries(bytes: &[u8]) {
    for line in bytes.split(|byte| *byte == b'\n') {
        let Ok(uri) = Uri::try_from(line) else { continue };
        for part in uri.path().split('/') {
            if let Ok(worker) = query::worker(part) {
                assert_eq!(query::worker(&worker.to_string()).ok(), Some(worker), "{uri}");
            }
        }
        let Ok(Query(wishes)) = Query::<Vec<(String, String)>>::try_from_uri(&uri) else {
            continue;
        };
        let (mut policy, mut rules) = (Policy::Rr, SchedulerConfig::default());
        for (name, value) in &wishes {
            numbers(value);
            rule(&mut policy, &mut rules, name, value);
        }
    }
}

fn numbers(value: &str) {
    let _ = query::grace(value);
    for now in [1, 7, 1024] {
        if let Ok(workers) = query::workers(value, now) {
            assert!((1..=WORKERS_MAX).contains(&workers.into()), "{value}: {workers}");
        }
    }
}

fn rule(policy: &mut Policy, rules: &mut SchedulerConfig, name: &str, value: &str) {
    let before = (*policy, rules.clone());
    match query::set(policy, rules, name, value) {
        Ok(()) => {
            let after = (*policy, rules.clone());
            query::set(policy, rules, name, value).expect("it was accepted before");
            assert_eq!((*policy, rules.clone()), after, "{name}={value}");
        }
        Err(refused) => {
            assert_eq!((*policy, rules.clone()), before, "{name}={value}");
            assert!(!refused.remedy.is_empty() && !refused.error.is_empty());
        }
    }
}
