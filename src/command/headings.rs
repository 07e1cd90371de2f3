//! The groups of options in the help, in its order.

/// The program of the workers.
pub(super) const PROGRAM: &str = "Program";
/// How many workers, and when they are replaced.
pub(super) const WORKERS: &str = "Workers";
/// The workers' environment.
pub(super) const ENVIRONMENT: &str = "Worker environment";
/// Listeners and scheduling.
pub(super) const BALANCING: &str = "Listening and balancing";
/// Workers that do not respond.
pub(super) const STUCK: &str = "Stuck workers";
/// How a run ends.
pub(super) const ENDING: &str = "Ending";
/// Configuration and control.
pub(super) const OPERATION: &str = "Operation";
/// The built-in worker.
pub(super) const BUILT_IN: &str = "Built-in worker";
