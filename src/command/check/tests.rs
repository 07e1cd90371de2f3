//! The verdicts on made-up machines, and the table's looks.

use nix::errno::Errno;

use super::*;
use clusterlb_sys::cpu::Cpu;

fn healthy() -> Facts {
    Facts {
        kernel: "6.18.0".into(),
        ring: RingSupport {
            refusal: None,
            features: Feature::ALL.to_vec(),
            missing_operations: Vec::new(),
        },
        io_uring_disabled: Some(0),
        seccomp: Some(0),
        open_files: Some(Limit { soft: 1024, hard: 524_288 }),
        locked_memory: Some(Limit { soft: 8_388_608, hard: u64::MAX }),
        backlog_max: Some(4096),
        cpu: Some(CpuFacts { cpus: (0..4).map(Cpu::alone).collect(), quota_milli_cpus: None }),
    }
}

fn row<'a>(report: &'a Report, name: &str) -> &'a Row {
    let found = report.rows.iter().find(|row| row.name == name);
    found.unwrap_or_else(|| panic!("no row {name}"))
}

#[test]
fn a_healthy_machine_has_nothing_to_mend() {
    let report = judge(&healthy());
    assert!(report.rows.iter().all(|row| row.verdict == Verdict::Ok && row.remedy.is_none()));
    assert_eq!((report.can_run, report.io_uring, exit_code(&report)), (true, FeatureLevel::L3, 0));
    let workers = "4 allowed CPUs, one kept for the primary → 3 workers \
                   (on 0-2, the primary on 3)";
    assert_eq!(row(&report, "workers auto").value, workers);
    assert_eq!(row(&report, "SMT").value, "off: each CPU is a core of its own");
    assert_eq!(row(&report, "locked memory").value, "8388608 bytes (hard unlimited)");
}

#[test]
fn a_refused_ring_says_who_refuses_and_hides_the_features() {
    let mut facts = healthy();
    facts.ring.refusal = Some(Errno::EPERM);
    facts.ring.features.clear();
    facts.seccomp = Some(2);
    let report = judge(&facts);
    assert_eq!((report.can_run, report.io_uring, exit_code(&report)), (false, FeatureLevel::L0, 3));
    let ring = row(&report, "io_uring");
    assert_eq!(ring.verdict, Verdict::Cannot);
    assert!(ring.value.contains("seccomp filter"), "{}", ring.value);
    assert!(ring.remedy.as_ref().is_some_and(|remedy| remedy.contains("seccomp profile")));
    assert!(report.rows.iter().all(|row| row.name != "multishot accept"));
    facts.io_uring_disabled = Some(2);
    assert!(row(&judge(&facts), "io_uring").value.contains("io_uring_disabled is 2"));
}

#[test]
fn a_missing_feature_weighs_what_it_is_needed_for() {
    let without = |feature| {
        let mut facts = healthy();
        facts.ring.features.retain(|present| *present != feature);
        judge(&facts)
    };
    for (feature, verdict, level) in [
        (Feature::MinWait, Verdict::Note, FeatureLevel::L2),
        (Feature::NoSqarray, Verdict::Note, FeatureLevel::L3),
        (Feature::DeferTaskrun, Verdict::Cannot, FeatureLevel::L1),
        (Feature::MultishotAccept, Verdict::Cannot, FeatureLevel::L0),
    ] {
        let report = without(feature);
        assert_eq!(row(&report, feature.name()).verdict, verdict);
        assert_eq!(report.io_uring, level);
        assert_eq!(exit_code(&report) == 3, verdict == Verdict::Cannot);
        assert_eq!(row(&report, "io_uring").verdict == Verdict::Cannot, !report.can_run);
    }
    let mut facts = healthy();
    facts.ring.features.retain(|present| *present != Feature::Operations);
    facts.ring.missing_operations = vec!["shutdown", "cancel"];
    assert_eq!(row(&judge(&facts), "operations").value, "no shutdown, cancel");
}

#[test]
fn tight_limits_are_noted_with_a_remedy() {
    let mut facts = healthy();
    facts.open_files = Some(Limit { soft: 1024, hard: 4096 });
    facts.backlog_max = Some(128);
    facts.io_uring_disabled = Some(1);
    facts.seccomp = None;
    let sibling = |id: usize| Cpu { siblings: vec![id % 2, id % 2 + 2], ..Cpu::alone(id) };
    facts.cpu =
        Some(CpuFacts { cpus: (0..4).map(sibling).collect(), quota_milli_cpus: Some(2500) });
    let report = judge(&facts);
    let noted: Vec<&str> = report
        .rows
        .iter()
        .filter(|row| row.verdict == Verdict::Note && row.remedy.is_some())
        .map(|row| row.name)
        .collect();
    assert_eq!(noted, ["io_uring_disabled", "open files", "somaxconn", "CPU quota"]);
    assert_eq!(exit_code(&report), 0);
    assert_eq!(row(&report, "SMT").value, "on: 2 cores, 0+2 1+3");
    let workers = "4 allowed CPUs, quota 2.5 → 2 workers, not pinned: a quota shares these CPUs \
                   with others";
    assert_eq!(row(&report, "workers auto").value, workers);
    facts.cpu = None;
    assert_eq!(exit_code(&judge(&facts)), 3);
}

#[test]
fn the_table_is_aligned_and_ends_with_the_outcome() {
    let report = Report {
        schema: SCHEMA,
        can_run: false,
        io_uring: FeatureLevel::L1,
        rows: vec![
            Row::ok("kernel", "6.0.0".into()),
            Row::cannot("deferred task work", "no".into(), "comes with Linux 6.1"),
        ],
    };
    let text = "\
ok      kernel              6.0.0
cannot  deferred task work  no
                            → comes with Linux 6.1

clusterlb cannot run here (io_uring L1)
";
    assert_eq!(render(&report), text);
    let json = serde_json::to_value(&report).expect("a report has nothing JSON lacks");
    assert_eq!(json["schema"], "clusterlb-check/1");
    assert_eq!(json["io_uring"], "L1");
    assert_eq!(json["rows"][1]["verdict"], "cannot");
    assert!(json["rows"][0]["remedy"].is_null());
}

#[test]
fn this_machine_gets_a_whole_table() {
    let report = run();
    assert!(row(&report, "kernel").value.starts_with(|c: char| c.is_ascii_digit()));
    assert_eq!(report.rows.last().map(|row| row.name), Some("workers auto"));
    println!("{}", render(&report));
}
