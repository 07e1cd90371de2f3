//! Horizontal bar chart with one labelled bar per worker.

use super::{COLOURS, Escaped, LETTER, Picture, WIDTH, shortened, text_width, to_f64};

/// Maximum number of bars drawn; a line of text gives the number left out.
pub const BARS_MAX: usize = 64;

const ROW: f64 = 24.0;
const THICKNESS: f64 = 16.0;

/// One bar.
#[derive(Clone, Debug, PartialEq)]
pub struct Bar {
    /// Label before the bar.
    pub name: String,
    /// Length of the bar, in percent of the whole.
    pub percent: f64,
    /// Text after the percentage, such as a count; may be empty.
    pub note: String,
}

/// Draws shares of a whole. A dashed line marks `even_percent`.
#[must_use]
pub fn bars(title: &str, bars: &[Bar], even_percent: Option<f64>) -> String {
    let drawable: Vec<&Bar> = bars.iter().filter(|bar| bar.percent.is_finite()).collect();
    let (drawn, rest) = drawable.split_at(drawable.len().min(BARS_MAX));
    let even_percent = even_percent.filter(|even| even.is_finite());
    let columns = Columns::new(drawn, even_percent);
    let mut picture = Picture::new(WIDTH);
    let top = if even_percent.is_some() { LETTER + 8.0 } else { 4.0 };
    for (place, bar) in drawn.iter().enumerate() {
        draw_bar(&mut picture, &columns, top + ROW * to_f64(place), bar);
    }
    let bottom = top + ROW * to_f64(drawn.len());
    if let Some(even) = even_percent {
        let x = columns.left + columns.length(even);
        picture.line((x, top - 4.0), (x, bottom - ROW + THICKNESS + 4.0), "c-mark");
        let words = format!("even: {even:.1} %");
        // Keeps the label inside the picture.
        let half = text_width(&words) / 2.0;
        let middle = x.clamp(half, (WIDTH - half).max(half));
        picture.text(middle, LETTER - 1.0, "c-mid c-faint", &words);
    }
    let mut height = bottom;
    if !rest.is_empty() {
        let sum: f64 = rest.iter().map(|bar| bar.percent).sum();
        let words = format!("and {} more with {sum:.1} % together", rest.len());
        picture.text(columns.left, bottom + LETTER, "c-faint", &words);
        height += 1.8 * LETTER;
    }
    picture.finish(title, height)
}

/// Horizontal positions of names, bars, percentages and notes.
struct Columns {
    name_width: f64,
    left: f64,
    room: f64,
    percent_right: f64,
    longest: f64,
}

impl Columns {
    fn new(bars: &[&Bar], even_percent: Option<f64>) -> Self {
        let widest = |text: fn(&Bar) -> String| {
            let widths = bars.iter().map(|bar| text_width(&text(bar)));
            widths.fold(0.0, f64::max).min(WIDTH / 4.0)
        };
        let name_width = widest(|bar| bar.name.clone());
        let note_width = widest(|bar| bar.note.clone());
        let gap = if note_width > 0.0 { 10.0 } else { 0.0 };
        let percent_right = WIDTH - note_width - gap;
        let left = name_width + 10.0;
        let longest = bars.iter().map(|bar| bar.percent).chain(even_percent);
        let longest = longest.fold(0.0, f64::max);
        Self {
            name_width,
            left,
            room: percent_right - widest(percent_words) - 10.0 - left,
            percent_right,
            longest: if longest > 0.0 { longest } else { 1.0 },
        }
    }

    fn length(&self, percent: f64) -> f64 {
        self.room * (percent / self.longest).clamp(0.0, 1.0)
    }
}

fn percent_words(bar: &Bar) -> String {
    format!("{:.1} %", bar.percent)
}

fn draw_bar(picture: &mut Picture, columns: &Columns, y: f64, bar: &Bar) {
    let baseline = y + THICKNESS / 2.0 + LETTER * 0.36;
    let name = shortened(&bar.name, columns.name_width);
    picture.text(columns.name_width, baseline, "c-end", &name);
    let words = format!("{}: {} {}", bar.name, percent_words(bar), bar.note);
    picture.add(format_args!(
        "<rect x=\"{:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{THICKNESS}\" rx=\"2\" \
         fill=\"{}\"><title>{}</title></rect>",
        columns.left,
        columns.length(bar.percent).max(1.0),
        COLOURS[0],
        Escaped(words.trim_end()),
    ));
    let percent = shortened(&percent_words(bar), WIDTH / 4.0);
    picture.text(columns.percent_right, baseline, "c-end", &percent);
    let note = shortened(&bar.note, WIDTH / 4.0);
    picture.text(WIDTH, baseline, "c-end c-faint", &note);
}
