//! Which build this is.

/// The commit it was built from, or "unknown".
pub(super) const COMMIT: &str = env!("CLUSTERLB_BUILD_COMMIT");

/// What `--version` prints.
pub(super) const LONG_VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    "\ncommit: ",
    env!("CLUSTERLB_BUILD_COMMIT"),
    "\nfeatures: ",
    env!("CLUSTERLB_BUILD_FEATURES")
);
