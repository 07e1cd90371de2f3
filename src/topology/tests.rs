//! The rules on made-up machines, and what holds for all of them.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::ErrorKind;

/// `cores` physical cores of `threads` each, numbered as most machines do: all first
/// threads, then all second ones; two nodes.
fn machine(cores: usize, threads: usize, quota_milli_cpus: Option<u64>) -> CpuFacts {
    let cpus = (0..cores * threads).map(|id| Cpu {
        id,
        siblings: (0..threads).map(|thread| id % cores + thread * cores).collect(),
        package: 0,
        cache: Some(id % cores / 2 * 2),
        node: usize::from(id % cores >= cores / 2),
    });
    CpuFacts { cpus: cpus.collect(), quota_milli_cpus }
}

fn exactly(count: u16) -> Workers {
    Workers::Exactly(NonZeroU16::new(count).expect("tests name at least one worker"))
}

fn planned(facts: &CpuFacts, workers: Workers, pin: &str) -> CpuPlan {
    let pin = pin.parse().expect("tests name good lists");
    plan(facts, workers, &pin).expect("tests name allowed CPUs")
}

fn places(facts: &CpuFacts, workers: Workers, pin: &str) -> (Option<usize>, Vec<usize>) {
    let plan = planned(facts, workers, pin);
    (plan.primary, plan.workers.into_iter().flatten().collect())
}

#[test]
fn auto_counts_cpus_and_quota_and_keeps_a_core_for_the_primary() {
    for (cores, quota, count, reason) in [
        (1, None, 1, "1 allowed CPU → 1 worker, not pinned: fewer CPUs than processes"),
        (2, None, 2, "2 allowed CPUs → 2 workers, not pinned: fewer CPUs than processes"),
        (3, None, 2, "3 allowed CPUs, one kept for the primary → 2 workers"),
        (8, None, 7, "8 allowed CPUs, one kept for the primary → 7 workers"),
        (4, Some(4000), 3, "4 allowed CPUs, quota 4, one kept for the primary → 3 workers"),
        (
            4,
            Some(2500),
            2,
            "4 allowed CPUs, quota 2.5 → 2 workers, not pinned: a quota shares these CPUs with \
             others",
        ),
        (
            4,
            Some(3000),
            2,
            "4 allowed CPUs, quota 3, one kept for the primary → 2 workers, not pinned: a quota \
             shares these CPUs with others",
        ),
    ] {
        let plan = planned(&machine(cores, 1, quota), Workers::Auto, "auto");
        assert_eq!((plan.workers.len(), plan.reason.as_str()), (count, reason));
        let is_pinned = !reason.contains("not pinned");
        assert_eq!(plan.primary.is_some(), is_pinned);
        assert!(plan.workers.iter().all(|cpu| cpu.is_some() == is_pinned));
        let unpinned = planned(&machine(cores, 1, quota), Workers::Auto, "none");
        assert_eq!(unpinned.workers, vec![None; count]);
        assert_eq!(unpinned.primary, None);
    }
}

#[test]
fn physical_cores_come_first_and_the_primary_keeps_clear_of_them() {
    let smt = machine(4, 2, None);
    assert_eq!(places(&smt, exactly(3), "auto"), (Some(3), vec![0, 1, 2]));
    assert_eq!(places(&smt, exactly(4), "auto"), (Some(4), vec![0, 1, 2, 3]));
    assert_eq!(places(&smt, Workers::Auto, "auto"), (Some(7), (0..7).collect()));
    let note = &planned(&smt, exactly(4), "auto").notes;
    assert_eq!(*note, ["the primary on CPU 4 shares a physical core with the worker on CPU 0"]);
    // Node 1 owns the odd CPUs here: neighbours stay together all the same.
    let mut striped = machine(4, 1, None);
    for cpu in &mut striped.cpus {
        (cpu.node, cpu.cache) = (cpu.id % 2, Some(cpu.id % 2));
    }
    assert_eq!(places(&striped, exactly(3), "auto"), (Some(3), vec![0, 2, 1]));
}

#[test]
fn a_list_is_taken_in_its_order() {
    let facts = machine(8, 1, None);
    assert_eq!(places(&facts, exactly(2), "6,4-5,1"), (Some(1), vec![6, 4]));
    assert_eq!(places(&facts, exactly(3), "6,4"), (None, vec![6, 4, 6]));
    assert_eq!(places(&facts, Workers::Auto, "6,4,2"), (Some(2), vec![6, 4]));
    assert_eq!(places(&facts, Workers::Auto, "6,4"), (None, vec![6, 4]));
    let pin = Pin::List(vec![12, 3, 9, 8]);
    let error = plan(&facts, Workers::Auto, &pin).expect_err("CPUs that are not there");
    assert_eq!(error.to_string(), "the list names CPUs 8-9,12, which this process may not use");
    assert_eq!(
        (error.hint().as_str(), error.kind()),
        ("the CPUs it may use are 0-7", ErrorKind::Usage)
    );
}

