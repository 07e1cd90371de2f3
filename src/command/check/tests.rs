//! The verdicts on invented machines, and the table's layout.

use super::*;
use clusterlb_sys::cpu::Cpu;

fn healthy() -> Facts {
    Facts {
        kernel: "6.18.0".into(),
        asked: EngineChoice::Auto,
        ring: Some(RingSupport {
            refusal: None,
            features: Feature::ALL.to_vec(),
            missing_operations: Vec::new(),
        }),
        missing_calls: Vec::new(),
        io_uring_disabled: Some(0),
        seccomp: Some(0),
        open_files: Some(Limit { soft: 1024, hard: 524_288 }),
        locked_memory: Some(Limit { soft: 8_388_608, hard: u64::MAX }),
        counts_locked_memory: false,
        kernel_dispatch: FormDecision { form: Form::Unprivileged, reason: "drawn".into() },
        facilities: Facility::ALL.map(|facility| (facility, None)).into(),
        may_pin: true,
        has_proc: true,
        backlog_max: Some(4096),
        cpu: Some(CpuFacts { cpus: (0..4).map(Cpu::alone).collect(), quota_milli_cpus: None }),
    }
}

/// A machine whose user asks for io_uring.
fn strict() -> Facts {
    Facts { asked: EngineChoice::IoUring, ..healthy() }
}

fn ring(facts: &mut Facts) -> &mut RingSupport {
    facts.ring.as_mut().expect("it was looked at")
}

fn row<'a>(report: &'a CheckReport, name: &str) -> &'a Row {
    let found = report.rows.iter().find(|row| row.name == name);
    found.unwrap_or_else(|| panic!("no row {name}"))
}

#[test]
fn a_healthy_machine_has_nothing_to_mend() {
    let report = judge(&healthy());
    assert!(report.rows.iter().all(|row| row.verdict == Verdict::Ok && row.remedy.is_none()));
    let level = Some(FeatureLevel::L3);
    assert_eq!((report.can_run, report.io_uring, exit_code(&report)), (true, level, 0));
    assert_eq!(report.engine, Some("io_uring"));
    let workers = "4 allowed CPUs, one kept for the primary → 3 workers \
                   (on 0-2, the primary on 3)";
    assert_eq!(row(&report, "workers auto").value, workers);
    assert_eq!(row(&report, "SMT").value, "off: each CPU is a separate core");
    assert_eq!(row(&report, "locked memory").value, "8388608 bytes (hard unlimited)");
}

#[test]
fn a_refused_ring_names_the_cause_and_hides_the_features() {
    let mut facts = strict();
    ring(&mut facts).refusal = Some(Errno::EPERM);
    ring(&mut facts).features.clear();
    facts.seccomp = Some(2);
    let report = judge(&facts);
    let level = Some(FeatureLevel::L0);
    assert_eq!((report.can_run, report.io_uring, exit_code(&report)), (false, level, 3));
    assert_eq!((report.engine, row(&report, "engine").verdict), (None, Verdict::Cannot));
    let refused = row(&report, "io_uring");
    assert_eq!(refused.verdict, Verdict::Cannot);
    assert!(refused.value.contains("seccomp filter"), "{}", refused.value);
    assert!(refused.remedy.as_ref().is_some_and(|remedy| remedy.contains("seccomp profile")));
    assert!(report.rows.iter().all(|row| row.name != "multishot accept"));
    facts.io_uring_disabled = Some(2);
    assert!(row(&judge(&facts), "io_uring").value.contains("io_uring_disabled is 2"));
}

#[test]
fn where_io_uring_is_refused_epoll_runs_and_what_is_lost_is_told() {
    let mut facts = healthy();
    ring(&mut facts).refusal = Some(Errno::EPERM);
    ring(&mut facts).features.clear();
    facts.seccomp = Some(2);
    let report = judge(&facts);
    assert_eq!((report.can_run, report.engine, exit_code(&report)), (true, Some("epoll"), 0));
    let engine = row(&report, "engine");
    assert_eq!(engine.verdict, Verdict::Note);
    assert!(engine.value.starts_with("epoll (io_uring: a seccomp filter"), "{}", engine.value);
    let lost = engine.remedy.as_ref().expect("something is lost");
    assert!(lost.contains("uring-multishot") && lost.contains("tokio-uring"), "{lost}");
    assert_eq!(row(&report, "io_uring").verdict, Verdict::Note);
    // A lack of memory is not a refusal.
    ring(&mut facts).refusal = Some(Errno::ENOMEM);
    let report = judge(&facts);
    assert_eq!((report.engine, exit_code(&report)), (None, 3));
    // When epoll is asked for, the report does not mention io_uring, which was not probed.
    let report = judge(&Facts { asked: EngineChoice::Epoll, ring: None, ..facts });
    assert_eq!((report.engine, report.io_uring, exit_code(&report)), (Some("epoll"), None, 0));
    assert!(report.rows.iter().all(|row| row.name != "io_uring"));
    assert!(render(&report).ends_with("clusterlb can run here (epoll)\n"));
}

