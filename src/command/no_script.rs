//! Command lines of Node that run no file, so that its workers would take part in no cluster.
//!
//! Owns the options by which Node runs no program, and the remedies. Pure.

use std::ffi::{OsStr, OsString};

use clusterlb::{Error, Result};

use super::inspect::options_before_script;

/// Options whose value is the program.
const CODE: [&str; 5] = ["-e", "--eval", "-p", "--print", "-pe"];
/// Options by which Node does something else, whatever follows them.
const OTHER_TASKS: [&str; 10] = [
    "-c",
    "--check",
    "-h",
    "--help",
    "-i",
    "--interactive",
    "-v",
    "--version",
    "--completion-bash",
    "--v8-options",
];

/// Ensures that these words of Node, which is the whole command line if `alone`, name a file.
///
/// # Errors
/// [`Error::Usage`]: they name none, or an option keeps Node from running it.
pub(super) fn ensure_script(words: &[OsString], alone: bool) -> Result<()> {
    let (options, rest) = words.split_at(options_before_script(words));
    let name = |word: &OsString| {
        let word = word.to_string_lossy();
        word.split('=').next().unwrap_or_default().to_owned()
    };
    let one_of = |names: &[&str]| options.iter().map(name).find(|one| names.contains(&&**one));
    if let Some(option) = one_of(&OTHER_TASKS) {
        return Err(Error::usage(
            format!("node {option} runs no server"),
            "leave the option out, as in `clusterlb -- node server.js`",
        ));
    }
    let is_script = |word: &OsString| word != "--" && word != "-";
    if rest.iter().any(is_script) {
        return Ok(());
    }
    match one_of(&CODE) {
        // Node looks for a file's name (`process.argv[1]`) before it joins a cluster.
        Some(option) => Err(Error::usage(
            format!("node {option} without a file takes part in no cluster"),
            "write the code into a file, and say `clusterlb -- node FILE`",
        )),
        None if alone || rest.first().is_some_and(|word| word == OsStr::new("-")) => {
            Err(Error::usage(
                "node without a file reads its program from standard input, and workers have none",
                "name the file, as in `clusterlb -- node server.js`",
            ))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(line: &str, alone: bool) -> Option<String> {
        let words: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        ensure_script(&words, alone).err().map(|error| error.to_string())
    }

    #[test]
    fn a_file_is_needed_that_node_runs() {
        for line in [
            "server.js",
            "-- server.js",
            "-r ./x.js server.js -e code",
            "--inspect server.js --version",
            "--experimental-eval=1 server.js",
            "-e code word",
        ] {
            assert_eq!(refusal(line, false), None, "{line}");
        }
        for (line, option) in [
            ("-e code", "-e"),
            ("--eval=code", "--eval"),
            ("--no-warnings -p code", "-p"),
            ("-pe code --", "-pe"),
            ("--check server.js", "--check"),
            ("-v", "-v"),
            ("-i server.js", "-i"),
            ("-", "standard input"),
        ] {
            let refusal = refusal(line, false).unwrap_or_default();
            assert!(refusal.contains(option), "{line}: {refusal}");
        }
        assert_eq!(refusal("", false), None);
        assert!(refusal("", true).is_some());
    }
}
