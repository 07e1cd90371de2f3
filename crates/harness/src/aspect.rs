//! The kinds of measures of a trial.

use std::fmt;

use serde::Serialize;

/// A kind of measure; an objection invalidates whole kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Aspect {
    /// Rate and latencies.
    Speed,
    /// CPU time, memory, balance and failures: the cost of serving and how it is shared.
    Cost,
}

impl Aspect {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Speed, Self::Cost];
}

impl fmt::Display for Aspect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Speed => "rate and latencies",
            Self::Cost => "CPU, memory and balance",
        })
    }
}
