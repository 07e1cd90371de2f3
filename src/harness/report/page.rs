//! Pages for a browser.

use super::super::{bench, imbalance};

/// The matrix.
#[must_use]
pub fn imbalance(report: &imbalance::Report) -> String {
    format!("{}", report.workers)
}

/// The comparison.
#[must_use]
pub fn bench(report: &bench::Report) -> String {
    format!("{}", report.repeats)
}
