//! The syntax of work and the sampled times.

use proptest::prelude::*;

use super::*;

fn any_time() -> impl Strategy<Value = ServiceTime> {
    let ns = || 1..=SERVICE_NS_MAX;
    let parts = prop::collection::vec((1u32.., ns()), 1..=MIX_PARTS_MAX);
    prop_oneof![
        ns().prop_map(|ns| ServiceTime::Constant { ns }),
        ns().prop_map(|mean_ns| ServiceTime::Exponential { mean_ns }),
        (ns(), 0.001..VARIATION_MAX)
            .prop_map(|(mean_ns, variation)| ServiceTime::LogNormal { mean_ns, variation }),
        parts.prop_map(|parts| ServiceTime::Mix { parts }),
    ]
}

fn work(text: &str) -> Work {
    text.parse().expect("these words are right")
}

#[test]
fn the_forms_in_the_hint_are_read() {
    let parts = vec![(99, 1_000_000), (1, 50_000_000)];
    let heavy = Work { kind: WorkKind::Block, time: ServiceTime::Mix { parts } };
    assert_eq!(work("block:heavy"), heavy);
    assert_eq!(work("block:mix:99x1ms+1x50ms"), heavy);
    assert_eq!(heavy.to_string(), "block:mix:99x1ms+1x50ms");
    assert_eq!(work("cpu:200us").time, ServiceTime::Constant { ns: 200_000 });
    let mean_ns = 1_000_000;
    assert_eq!(work("cpu:exp:1ms").time, ServiceTime::Exponential { mean_ns });
    let skewed = ServiceTime::LogNormal { mean_ns, variation: 2.0 };
    assert_eq!(work("cpu:lognormal:1ms,cv=2").time, skewed);
}

#[test]
fn errors_name_what_is_wrong() {
    for (text, part) in [
        ("", "no colon"),
        ("sleep:1ms", "`sleep` is neither"),
        ("cpu:1", "`1` has no unit"),
        ("cpu:1m", "no unit"),
        ("cpu:1.5ms", "not a whole number"),
        ("cpu:-1ms", "not a whole number"),
        ("cpu:ms", "not a whole number"),
        ("cpu:0s", "no time at all"),
        ("cpu:61s", "longer than 60s"),
        ("cpu:99999999999999999999s", "not a whole number"),
        ("cpu:9999999999999999s", "longer than 60s"),
        ("block:uniform:1ms", "no distribution `uniform`"),
        ("block:lognormal:1ms", "needs a mean and a variation"),
        ("block:lognormal:1ms,cv=0", "not above 0"),
        ("block:lognormal:1ms,cv=NaN", "not above 0"),
        ("block:lognormal:1ms,cv=x", "`x` is not a number"),
        ("block:mix:", "not a weight and a time"),
        ("block:mix:0x1ms", "weight"),
        ("block:mix:1x1ms+", "not a weight and a time"),
        ("block:mix:1x1s+1x1s+1x1s+1x1s+1x1s+1x1s+1x1s+1x1s+1x1s", "9 parts"),
    ] {
        let error = text.parse::<Work>().expect_err(text).to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[test]
fn moments_of_the_heavy_mix() {
    let heavy = ServiceTime::heavy();
    assert!((heavy.mean_ns() - 1_490_000.0).abs() < 1e-6);
    // E[S²] = 0.99 · 1 + 0.01 · 2500 = 25.99 ms².
    let expected = 25.99 / (1.49 * 1.49) - 1.0;
    assert!((heavy.squared_variation() - expected).abs() < 1e-9);
}

#[test]
fn draws_have_the_moments_they_should() {
    let count = 200_000_u32;
    for text in ["200us", "exp:1ms", "lognormal:1ms,cv=1.5", "heavy", "mix:1x1ms+3x5ms"] {
        let time: ServiceTime = text.parse().expect("a distribution");
        let mut sampler = Sampler::new(time.clone(), 7);
        let draws: Vec<f64> = (0..count).map(|_| to_f64(sampler.draw_ns())).collect();
        let mean = draws.iter().sum::<f64>() / f64::from(count);
        let squares: f64 = draws.iter().map(|draw| (draw - mean).powi(2)).sum();
        let squared_variation = squares / f64::from(count) / (mean * mean);
        assert!((mean / time.mean_ns() - 1.0).abs() < 0.02, "{text}: mean {mean}");
        let expected = time.squared_variation();
        let off = (squared_variation - expected).abs() / expected.max(1e-9);
        assert!(expected < 1e-9 || off < 0.1, "{text}: {squared_variation}, not {expected}");
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read(cpu in any::<bool>(), time in any_time()) {
        let kind = if cpu { WorkKind::Cpu } else { WorkKind::Block };
        let work = Work { kind, time };
        prop_assert_eq!(work.to_string().parse::<Work>().expect("own words"), work.clone());
        let json = serde_json::to_string(&work).expect("text");
        prop_assert_eq!(serde_json::from_str::<Work>(&json).expect("own words"), work);
    }

    #[test]
    fn garbage_is_refused_without_panic(text in "(cpu|block)?:?(mix|exp)?:?[0-9a-zµx+,.=-]{0,20}") {
        if let Ok(work) = text.parse::<Work>() {
            prop_assert_eq!(work.to_string().parse::<Work>().expect("own words"), work);
        }
    }

    #[test]
    fn draws_repeat_and_stay_within_bounds(time in any_time(), seed in any::<u64>()) {
        let mut first = Sampler::new(time.clone(), seed);
        let mut second = Sampler::new(time, seed);
        for _ in 0..50 {
            let draw = first.draw_ns();
            prop_assert_eq!(draw, second.draw_ns());
            prop_assert!((1..=SERVICE_NS_MAX).contains(&draw));
        }
    }
}
