//! Plain-text tables with columns as wide as their contents. Pure.

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

    /// The rows, each with its line feed.
    #[must_use]
    pub fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                match column {
                    0 => line += &format!("{cell:<width$}"),
                    _ => line += &format!("  {cell:>width$}"),
                }
            }
            text += line.trim_end();
            text.push('\n');
        }
        text
    }
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
