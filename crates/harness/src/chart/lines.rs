//! Line charts: latency by percentile, and values over time.

use super::scale::{Scale, number_words, time_words};
use super::{COLOURS, Escaped, LETTER, Picture, WIDTH, shortened, text_width};

/// Maximum number of curves in a picture; more would be indistinguishable.
pub const SERIES_MAX: usize = 12;

const HEIGHT: f64 = 270.0;
const TOP: f64 = 12.0;
const RIGHT: f64 = 14.0;
/// Height reserved for the axis under the plot.
const AXIS: f64 = 40.0;

/// One curve.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Name in the legend.
    pub name: String,
    /// Points in ascending order of x.
    pub points: Vec<(f64, f64)>,
}

/// Position of the plot and its axes.
struct Frame {
    x: Scale,
    y: Scale,
    left: f64,
    bottom: f64,
}

/// Draws latencies in nanoseconds (y) over quantiles from 0 to 1 (x). Both axes are logarithmic:
/// each step to the right is ten times rarer.
#[must_use]
pub fn percentile_curves(title: &str, series: &[Series]) -> String {
    let drawn = drawable(series, |quantile, ns| (0.0..1.0).contains(&quantile) && ns > 0.0);
    let (_, y_range) = ranges(&drawn);
    let rarest = drawn.iter().flat_map(|one| &one.points).map(|(quantile, _)| rarity(*quantile));
    let rarest = rarest.fold(100.0, f64::max);
    let (low, high) = y_range.unwrap_or((1e6, 1e9));
    let bottom = HEIGHT - AXIS;
    let y = Scale::logarithmic(low, high, bottom, TOP);
    let labels: Vec<(f64, String)> =
        y.ticks().into_iter().map(|tick| (tick, time_words(tick))).collect();
    let left = axis_width(&labels);
    let x = Scale::logarithmic(1.0, rarest, left, WIDTH - RIGHT);
    let frame = Frame { x, y, left, bottom };
    let mut picture = Picture::new(WIDTH);
    draw_y_axis(&mut picture, &frame, &labels);
    for (quantile, label) in PERCENTILES {
        if rarity(quantile) <= rarest * 1.001 {
            let place = frame.x.place(rarity(quantile));
            picture.line((place, TOP), (place, bottom), "c-grid");
            picture.text(place, bottom + LETTER + 4.0, "c-mid c-faint", label);
        }
    }
    let middle = (left + WIDTH - RIGHT) / 2.0;
    picture.text(middle, HEIGHT - 5.0, "c-mid c-faint", "percentile");
    draw_curves(&mut picture, &frame, &drawn, rarity);
    finish(picture, title, &drawn)
}

/// Draws values (y) over seconds (x), such as connections in flight. The y axis reaches at least
/// `up_to`, so that pictures side by side can share a scale.
#[must_use]
pub fn over_time(title: &str, what: &str, series: &[Series], up_to: f64) -> String {
    let drawn = drawable(series, |time_s, value| time_s >= 0.0 && value >= 0.0);
    let (x_range, y_range) = ranges(&drawn);
    let bottom = HEIGHT - AXIS;
    let highest = y_range.map_or(1.0, |range| range.1).max(up_to);
    let y = Scale::linear(highest, bottom, TOP + LETTER + 4.0);
    let labels: Vec<(f64, String)> =
        y.ticks().into_iter().map(|tick| (tick, number_words(tick))).collect();
    let left = axis_width(&labels);
    let x = Scale::linear(x_range.map_or(1.0, |range| range.1), left, WIDTH - RIGHT);
    let frame = Frame { x, y, left, bottom };
    let mut picture = Picture::new(WIDTH);
    draw_y_axis(&mut picture, &frame, &labels);
    picture.text(left, TOP, "c-faint", what);
    for tick in x.ticks() {
        let place = x.place(tick);
        picture.line((place, bottom), (place, bottom + 4.0), "c-axis");
        picture.text(place, bottom + LETTER + 6.0, "c-mid c-faint", &number_words(tick));
    }
    let middle = (left + WIDTH - RIGHT) / 2.0;
    picture.text(middle, HEIGHT - 5.0, "c-mid c-faint", "seconds");
    draw_curves(&mut picture, &frame, &drawn, |time_s| time_s);
    finish(picture, title, &drawn)
}

