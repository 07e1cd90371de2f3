//! Computes an upper bound for the duration of a matrix before it starts. Pure.
//!
//! The load of a cell ends after its connections or its time, whichever comes first. The bound is
//! therefore the sum over the cells of that time plus the time to start and stop the processes.
//! Owns the allowance for starting and stopping. Does not enforce the bound.

use std::time::Duration;

use super::matrix::Case;
use super::target::Target;

/// Time to start and stop one of this program's servers and a generator. Measured: a quarter of
/// this, on two busy CPUs with eight workers.
const AROUND_OWN: Duration = Duration::from_millis(200);
/// The same for Node, whose workers each load a runtime. Measured: three quarters of this.
const AROUND_NODE: Duration = Duration::from_millis(1_300);

/// Upper bound for the duration of a matrix whose loads all have a time limit.
#[must_use]
pub fn at_most(targets: &[Target], cases: &[Case], repeats: usize) -> Option<Duration> {
    let limits = cases.iter().map(|case| case.limit);
    let row: Duration = limits.sum::<Option<Duration>>()?;
    let cells = u32::try_from(cases.len()).ok()?;
    let all: Duration = targets.iter().map(|target| row + around(*target) * cells).sum();
    all.checked_mul(u32::try_from(repeats).ok()?)
}

fn around(target: Target) -> Duration {
    if target.runs_node() { AROUND_NODE } else { AROUND_OWN }
}

#[cfg(test)]
mod tests {
    use super::super::matrix::{Extent, cases};
    use super::super::target::mechanisms;
    use super::*;

    /// All possible rows.
    fn rows() -> Vec<Target> {
        let node = ["node:none", "node:rr"].map(|name| name.parse().expect("a target"));
        mechanisms().into_iter().chain(node).collect()
    }

    fn promised(extent: Extent) -> Option<Duration> {
        let cases = cases(extent, extent.connections(), extent.limit());
        at_most(&rows(), &cases, extent.repeats())
    }

    #[test]
    fn a_matrix_takes_as_long_as_is_promised() {
        assert_eq!(rows().len(), 10);
        let quick = promised(Extent::Quick).expect("a bound");
        assert!(quick <= Duration::from_secs(30), "{quick:?}");
        let default = promised(Extent::Default).expect("a bound");
        assert!(default <= Duration::from_secs(180), "{default:?}");
        assert_eq!(promised(Extent::Full), None);
    }

    #[test]
    fn the_bound_is_that_of_all_cells() {
        let cases = cases(Extent::Quick, 10, Some(Duration::from_secs(1)));
        let whole = at_most(&[Target::RR, Target::RR], &cases, 3);
        assert_eq!(whole, Some(6 * 4 * (AROUND_OWN + Duration::from_secs(1))));
    }
}
