//! What results and notes look like. Data goes to stdout and files, the rest to stderr.

pub(crate) mod csv;
pub(crate) mod hdr_log;
pub(crate) mod live;
pub(crate) mod text;

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::Path;

use crate::error::Error;

/// A file of results, opened before the run.
#[derive(Debug)]
pub(crate) struct OutputFile {
    path: String,
    writer: BufWriter<File>,
}

/// Creates a file for results.
pub(crate) fn create(path: &Path) -> Result<OutputFile, Error> {
    let name = path.display().to_string();
    match File::create(path) {
        Ok(file) => Ok(OutputFile { path: name, writer: BufWriter::new(file) }),
        Err(source) => Err(Error::Output { path: name, source }),
    }
}

impl OutputFile {
    /// Writes with `write` and makes sure that it is in the file.
    pub(crate) fn write_with(
        &mut self,
        write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
    ) -> Result<(), Error> {
        let written = write(&mut self.writer).and_then(|()| self.writer.flush());
        written.map_err(|source| Error::Output { path: self.path.clone(), source })
    }
}

/// Prints an error: what failed and why, then what to do.
pub(crate) fn complain(what: &str, hint: &str) {
    print("error:", "1;31", &format!("{what}; {hint}"));
}

/// Prints a note.
pub(crate) fn note(what: &str) {
    print("note:", "1;33", what);
}

fn print(word: &str, color: &str, rest: &str) {
    let mut stderr = io::stderr().lock();
    // If stderr is gone, there is no place left for a complaint.
    let _ = if colored(&stderr) {
        writeln!(stderr, "\x1b[{color}m{word}\x1b[0m {rest}")
    } else {
        writeln!(stderr, "{word} {rest}")
    };
}

/// Colors are for terminals whose user has not set `NO_COLOR`.
fn colored(stream: &impl IsTerminal) -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    stream.is_terminal() && !refused
}