#[test]
fn a_kernel_without_a_call_that_every_engine_needs_cannot_run() {
    let missing = |since, instead| MissingCall { name: "some_call", since, instead };
    let mut facts = Facts { missing_calls: vec![missing("5.11", Some("slowly"))], ..healthy() };
    let report = judge(&facts);
    assert_eq!((row(&report, "system calls").verdict, exit_code(&report)), (Verdict::Note, 0));
    facts.missing_calls.push(missing("5.3", None));
    let report = judge(&facts);
    assert_eq!((row(&report, "system calls").verdict, exit_code(&report)), (Verdict::Cannot, 3));
    let remedy = row(&report, "system calls").remedy.as_ref();
    assert!(remedy.is_some_and(|remedy| remedy.contains("Linux 5.3")));
}

#[test]
fn a_missing_feature_weighs_what_it_is_needed_for() {
    let without = |feature| {
        let mut facts = strict();
        ring(&mut facts).features.retain(|present| *present != feature);
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
        assert_eq!(report.io_uring, Some(level));
        assert_eq!(exit_code(&report) == 3, verdict == Verdict::Cannot);
        assert_eq!(row(&report, "io_uring").verdict == Verdict::Cannot, !report.can_run);
    }
    let mut facts = healthy();
    ring(&mut facts).features.retain(|present| *present != Feature::Operations);
    ring(&mut facts).missing_operations = vec!["shutdown", "cancel"];
    let report = judge(&facts);
    assert_eq!(row(&report, "operations").value, "no shutdown, cancel");
    assert_eq!((row(&report, "operations").verdict, report.engine), (Verdict::Note, Some("epoll")));
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
    let report = CheckReport {
        schema: SCHEMA,
        can_run: false,
        engine: None,
        io_uring: Some(FeatureLevel::L1),
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
    let report = run().expect("the environment asks for what there is");
    assert!(row(&report, "kernel").value.starts_with(|c: char| c.is_ascii_digit()));
    assert_eq!(report.rows.last().map(|row| row.name), Some("workers auto"));
    println!("{}", render(&report));
}

#[test]
fn locked_memory_matters_where_rings_count_against_it() {
    let with = |soft, asked| {
        let counts = Facts { counts_locked_memory: true, asked, ..healthy() };
        let limit = Some(Limit { soft, hard: soft });
        let report = judge(&Facts { locked_memory: limit, ..counts });
        let row = row(&report, "locked memory");
        assert_eq!(
            row.remedy.as_ref().is_some_and(|text| text.contains("ulimit -l")),
            soft < 1 << 20
        );
        (row.verdict, report.engine, report.can_run)
    };
    let auto = EngineChoice::Auto;
    assert_eq!(with(u64::MAX, auto), (Verdict::Ok, Some("io_uring"), true));
    assert_eq!(with(8 << 20, auto), (Verdict::Ok, Some("io_uring"), true));
    assert_eq!(with(256 << 10, auto), (Verdict::Note, Some("io_uring"), true));
    assert_eq!(with(64 << 10, auto), (Verdict::Note, None, false));
    let report = judge(&Facts { locked_memory: Some(Limit { soft: 0, hard: 0 }), ..healthy() });
    assert_eq!(report.engine, Some("io_uring"), "they do not count");
}

#[test]
fn what_a_run_refuses_the_check_refuses() {
    let refused = Error::system("create an epoll set", Errno::EPERM);
    let mut facts = healthy();
    facts.facilities[0].1 = Some(refused);
    let report = judge(&facts);
    let row = row(&report, "epoll");
    assert_eq!((row.verdict, report.can_run), (Verdict::Cannot, false));
    assert!(row.remedy.as_ref().is_some_and(|remedy| remedy.contains("seccomp")));
    let scarce = Limit { soft: 70, hard: 70 };
    assert!(!judge(&Facts { open_files: Some(scarce), ..healthy() }).can_run);
    let bare = judge(&Facts { may_pin: false, has_proc: false, ..healthy() });
    assert!(bare.can_run, "it does without");
}
