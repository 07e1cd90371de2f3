//! Pictures are well-formed for any input and show the values they are given.

use proptest::prelude::*;

use super::*;

/// Checks that elements are properly nested and that every number is finite.
fn check(svg: &str) -> Result<(), String> {
    let mut open: Vec<&str> = Vec::new();
    for part in svg.split('<').skip(1) {
        let (tag, text) = part.split_once('>').ok_or_else(|| format!("`{part}` does not end"))?;
        let name = tag.split([' ', '/', '\n']).find(|word| !word.is_empty()).unwrap_or("");
        if tag.matches('"').count() % 2 == 1 {
            return Err(format!("an odd quote in `{tag}`"));
        }
        if tag.starts_with('/') {
            let opened = open.pop().unwrap_or("nothing");
            if opened != name {
                return Err(format!("`{name}` closes `{opened}`"));
            }
        } else if !tag.ends_with('/') {
            open.push(name);
        }
        let numbers =
            name != "text" && name != "title" && (tag.contains("NaN") || tag.contains("inf\""));
        if numbers || text.contains('>') {
            return Err(format!("`{part}`"));
        }
    }
    if open.is_empty() { Ok(()) } else { Err(format!("{open:?} stay open")) }
}

fn series(name: &str, points: &[(f64, f64)]) -> Series {
    Series { name: name.to_owned(), points: points.to_vec() }
}

#[test]
fn the_checker_finds_faults() {
    assert_eq!(check("<a><b/>text</a>"), Ok(()));
    for fault in ["<a>", "<a></b>", "<a", "<a b=\">", "<a b=\"NaN\"/>", "<a>></a>"] {
        assert!(check(fault).is_err(), "{fault}");
    }
}

#[test]
fn bars_show_names_shares_and_the_even_line() {
    let bar = |name: &str, percent| Bar { name: name.into(), percent, note: "7k".into() };
    let svg = bars("Who took <them>", &[bar("worker 0", 87.5), bar("worker 1", 12.5)], Some(50.0));
    assert_eq!(check(&svg), Ok(()));
    for text in ["worker 0", "87.5 %", ">7k<", "even: 50.0 %", "Who took &lt;them&gt;"] {
        assert!(svg.contains(text), "{text}");
    }
}

#[test]
fn bars_beyond_the_limit_are_summed_up() {
    let all = vec![Bar { name: "w".into(), percent: 0.1, note: String::new() }; 1_000];
    let svg = bars("many", &all, None);
    assert_eq!(svg.matches("<rect").count(), BARS_MAX);
    assert!(svg.contains("and 936 more with 93.6 % together"));
}

#[test]
fn heat_maps_write_every_number_and_frame_the_high_ones() {
    let map = HeatMap {
        title: "top two".into(),
        columns: vec!["one client".into(), "many clients".into()],
        rows: vec![HeatRow { name: "epoll".into(), cells: vec![Some(93.2), None, Some(1.0)] }],
        scale: (25.0, 100.0),
        decimals: 1,
        unit: "%".into(),
        frame_above: Some(70.0),
    };
    let svg = heat_map(&map);
    assert_eq!(check(&svg), Ok(()));
    assert!(svg.contains("93.2%") && svg.contains(">–<"));
    assert_eq!(svg.matches("class=\"c-over\"").count(), 1);
    let flat = HeatMap { scale: (1.0, 1.0), ..map };
    assert_eq!(check(&heat_map(&flat)), Ok(()));
}

#[test]
fn curves_have_axes_in_words_and_a_legend() {
    let curve = [(0.0, 1e5), (0.5, 2e5), (0.9, 1e6), (0.99, 5e6), (0.999, 6e7)];
    let svg = percentile_curves("latency", &[series("rr", &curve), series("none", &curve)]);
    assert_eq!(check(&svg), Ok(()));
    for text in [">99.9<", ">100 µs<", ">10 ms<", ">rr<", ">none<", "percentile"] {
        assert!(svg.contains(text), "{text}");
    }
    assert!(!svg.contains(">99.99<"), "nothing was measured there");
    let svg =
        over_time("in flight", "connections", &[series("a", &[(0.0, 3.0), (10.0, 8.0)])], 0.0);
    assert_eq!(check(&svg), Ok(()));
    assert!(svg.contains("seconds") && svg.contains("connections"));
}

#[test]
fn nothing_to_draw_is_drawn_as_nothing() {
    let empty = HeatMap {
        title: String::new(),
        columns: Vec::new(),
        rows: Vec::new(),
        scale: (0.0, 0.0),
        decimals: 0,
        unit: String::new(),
        frame_above: None,
    };
    let none = [series("a", &[]), series("b", &[(f64::NAN, 1.0), (0.5, f64::INFINITY)])];
    for svg in [
        bars("", &[], None),
        heat_map(&empty),
        percentile_curves("", &[]),
        percentile_curves("", &none),
        over_time("", "", &none, 0.0),
    ] {
        assert_eq!(check(&svg), Ok(()));
    }
}

/// Any `f64`, mostly of realistic size.
fn number() -> impl Strategy<Value = f64> {
    prop_oneof![4 => -10.0..1e10, 4 => 0.0..1.0, 1 => any::<f64>()]
}

proptest! {
    #[test]
    fn pictures_are_well_formed(
        name in any::<String>(),
        points in prop::collection::vec((number(), number()), 0..40),
        columns in 0usize..20,
        scale in (number(), number()),
        limit in prop::option::of(number()),
    ) {
        let values: Vec<f64> = points.iter().map(|point| point.1).collect();
        let bar = |percent: &f64| Bar { name: name.clone(), percent: *percent, note: name.clone() };
        let all: Vec<Bar> = values.iter().map(bar).collect();
        prop_assert_eq!(check(&bars(&name, &all, limit)), Ok(()));
        let cells = values.iter().copied().map(Some).collect();
        let map = HeatMap {
            title: name.clone(),
            columns: vec![name.clone(); columns],
            rows: vec![HeatRow { name: name.clone(), cells }],
            scale,
            decimals: columns,
            unit: name.clone(),
            frame_above: limit,
        };
        prop_assert_eq!(check(&heat_map(&map)), Ok(()));
        let curves = vec![Series { name: name.clone(), points }; columns];
        prop_assert_eq!(check(&percentile_curves(&name, &curves)), Ok(()));
        prop_assert_eq!(check(&over_time(&name, &name, &curves, 5.0)), Ok(()));
    }
}
