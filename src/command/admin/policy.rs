//! `/policy`: how connections are distributed, and which rules can change during a run.
//!
//! Owns the names in the answers; `query.rs` has those in requests.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, Response, StatusCode};
use clusterlb::{ClusterSettings, CreditRule, Policy, SchedulerConfig};
use serde_json::{Map, Value, json};

use super::Run;
use super::actions::{ending, ensure_permitted};
use super::answers::{Refused, json};
use super::door::Access;
use super::query::{each_once, nothing_named, set};
use super::views::DoneView;

/// How long a change waits for the data path to apply it.
const APPLIED_WITHIN: Duration = Duration::from_secs(5);

/// The rules of distribution, as `/policy` and `/config` show them.
pub(super) fn rules(policy: Policy, scheduling: &SchedulerConfig) -> Map<String, Value> {
    let credits = match scheduling.credits {
        CreditRule::Adaptive => json!("auto"),
        CreditRule::Fixed(count) => json!(count),
    };
    let rules = json!({
        "policy": policy,
        "overload_factor": scheduling.limits.overload_factor.under(policy),
        "max_inflight": scheduling.limits.inflight_max_under(policy),
        "credits": credits,
        "hang_after_ms": scheduling.hang_after_ns.map(to_ms),
        "take_back_after_ms": scheduling.take_back_after_ns.map(to_ms),
        "unserved_limit_ms": scheduling.unserved_limit_ns.map(to_ms),
        "slow_start_ms": to_ms(scheduling.slow_start_ns),
        "eject_outliers_ms": scheduling.eject_outliers_ns.map(to_ms),
        "coalesce_us": scheduling.coalesce_ns.map(|ns| ns / 1_000),
    });
    match rules {
        Value::Object(rules) => rules,
        _ => Map::new(),
    }
}

/// The present rules of a cluster.
pub(super) fn current(settings: &ClusterSettings) -> Map<String, Value> {
    rules(settings.policy, &settings.scheduling)
}

fn to_ms(ns: u64) -> f64 {
    Duration::from_nanos(ns).as_secs_f64() * 1000.0
}

/// `GET /policy`.
pub(super) async fn show(State(run): State<Arc<Run>>) -> Response<Body> {
    json(StatusCode::OK, &current(&run.cluster.settings()))
}

/// `POST /policy`.
pub(super) async fn change(
    State(run): State<Arc<Run>>,
    Extension(access): Extension<Access>,
    fields: HeaderMap,
    Query(changes): Query<Vec<(String, String)>>,
) -> Result<Response<Body>, Refused> {
    ensure_permitted(access, &fields)?;
    if changes.is_empty() {
        return Err(nothing_named().into());
    }
    let changes = each_once(changes)?;
    // The lock of the settings is held briefly, but must not block the thread of all clients.
    let changed = tokio::task::spawn_blocking(move || {
        let mut refused = None;
        let settings = run.cluster.settings();
        let (mut policy, mut scheduling) = (settings.policy, settings.scheduling.clone());
        for (name, value) in &changes {
            if let Err(error) = set(&mut policy, &mut scheduling, name, value) {
                refused.get_or_insert(error);
            }
        }
        if let Some(refused) = refused {
            return Err(Refused::from(refused));
        }
        run.cluster.reschedule(|now, rules| {
            for (name, value) in &changes {
                // The check above has parsed it.
                let _ = set(now, rules, name, value);
            }
        })?;
        // A connection that comes after the answer is distributed by these rules. If the data path
        // is stuck, they hold from its next turn on.
        let _ = run.cluster.ping(APPLIED_WITHIN);
        let words: Vec<String> =
            changes.iter().map(|(name, value)| format!("{name} {value}")).collect();
        Ok(words.join(", "))
    });
    match changed.await {
        Ok(changed) => Ok(json(StatusCode::OK, &DoneView { done: changed? })),
        Err(_) => Err(ending()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::query::NAMES;
    use super::*;
    use crate::command::changes::{self, When};

    #[test]
    fn what_changes_here_is_what_the_list_of_changes_says() {
        let rules: BTreeSet<&str> = changes::all(When::Rules).collect();
        assert_eq!(BTreeSet::from(NAMES), rules);
    }

    #[test]
    fn every_rule_is_changed_by_its_name_and_shown() {
        let (mut policy, mut scheduling) = (Policy::Rr, SchedulerConfig::default());
        let values = ["least", "off", "7", "3", "off", "5ms", "1s", "2s", "100us", "30s"];
        for (name, value) in NAMES.into_iter().zip(values) {
            set(&mut policy, &mut scheduling, name, value).expect(name);
        }
        let shown = Value::Object(rules(policy, &scheduling));
        assert_eq!(
            shown,
            json!({
                "policy": "least", "overload_factor": null, "max_inflight": 7, "credits": 3,
                "hang_after_ms": null, "take_back_after_ms": 5.0, "unserved_limit_ms": 1000.0,
                "slow_start_ms": 2000.0, "coalesce_us": 100, "eject_outliers_ms": 30000.0,
            })
        );
    }

    #[test]
    fn what_is_not_understood_is_refused_with_what_would_be() {
        for (name, value, remedy) in [
            ("policy", "best", "least"),
            ("max-inflight", "0", "off or a number"),
            ("credits", "many", "auto"),
            ("coalesce", "1s", "at most 1ms"),
            ("workers", "3", "overload-factor"),
        ] {
            let (mut policy, mut scheduling) = (Policy::Rr, SchedulerConfig::default());
            let refused = set(&mut policy, &mut scheduling, name, value).expect_err(name);
            assert!(refused.remedy.contains(remedy), "{refused:?}");
            assert_eq!((policy, scheduling), (Policy::Rr, SchedulerConfig::default()));
        }
    }
}
