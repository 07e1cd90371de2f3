//! Rules that change during a run, and counts by listener.

use super::{Steered, assert_refused};
use crate::common::{Client, GET_CLOSE, Launch, get_from};

#[test]
fn the_policy_and_its_limits_change_while_clients_come() {
    let run = Steered::start("--workers 3");
    let served = run.under_traffic(|| {
        for policy in ["least", "sticky", "rr", "least"] {
            let changed = run.post(&format!("/policy?policy={policy}"));
            assert_eq!(changed.status, 200, "{changed:?}");
            let view = run.json("/workers");
            assert_eq!(view["policy"], policy);
        }
        let many = "max-inflight=100&overload-factor=1.5&credits=4&hang-after=2s&coalesce=off";
        assert_eq!(run.post(&format!("/policy?{many}")).status, 200);
    });
    let rules = run.json("/policy");
    assert_eq!((&rules["policy"], &rules["max_inflight"]), (&"least".into(), &100.into()));
    assert_eq!((&rules["credits"], &rules["overload_factor"]), (&4.into(), &1.5.into()));
    assert_eq!((&rules["hang_after_ms"], rules["coalesce_us"].is_null()), (&2000.0.into(), true));
    let config = run.json("/config");
    assert_eq!((&config["policy"], &config["max_inflight"]), (&"least".into(), &100.into()));
    assert!(run.get("/metrics").body.contains("policy=\"least\""));
    assert_eq!(run.cluster.event("rescheduled", 1)["policy"], "sticky");
    run.cluster.end().assert_clean(served);
}

#[test]
fn a_changed_policy_decides_about_the_next_connection() {
    let run = Steered::start("--workers 2");
    let address = run.cluster.address();
    assert_eq!(run.post("/policy?policy=sticky").status, 200);
    // All from one client, so all at the worker that its address maps to.
    let mut open: Vec<Client> = (0..4).map(|_| Client::held(&address)).collect();
    let view = run.json("/workers");
    let workers = view["workers"].as_array().expect("a list").iter();
    let mut in_flight: Vec<u64> = workers.filter_map(|one| one["in_flight"].as_u64()).collect();
    in_flight.sort_unstable();
    assert_eq!(in_flight, [0, 4], "{view}");
    // A limit lowered below the open connections admits no more, and cuts none.
    assert_eq!(run.post("/policy?policy=rr&max-inflight=1").status, 200);
    let mut other = Client::held(&address);
    open.iter_mut().for_each(|client| client.ask(GET_CLOSE).assert_hello());
    other.ask(GET_CLOSE).assert_hello();
    run.cluster.end().assert_clean(5);
}

#[test]
fn what_cannot_change_is_refused_and_nothing_changes() {
    let run = Steered::start("--workers 1");
    let before = run.json("/policy");
    assert_refused(&run.post("/policy"), 422, &["overload-factor", "max-inflight"]);
    for (wish, words) in [
        ("policy=best", &["rr, least"][..]),
        ("policy=none", &["another run"]),
        ("max-inflight=7&credits=many", &["credits=many", "auto"]),
        ("backlog=3", &["backlog cannot change", "overload-factor"]),
    ] {
        assert_refused(&run.post(&format!("/policy?{wish}")), 422, words);
    }
    assert_eq!(run.json("/policy"), before);
    run.cluster.end();
    let run = Steered::start("--workers 1 --policy none");
    assert_refused(&run.post("/policy?policy=rr"), 422, &["from none to rr"]);
    run.cluster.end();
}

#[test]
fn connections_are_counted_by_listener_and_their_times_by_slot() {
    let launch =
        Launch::new("--workers 1 --defer-accept off").listen("127.0.0.1:0").listen("127.0.0.1:0");
    let run = Steered::launch(launch);
    let addresses = run.cluster.addresses();
    get_from(&addresses[0], 1, 3);
    get_from(&addresses[1], 1, 5);
    for (address, count) in addresses.iter().zip([3, 5]) {
        let listeners = run.json("/listeners");
        let all = listeners["listeners"].as_array().expect("a list").iter();
        let one = all.into_iter().find(|one| one["address"] == **address).expect("it is there");
        for what in ["accepted", "assigned"] {
            assert_eq!(one["counts"][what], count, "{listeners}");
            let labels = format!("{{listener=\"{}\",address=\"{address}\"}}", one["listener"]);
            let name = format!("clusterlb_listener_connections_{what}_total{labels}");
            assert_eq!(run.metric(&name), f64::from(count));
        }
        assert_eq!((&one["counts"]["dropped"], &one["overflows"]), (&0.into(), &0.into()));
    }
    // The time of the last one is known when the next one arrives.
    let measured = run.metric("clusterlb_worker_claim_seconds_count{slot=\"0\"}");
    assert!((7.0..=8.0).contains(&measured), "{measured}");
    let all = "clusterlb_worker_claim_seconds_bucket{slot=\"0\",le=\"+Inf\"}";
    assert!(run.metric(all) >= measured);
    run.cluster.end().assert_clean(8);
}
