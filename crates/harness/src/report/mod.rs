//! Reports of measurements: for people at a terminal, for programs, for tables, for a browser.
//!
//! Every function takes the data that `--json` prints and gives text. Refuses to measure, to
//! write files, and to know anything that the data does not hold.

pub mod bench_page;
pub mod bench_text;
pub mod csv;
pub mod html;
pub mod matrix_page;

pub mod table;
pub mod text;
