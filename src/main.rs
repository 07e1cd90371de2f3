//! The `clusterlb` command: a program on the public API of the library and the crates beside it.

#![forbid(unsafe_code)]

mod command;

use std::process::ExitCode;

fn main() -> ExitCode {
    command::main()
}