#[test]
fn more_workers_than_cpus_go_round_and_are_reported() {
    let plan = planned(&machine(2, 1, Some(1500)), exactly(5), "auto");
    assert_eq!(plan.workers, [None; 5]);
    let listed = planned(&machine(2, 1, Some(1500)), exactly(5), "0-1");
    assert_eq!(listed.workers, [0, 1, 0, 1, 0].map(Some), "a list is binding");
    assert!(plan.oversubscribed && plan.primary.is_none());
    assert_eq!(plan.notes.len(), 2);
    assert_eq!(plan.notes[0], "5 workers share 2 CPUs: they take turns");
}

#[test]
fn settings_are_read_and_written() {
    for text in ["auto", "1", "1024"] {
        assert_eq!(text.parse::<Workers>().map(|w| w.to_string()).ok().as_deref(), Some(text));
    }
    for text in ["auto", "none", "0-3,6,8-11"] {
        assert_eq!(text.parse::<Pin>().map(|pin| pin.to_string()).ok().as_deref(), Some(text));
    }
    for (text, what) in [
        ("0", "0 workers would leave every client waiting"),
        ("1025", "1025 workers are more than 1024"),
        ("99999999", "99999999 workers are more than 1024"),
        ("-1", "`-1` is neither `auto` nor a number of workers"),
        ("", "`` is neither `auto` nor a number of workers"),
    ] {
        let error = text.parse::<Workers>().expect_err("no number of workers");
        assert_eq!((error.to_string().as_str(), error.kind()), (what, ErrorKind::Usage));
    }
    assert!("2-1".parse::<Pin>().is_err());
}

proptest! {
    #[test]
    fn what_holds_for_every_machine(
        cores in 1_usize..9,
        threads in 1_usize..3,
        mask in any::<u16>(),
        quota in proptest::option::of(0_u16..9000),
        number in proptest::option::of(1_u16..40),
    ) {
        let mut facts = machine(cores, threads, quota.map(u64::from));
        facts.cpus.retain(|cpu| cpu.id == 0 || mask >> cpu.id & 1 == 1);
        let workers = number.map_or(Workers::Auto, exactly);
        let plan = planned(&facts, workers, "auto");
        prop_assert_eq!(&plan, &planned(&facts, workers, "auto"));

        let allowed: BTreeSet<usize> = facts.ids().into_iter().collect();
        let grants = |quota: u16| usize::from(quota.max(1000)) / 1000;
        let usable = quota.map_or(allowed.len(), |quota| allowed.len().min(grants(quota)));
        let auto = if usable < 3 { usable } else { usable - 1 };
        prop_assert_eq!(plan.workers.len(), number.map_or(auto, usize::from));

        let pinned: Vec<usize> = plan.workers.iter().flatten().copied().collect();
        let used: BTreeSet<usize> = pinned.iter().copied().collect();
        let granted = quota.is_none_or(|quota| usize::from(quota) >= 1000 * allowed.len());
        let are_ours = allowed.len() >= 3 && plan.workers.len() < allowed.len() && granted;
        prop_assert_eq!(pinned.len(), if are_ours { plan.workers.len() } else { 0 });
        prop_assert_eq!(plan.primary.is_some(), are_ours);
        if !are_ours {
            return Ok(());
        }
        prop_assert!(used.is_subset(&allowed));
        prop_assert!(plan.primary.is_none_or(|cpu| allowed.contains(&cpu)));
        prop_assert!(plan.primary.is_none_or(|cpu| !used.contains(&cpu)));
        let free = allowed.len() - usize::from(plan.primary.is_some());
        prop_assert_eq!(used.len(), pinned.len().min(free));

        let core = |id: usize| id % cores;
        let all_cores: BTreeSet<usize> = allowed.iter().map(|id| core(*id)).collect();
        let used_cores: BTreeSet<usize> = used.iter().map(|id| core(*id)).collect();
        prop_assert_eq!(used_cores.len(), used.len().min(all_cores.len()));
        if let Some(primary) = plan.primary && used.len() < all_cores.len() {
            prop_assert!(!used_cores.contains(&core(primary)));
        }
    }
}
