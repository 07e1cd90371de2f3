//! Generated from the arguments: completions for shells, and man pages.

use std::fs;
use std::path::PathBuf;

use clap::{Args, Command};
use clap_complete::Shell;
use clusterlb::{Error, Result};
use clusterlb_sys::error::errno_of;

use super::output;

/// Selects the shell.
#[derive(Clone, Debug, Args)]
pub(super) struct CompletionsArguments {
    /// The shell, as in `clusterlb completions bash > /etc/bash_completion.d/clusterlb`
    #[arg(value_enum)]
    shell: Shell,
}

/// Selects the folder.
#[derive(Clone, Debug, Args)]
pub(super) struct ManArguments {
    /// A folder, which is created if missing
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
}

impl CompletionsArguments {
    /// Prints the completions of `command`.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub(super) fn run(&self, mut command: Command) -> Result<u8> {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut command, "clusterlb", &mut text);
        output::print(&String::from_utf8_lossy(&text))?;
        Ok(0)
    }
}

impl ManArguments {
    /// Writes a page for the program, and one for each command.
    ///
    /// # Errors
    /// A page cannot be written.
    pub(super) fn run(&self, command: Command) -> Result<u8> {
        let written = fs::create_dir_all(&self.folder)
            .and_then(|()| clap_mangen::generate_to(command, &self.folder));
        written.map_err(|error| {
            let why = errno_of(&error).desc();
            Error::usage(
                format!("cannot write man pages to {}: {why}", self.folder.display()),
                "name a folder that this user may write to",
            )
        })?;
        Ok(0)
    }
}
