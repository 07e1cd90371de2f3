//! The `clusterlb` command.
fn main() {}
