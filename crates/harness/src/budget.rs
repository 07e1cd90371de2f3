//! How long a matrix takes at most, known before it begins. Pure.
//!
//! The load of a cell ends after its connections or after its time, whichever comes first, so the
//! whole is bounded by construction: by the cells, their time, and what lies around a load. Owns
//! the allowance for the latter. Refuses to end anything.

use std::time::Duration;

use super::matrix::Case;
use super::target::Target;

/// Starting and ending a server of this program and a generator. On two busy CPUs it took a
/// quarter of that with eight workers.
const AROUND_OWN: Duration = Duration::from_millis(200);
/// The same for Node, whose workers load a runtime each; it took three quarters of that.
const AROUND_NODE: Duration = Duration::from_millis(1_300);

/// The most that a matrix takes, if each of its loads is limited.
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

    /// Every row there can be.
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
        assert_eq!(rows().len(), 9);
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
