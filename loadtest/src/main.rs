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
    match Command::try_parse() {
        Ok(command) => loadtest::run(&command.load),
        // Help and the version are such "errors", too; they count only if they were printed.
        Err(message) => match message.print() {
            Ok(()) => u8::try_from(message.exit_code()).unwrap_or(2).into(),
            Err(error) => {
                eprintln!("error: write to the standard output: {error}; free space on its device");
                ExitCode::FAILURE
            }
        },
    }
}