/// The percentiles labelled on the axis, up to the last point.
const PERCENTILES: [(f64, &str); 7] = [
    (0.0, "0"),
    (0.5, "50"),
    (0.9, "90"),
    (0.99, "99"),
    (0.999, "99.9"),
    (0.9999, "99.99"),
    (0.99999, "99.999"),
];

/// The `n` in "one in n requests exceeds this quantile".
fn rarity(quantile: f64) -> f64 {
    1.0 / (1.0 - quantile)
}

/// The curves without points that cannot be drawn.
fn drawable(series: &[Series], fits: impl Fn(f64, f64) -> bool) -> Vec<Series> {
    let fits =
        |point: &&(f64, f64)| point.0.is_finite() && point.1.is_finite() && fits(point.0, point.1);
    let kept = series.iter().take(SERIES_MAX).map(|one| Series {
        name: one.name.clone(),
        points: one.points.iter().filter(fits).copied().collect(),
    });
    kept.collect()
}

type Range = Option<(f64, f64)>;

/// Minimum and maximum of each coordinate; `None` if there are no points.
fn ranges(series: &[Series]) -> (Range, Range) {
    let range = |numbers: Vec<f64>| {
        let low = numbers.iter().copied().reduce(f64::min)?;
        Some((low, numbers.iter().copied().reduce(f64::max)?))
    };
    let points = || series.iter().flat_map(|one| &one.points);
    (range(points().map(|point| point.0).collect()), range(points().map(|point| point.1).collect()))
}

/// Width reserved for the labels of the y axis.
fn axis_width(labels: &[(f64, String)]) -> f64 {
    labels.iter().map(|(_, label)| text_width(label)).fold(0.0, f64::max) + 10.0
}

fn draw_y_axis(picture: &mut Picture, frame: &Frame, labels: &[(f64, String)]) {
    for (tick, label) in labels {
        let place = frame.y.place(*tick);
        picture.line((frame.left, place), (WIDTH - RIGHT, place), "c-grid");
        picture.text(frame.left - 6.0, place + LETTER * 0.36, "c-end c-faint", label);
    }
    picture.line((frame.left, frame.bottom), (WIDTH - RIGHT, frame.bottom), "c-axis");
}

/// Colour and dash pattern of a curve: when the colours run out, they repeat with dashes.
fn pen(place: usize) -> String {
    let dash = ["", "7 5", "2 5"][place / COLOURS.len() % 3];
    format!(r#"stroke="{}" stroke-dasharray="{dash}""#, COLOURS[place % COLOURS.len()])
}

fn draw_curves(
    picture: &mut Picture,
    frame: &Frame,
    series: &[Series],
    along: impl Fn(f64) -> f64,
) {
    for (place, one) in series.iter().enumerate() {
        let point = |(first, second): &(f64, f64)| {
            format!("{:.1},{:.1}", frame.x.place(along(*first)), frame.y.place(*second))
        };
        let points: Vec<String> = one.points.iter().map(point).collect();
        picture.add(format_args!(
            r#"<polyline class="c-curve" {} points="{}"><title>{}</title></polyline>"#,
            pen(place),
            points.join(" "),
            Escaped(&one.name),
        ));
    }
}

/// Writes the legend under the plot, with as many names per row as fit, and closes the picture.
fn finish(mut picture: Picture, title: &str, series: &[Series]) -> String {
    const SWATCH: f64 = 26.0;
    let (mut x, mut y) = (4.0, HEIGHT + LETTER + 2.0);
    for (place, one) in series.iter().enumerate() {
        let name = shortened(&one.name, WIDTH - SWATCH - 12.0);
        let width = SWATCH + 6.0 + text_width(&name) + 14.0;
        if x > 4.0 && x + width > WIDTH {
            (x, y) = (4.0, y + LETTER + 8.0);
        }
        let middle = y - LETTER * 0.36;
        picture.add(format_args!(
            "<line class=\"c-curve\" {} x1=\"{x:.1}\" y1=\"{middle:.1}\" x2=\"{:.1}\" \
             y2=\"{middle:.1}\"/>",
            pen(place),
            x + SWATCH,
        ));
        picture.text(x + SWATCH + 6.0, y, "", &name);
        x += width;
    }
    let height = if series.is_empty() { HEIGHT } else { y + LETTER * 0.6 };
    picture.finish(title, height)
}
