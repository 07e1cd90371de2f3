//! Charts of measurements as self-contained inline SVG.
//!
//! Each function takes numbers and returns a complete `<svg>` element that scales by its `viewBox`.
//! Text stays readable on a phone and in print. Colours are distinguishable by colour-blind
//! readers, with a dash or a number beside every colour. Ink follows the page through the CSS
//! variables `--ink` and `--faint`. Values that are not finite are left out. Does not write the
//! page around the charts.

mod bars;
mod heat;
mod lines;
mod scale;

pub use bars::{BARS_MAX, Bar, bars};
pub use heat::{HeatMap, HeatRow, heat_map};
pub use lines::{SERIES_MAX, Series, over_time, percentile_curves};

use std::fmt::{self, Write};

/// Width of a picture in user units. Text of size [`LETTER`] stays readable when the picture is
/// scaled to the width of a phone.
const WIDTH: f64 = 480.0;
/// Font size.
const LETTER: f64 = 13.0;
/// Estimated width of a letter, rounded up because the reader's font is unknown.
const LETTER_WIDTH: f64 = 0.6 * LETTER;

/// Categorical colours (Okabe and Ito); those that stand out on both white and black come first.
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];

/// A picture under construction.
struct Picture {
    width: f64,
    body: String,
}

impl Picture {
    fn new(width: f64) -> Self {
        Self { width, body: String::new() }
    }

    /// Appends one or more elements.
    fn add(&mut self, element: fmt::Arguments<'_>) {
        self.body.write_fmt(element).expect("a string takes everything");
        self.body.push('\n');
    }

    fn text(&mut self, x: f64, y: f64, class: &str, text: &str) {
        let text = Escaped(text);
        self.add(format_args!(r#"<text x="{x:.1}" y="{y:.1}" class="{class}">{text}</text>"#));
    }

    fn line(&mut self, from: (f64, f64), to: (f64, f64), class: &str) {
        let ((x1, y1), (x2, y2)) = (from, to);
        self.add(format_args!(
            r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" class="{class}"/>"#
        ));
    }

    /// Returns the finished element. The title serves screen readers and is not drawn, since the
    /// page has its own heading.
    fn finish(self, title: &str, height: f64) -> String {
        let Self { width, body } = self;
        let title = Escaped(title);
        format!(
            "<svg class=\"chart\" viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\" \
             aria-label=\"{title}\" xmlns=\"http://www.w3.org/2000/svg\" \
             style=\"width:100%;max-width:{:.0}px;height:auto\">\n\
             <title>{title}</title>\n<style>{STYLE}</style>\n{body}</svg>\n",
            1.6 * width
        )
    }
}

/// Style shared by all pictures. The classes are prefixed because a style inside an SVG applies to
/// the whole page.
const STYLE: &str = "\
.chart text{font:13px system-ui,sans-serif;fill:var(--ink,#1a1a1a)}\
.chart .c-end{text-anchor:end}\
.chart .c-mid{text-anchor:middle}\
.chart .c-small{font-size:11px}\
.chart .c-faint{fill:var(--faint,#6b6b6b)}\
.chart .c-grid{stroke:var(--faint,#6b6b6b);stroke-opacity:.28;stroke-width:1}\
.chart .c-axis{stroke:var(--faint,#6b6b6b);stroke-width:1}\
.chart .c-mark{stroke:var(--ink,#1a1a1a);stroke-width:1.5;stroke-dasharray:5 4}\
.chart .c-curve{fill:none;stroke-width:2.2;stroke-linejoin:round;stroke-linecap:round}\
.chart .c-over{fill:none;stroke:var(--ink,#1a1a1a);stroke-width:2.5}\
.chart .c-none{fill:var(--faint,#6b6b6b);fill-opacity:.12}\
.chart .c-dark{fill:#111}.chart .c-light{fill:#fff}";

/// Text escaped for an element or an attribute.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for letter in self.0.chars() {
            match letter {
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '&' => f.write_str("&amp;")?,
                '"' => f.write_str("&quot;")?,
                // XML cannot represent most control characters.
                letter if letter.is_control() => f.write_char(' ')?,
                letter => f.write_char(letter)?,
            }
        }
        Ok(())
    }
}

/// Estimated width of a text.
fn text_width(text: &str) -> f64 {
    LETTER_WIDTH * to_f64(text.chars().count())
}

/// The text, shortened to fit a width.
fn shortened(text: &str, width: f64) -> String {
    if text_width(text) <= width {
        return text.to_owned();
    }
    let mut short = String::new();
    for letter in text.chars() {
        if text_width(&short) + 2.0 * LETTER_WIDTH > width {
            break;
        }
        short.push(letter);
    }
    format!("{}…", short.trim_end())
}

#[expect(clippy::cast_precision_loss, reason = "what is drawn is counted in thousands at most")]
fn to_f64(count: usize) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests;
