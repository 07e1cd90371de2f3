//! Plain-text tables with columns as wide as their contents, folded where they are wider than a
//! terminal. Pure.

use std::ops::Range;

use comfy_table::{CellAlignment, ColumnConstraint, Table as Text, presets};

/// Widest line of a table.
pub const WIDTH_MAX: usize = 100;
/// Spaces between two columns.
const GAP: usize = 2;

/// A table under construction. The first column is left-aligned, the others right-aligned.
#[derive(Clone, Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    #[must_use]
    pub fn new<'a>(headings: impl IntoIterator<Item = &'a str>) -> Self {
        Self { rows: vec![headings.into_iter().map(str::to_owned).collect()] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The rows, each with its line feed. Columns beyond [`WIDTH_MAX`] follow below, behind the
    /// first column once more.
    #[must_use]
    pub fn render(&self) -> String {
        let folds = self.folds().into_iter().map(|columns| self.fold(columns));
        folds.collect::<Vec<_>>().join("\n")
    }

    /// Which columns, other than the first, stand beside each other.
    fn folds(&self) -> Vec<Range<usize>> {
        let mut widths = column_widths(&self.rows);
        widths.iter_mut().skip(1).for_each(|width| *width += GAP);
        folds(&widths, 1, WIDTH_MAX)
    }

    fn fold(&self, columns: Range<usize>) -> String {
        let mut text = Text::new();
        text.load_preset(presets::NOTHING);
        let rows = self.rows.iter().map(|row| {
            let cells = row.get(columns.clone()).or_else(|| row.get(columns.start..));
            let cells = cells.unwrap_or_default();
            row.iter().take(1).chain(cells).cloned().collect::<Vec<String>>()
        });
        let rows: Vec<Vec<String>> = rows.collect();
        text.add_rows(rows);
        for (place, column) in text.column_iter_mut().enumerate() {
            let (before, alignment) = match place {
                0 => (0, CellAlignment::Left),
                _ => (u16::try_from(GAP).unwrap_or(2), CellAlignment::Right),
            };
            column.set_padding((before, 0)).set_cell_alignment(alignment);
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
        let lines = text.lines().map(|line| format!("{}\n", line.trim_end()));
        lines.collect()
    }
}

/// Characters of the widest cell of each column.
#[must_use]
pub fn column_widths(rows: &[Vec<String>]) -> Vec<usize> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    (0..columns).map(width).collect()
}

/// Which columns behind the first `keys`, which each fold repeats, stand beside each other within a
/// width: as few folds as can be, about as wide as each other.
#[must_use]
pub fn folds(widths: &[usize], keys: usize, width_max: usize) -> Vec<Range<usize>> {
    let keys = keys.min(widths.len());
    let key_width: usize = widths[..keys].iter().sum();
    let within = |width_max: usize| {
        let (mut folds, mut from, mut used) = (Vec::new(), keys, key_width);
        for (column, width) in widths.iter().enumerate().skip(keys) {
            if used + width > width_max && column > from {
                folds.push(from..column);
                (from, used) = (column, key_width);
            }
            used += width;
        }
        folds.push(from..widths.len());
        folds
    };
    let fewest = within(width_max).len();
    let even = (key_width..width_max).map(within).find(|folds| folds.len() <= fewest);
    even.unwrap_or_else(|| within(width_max))
}

/// A paragraph wrapped to `columns` characters, each line indented by `indent` spaces.
#[must_use]
pub fn wrapped(paragraph: &str, columns: usize, indent: usize) -> String {
    let mut text = String::new();
    let mut used = 0;
    for word in paragraph.split_whitespace() {
        let length = word.chars().count();
        if used > 0 && used + 1 + length > columns {
            text.push('\n');
            used = 0;
        }
        if used == 0 {
            text += &" ".repeat(indent);
            used = indent;
        } else {
            text.push(' ');
            used += 1;
        }
        text += word;
        used += length;
    }
    text.push('\n');
    text
}

/// Formats microseconds with three significant digits.
#[must_use]
pub fn time(us: Option<f64>) -> String {
    let Some(us) = us.filter(|us| us.is_finite()) else {
        return "–".to_owned();
    };
    let (value, unit) = match us.abs() {
        ..999.5 => (us, "µs"),
        ..999_500.0 => (us / 1e3, "ms"),
        _ => (us / 1e6, "s"),
    };
    format!("{} {unit}", digits(value))
}

/// Formats a number with three significant digits.
#[must_use]
pub fn digits(value: f64) -> String {
    let places = match value.abs() {
        ..9.995 => 2,
        ..99.95 => 1,
        _ => 0,
    };
    format!("{value:.places$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(["who", "share"]);
        table.row(["rr".to_owned(), "25.0".to_owned()]);
        table.row(["ümläut".to_owned(), "100.0".to_owned()]);
        assert_eq!(table.render(), "who     share\nrr       25.0\nümläut  100.0\n");
    }

    #[test]
    fn a_wide_table_goes_on_below_behind_its_first_column() {
        let headings: Vec<String> = (0..14).map(|column| format!("heading {column}")).collect();
        let mut table = Table::new(headings.iter().map(String::as_str));
        table.row((0..14).map(|column| format!("cell {column}")));
        table.row(["short".to_owned(), "row".to_owned()]);
        let text = table.render();
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH_MAX), "{text}");
        for column in 1..14 {
            assert!(text.contains(&format!("cell {column}")), "{text}");
        }
        assert_eq!((text.matches("heading 0").count(), text.matches("cell 0").count()), (2, 2));
        // Two folds of seven and six columns, and not of eight and five.
        assert_eq!(folds(&[10; 14], 1, 100), [1..8, 8..14]);
        let one = |columns: Range<usize>| std::iter::once(columns).collect::<Vec<_>>();
        assert_eq!(folds(&[10; 3], 1, 100), one(1..3));
        assert_eq!(folds(&[10, 200, 10], 1, 100), [1..2, 2..3]);
        assert_eq!(folds(&[], 1, 100), one(0..0));
    }

    #[test]
    fn paragraphs_are_broken_at_words() {
        assert_eq!(wrapped("aa bb  cc\ndd", 5, 0), "aa bb\ncc dd\n");
        assert_eq!(wrapped("aa bb cc", 6, 2), "  aa\n  bb\n  cc\n");
        assert_eq!(wrapped("endless", 3, 0), "endless\n");
    }

    #[test]
    fn numbers_are_as_long_as_they_deserve() {
        let shown = [0.5, 12.34, 999.6, 1_234.0, 2.5e6].map(|us| time(Some(us)));
        assert_eq!(shown, ["0.50 µs", "12.3 µs", "1.00 ms", "1.23 ms", "2.50 s"]);
        assert_eq!(time(None), "–");
        assert_eq!(time(Some(f64::NAN)), "–");
    }
}
