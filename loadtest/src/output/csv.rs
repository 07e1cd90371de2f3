//! One row a second, for spreadsheets. Column names carry units; an empty cell is "no value".

use std::io::{self, Write};

use crate::report::Report;

const COLUMNS: &str = "second,started,completed,errors,late_starts,dropped_starts,connected,\
    received_bytes,connect_p50_us,connect_p99_us,first_byte_p99_us,response_p50_us,\
    response_p90_us,response_p99_us,response_max_us";

/// Writes the series.
pub(crate) fn write(writer: &mut impl Write, report: &Report) -> io::Result<()> {
    writeln!(writer, "{COLUMNS}")?;
    for row in &report.series {
        let counts = [
            row.second,
            row.started,
            row.completed,
            row.errors,
            row.late_starts,
            row.dropped_starts,
            row.connected,
            row.received_bytes,
        ];
        let values = [
            row.connect_p50_us,
            row.connect_p99_us,
            row.first_byte_p99_us,
            row.response_p50_us,
            row.response_p90_us,
            row.response_p99_us,
            row.response_max_us,
        ];
        let cells: Vec<String> = counts
            .iter()
            .map(u64::to_string)
            .chain(values.iter().map(|value| value.map_or_else(String::new, |us| us.to_string())))
            .collect();
        writeln!(writer, "{}", cells.join(","))?;
    }
    Ok(())
}
