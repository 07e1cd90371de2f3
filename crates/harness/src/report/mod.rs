//! Renders reports of measurements as terminal text, JSON, CSV and HTML.
//!
//! Each function turns the data that `--json` prints into text. Does not measure or write files,
//! and uses no information beyond that data.

pub mod bench_page;
pub mod bench_text;
pub mod csv;

pub mod matrix_page;
pub mod page_parts;

pub mod table;
pub mod text;
