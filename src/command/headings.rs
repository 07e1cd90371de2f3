//! The groups of options in the help, in the order in which it shows them.

/// What is run as workers.
pub(super) const PROGRAM: &str = "Program";
/// How many workers, and when they are replaced.
pub(super) const WORKERS: &str = "Workers";
/// What workers find around them.
pub(super) const SURROUNDINGS: &str = "Surroundings of workers";
/// Where connections come from, and who gets which.
pub(super) const BALANCING: &str = "Listening and balancing";
/// What becomes of workers that do not answer.
pub(super) const STUCK: &str = "Stuck workers";
/// How a run ends.
pub(super) const ENDING: &str = "Ending";
/// How a run is configured, looked at and steered.
pub(super) const OPERATION: &str = "Operation";
/// The built-in worker.
pub(super) const BUILT_IN: &str = "Built-in worker";
