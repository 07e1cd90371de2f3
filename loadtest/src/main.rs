//! The `clusterlb-load` command: a thin shell around the library.

use std::process::ExitCode;

use clap::Parser;

/// Loads an HTTP or byte-echo server over TCP, TLS or a unix socket and measures what it answers.
#[derive(Parser)]
#[command(name = "clusterlb-load", version)]
struct Command {
    #[command(flatten)]
    load: loadtest::cli::LoadArgs,
}

fn main() -> ExitCode {
    loadtest::run(&Command::parse().load)
}
