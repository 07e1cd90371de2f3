//! Heat map: a table whose cells are coloured by value.

use super::{Escaped, LETTER, Picture, WIDTH, shortened, text_width, to_f64};

const ROW: f64 = 30.0;
const CELL_WIDTH_MIN: f64 = 48.0;
const GAP: f64 = 2.0;
/// Average width of a letter in a column heading, which uses a smaller font.
const HEADING_LETTER_WIDTH: f64 = 0.54 * 11.0;
/// Maximum number of lines in a column heading.
const HEADING_LINES_MAX: usize = 4;

/// The data of a heat map.
#[derive(Clone, Debug, PartialEq)]
pub struct HeatMap {
    /// Text that screen readers use instead of the picture.
    pub title: String,
    /// Column headings; they wrap at spaces.
    pub columns: Vec<String>,
    /// The rows; cells beyond the last column are not drawn.
    pub rows: Vec<HeatRow>,
    /// The values drawn with the palest and with the strongest colour.
    pub scale: (f64, f64),
    /// Number of decimals.
    pub decimals: usize,
    /// Unit printed after each number, such as `%`.
    pub unit: String,
    /// Cells above this value get a frame.
    pub frame_above: Option<f64>,
}

/// One row of the table.
#[derive(Clone, Debug, PartialEq)]
pub struct HeatRow {
    /// Label of the row.
    pub name: String,
    /// Values of the row; a missing measurement is drawn as a dash.
    pub cells: Vec<Option<f64>>,
}

/// Draws the table. Each cell also shows its number, so that colour is never the only cue.
#[must_use]
pub fn heat_map(map: &HeatMap) -> String {
    let name_width = map.rows.iter().map(|row| text_width(&row.name)).fold(0.0, f64::max);
    let name_width = name_width.min(WIDTH * 0.36);
    let left = name_width + 8.0;
    let columns = to_f64(map.columns.len().max(1));
    let cell_width = ((WIDTH - left) / columns).max(CELL_WIDTH_MIN);
    let mut picture = Picture::new(left + columns * cell_width);
    let headings: Vec<Vec<String>> =
        map.columns.iter().map(|heading| broken(heading, cell_width - GAP)).collect();
    let lines = headings.iter().map(Vec::len).max().unwrap_or(0);
    let top = to_f64(lines) * (LETTER + 2.0) + 6.0;
    for (column, heading) in headings.iter().enumerate() {
        let x = left + cell_width * (to_f64(column) + 0.5);
        // Headings are aligned to the bottom, next to the table.
        for (line, text) in heading.iter().rev().enumerate() {
            let y = top - 7.0 - to_f64(line) * (LETTER + 2.0);
            picture.text(x, y, "c-mid c-faint c-small", text);
        }
    }
    for (place, row) in map.rows.iter().enumerate() {
        let y = top + ROW * to_f64(place);
        let name = shortened(&row.name, name_width);
        picture.text(name_width, y + ROW / 2.0 + LETTER * 0.34, "c-end", &name);
        for (column, cell) in row.cells.iter().enumerate().take(map.columns.len()) {
            let x = left + cell_width * to_f64(column);
            draw_cell(&mut picture, map, (x, y, cell_width), *cell, &row.name, column);
        }
    }
    let height = top + ROW * to_f64(map.rows.len()) + 2.0;
    picture.finish(&map.title, height)
}

fn draw_cell(
    picture: &mut Picture,
    map: &HeatMap,
    (x, y, width): (f64, f64, f64),
    cell: Option<f64>,
    row: &str,
    column: usize,
) {
    let (width, height) = (width - GAP, ROW - GAP);
    let middle = (x + width / 2.0, y + height / 2.0 + LETTER * 0.36);
    let place = format!(r#"x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" rx="2""#);
    let Some(value) = cell.filter(|value| value.is_finite()) else {
        picture.add(format_args!(r#"<rect {place} class="c-none"/>"#));
        return picture.text(middle.0, middle.1, "c-mid c-faint", "–");
    };
    let share = ((value - map.scale.0) / (map.scale.1 - map.scale.0)).clamp(0.0, 1.0);
    // A scale of zero extent leaves the cells uncoloured.
    let share = if share.is_finite() { share } else { 0.0 };
    let words = format!("{value:.*}{}", map.decimals, map.unit);
    let (row, column) = (Escaped(row), Escaped(&map.columns[column]));
    picture.add(format_args!(
        r#"<rect {place} fill="{}"><title>{row}, {column}: {}</title></rect>"#,
        shade(share),
        Escaped(&words),
    ));
    if map.frame_above.is_some_and(|limit| value > limit) {
        let (x, y, width, height) = (x + 1.0, y + 1.0, width - 2.0, height - 2.0);
        picture.add(format_args!(
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" rx=\"2\" \
             class=\"c-over\"/>"
        ));
    }
    // The shade on which black and white text have equal contrast.
    let ink = if share > 0.69 { "c-mid c-light" } else { "c-mid c-dark" };
    picture.text(middle.0, middle.1, ink, &words);
}

/// Stops of a single hue from pale to deep. Lightness falls monotonically, so the order survives
/// greyscale and every kind of colour blindness.
const SHADES: [(f64, f64, f64); 4] =
    [(239.0, 243.0, 250.0), (166.0, 200.0, 230.0), (56.0, 130.0, 189.0), (8.0, 48.0, 107.0)];

fn shade(share: f64) -> String {
    let (from, to, part) = match 3.0 * share {
        at @ ..1.0 => (SHADES[0], SHADES[1], at),
        at @ ..2.0 => (SHADES[1], SHADES[2], at - 1.0),
        at => (SHADES[2], SHADES[3], at - 2.0),
    };
    let mix = |from: f64, to: f64| from + part * (to - from);
    let (red, green, blue) = (mix(from.0, to.0), mix(from.1, to.1), mix(from.2, to.2));
    format!("rgb({red:.0},{green:.0},{blue:.0})")
}

/// Wraps a text at spaces and hyphens. A word wider than a line is split.
fn broken(text: &str, width: f64) -> Vec<String> {
    let fits =
        |text: &str| HEADING_LETTER_WIDTH * to_f64(text.trim_end().chars().count()) <= width + 1e-6;
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_inclusive([' ', '-']) {
        match lines.last_mut() {
            Some(line) if fits(&format!("{line}{word}")) => line.push_str(word),
            _ => lines.push(word.to_owned()),
        }
        // Only a word alone on its line can be too wide.
        while let Some(line) = lines.pop_if(|line| !fits(line) && line.chars().nth(2).is_some()) {
            let fitting = |(place, _): &(usize, char)| fits(&format!("{}-", &line[..*place]));
            let places = line.char_indices().skip(1).take_while(fitting);
            let (cut, _) = places.last().or_else(|| line.char_indices().nth(1)).unwrap_or_default();
            lines.push(format!("{}-", &line[..cut]));
            lines.push(line[cut..].to_owned());
        }
    }
    lines.truncate(HEADING_LINES_MAX);
    lines.iter().map(|line| line.trim_end().to_owned()).collect()
}

#[test]
fn headings_are_broken_where_they_can_be() {
    let width = 9.0 * HEADING_LETTER_WIDTH;
    assert_eq!(broken("many clients", width), ["many", "clients"]);
    assert_eq!(broken("cpu work", width), ["cpu work"]);
    assert_eq!(broken("blocking work", width), ["blocking", "work"]);
    assert_eq!(broken("long-lived connections", width), ["long-", "lived", "connecti-", "ons"]);
    assert_eq!(broken("", width), Vec::<String>::new());
}
