//! The `clusterlb` command. Everything is in the library; this ends the process.

use std::process::ExitCode;

fn main() -> ExitCode {
    clusterlb::cli::main()
}
