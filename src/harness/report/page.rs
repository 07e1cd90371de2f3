//! Pages for a browser.

use super::super::imbalance::Report;

/// The matrix.
#[must_use]
pub fn imbalance(report: &Report) -> String {
    format!("{}", report.workers)
}
