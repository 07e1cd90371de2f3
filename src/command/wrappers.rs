//! Commands in front of a Node program that end up as that program, or start it.
//!
//! Owns their names, and the search for the program in their arguments and in shell scripts.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;

use super::absent::find;

/// Commands that replace themselves with a program, and how many of their first arguments are never
/// that program.
const REPLACED: [(&str, usize); 12] = [
    ("nice", 0),
    ("ionice", 0),
    ("chrt", 0),
    ("taskset", 0),
    ("numactl", 0),
    ("nohup", 0),
    ("stdbuf", 0),
    ("prlimit", 0),
    ("setpriv", 0),
    ("chpst", 0),
    // The name of the user may be that of the program, as in Node's containers.
    ("gosu", 1),
    ("su-exec", 1),
];
/// Commands that start a program as another process, and do the same for clusterlb.
const STARTING: [&str; 10] = [
    "timeout",
    "tini",
    "dumb-init",
    "catatonit",
    "setsid",
    "doppler",
    "op",
    "infisical",
    "chamber",
    "aws-vault",
];
const SHELLS: [&str; 6] = ["sh", "bash", "dash", "ash", "zsh", "ksh"];
/// Bytes of a shell's script to read.
const SCRIPT_BYTES_MAX: u64 = 64 * 1024;

/// What a command does with the program in its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wrapper {
    /// It becomes the program in this argument.
    Replaced { place: usize },
    /// It starts the program in this argument.
    Starting { place: usize },
}

/// What the command of this name does.
pub(super) fn wrapper(
    name: &OsStr,
    words: &[OsString],
    directory: Option<&Path>,
) -> Option<Wrapper> {
    let name = name.to_str()?;
    let replaced = REPLACED.iter().find(|(command, _)| *command == name);
    if replaced.is_none() && !STARTING.contains(&name) {
        return None;
    }
    let skipped = replaced.map_or(0, |(_, skipped)| *skipped);
    let is_program = |word: &OsString| {
        !word.as_bytes().starts_with(b"-") && find(Path::new(word), directory).is_some()
    };
    let place = (skipped..words.len()).find(|place| is_program(&words[*place]))?;
    Some(match replaced {
        Some(_) => Wrapper::Replaced { place },
        None => Wrapper::Starting { place },
    })
}

/// The line that a shell with these words becomes at its end (`exec`).
pub(super) fn executed(
    shell: &OsStr,
    words: &[OsString],
    directory: Option<&Path>,
) -> Option<Vec<OsString>> {
    if !SHELLS.contains(&shell.to_str()?) {
        return None;
    }
    let place = words.iter().position(|word| !word.as_bytes().starts_with(b"-"))?;
    let is_text = |word: &OsString| {
        let bytes = word.as_bytes();
        bytes.starts_with(b"-") && !bytes.starts_with(b"--") && bytes.ends_with(b"c")
    };
    let text = if words[..place].iter().any(is_text) {
        words[place].as_bytes().to_vec()
    } else {
        let mut text = Vec::new();
        let file = directory.unwrap_or_else(|| Path::new("")).join(&words[place]);
        File::open(file).ok()?.take(SCRIPT_BYTES_MAX).read_to_end(&mut text).ok()?;
        text
    };
    last_exec(&text)
}

/// The words of the last `exec` in a script. Quotes are removed, and nothing is expanded: only the
/// program's name matters.
fn last_exec(text: &[u8]) -> Option<Vec<OsString>> {
    let commands = text.split(|byte| matches!(byte, b'\n' | b';' | b'&' | b'|'));
    let word_of = |word: &[u8]| {
        let bytes = word.iter().copied().filter(|byte| !matches!(byte, b'"' | b'\''));
        OsString::from_vec(bytes.collect())
    };
    let mut executed = commands.filter_map(|command| {
        let mut words = command.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        (words.next()? == b"exec").then(|| words.map(word_of).collect::<Vec<_>>())
    });
    executed.rfind(|words| !words.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn the_program_is_found_behind_the_words_of_a_command() {
        use Wrapper::{Replaced, Starting};
        for (line, found) in [
            ("nice -n 10 sh x", Some(Replaced { place: 2 })),
            ("taskset -c 0,1 /bin/sh", Some(Replaced { place: 2 })),
            ("gosu sh sh x", Some(Replaced { place: 1 })),
            ("timeout -k 5 10 sh", Some(Starting { place: 3 })),
            ("tini -- sh", Some(Starting { place: 1 })),
            ("nice -n 10", None),
            ("sh nice", None),
        ] {
            let line = words(line);
            assert_eq!(wrapper(&line[0], &line[1..], None), found, "{line:?}");
        }
    }

    #[test]
    fn a_shell_becomes_what_its_script_executes_last() {
        let folder = tempfile::tempdir().expect("a folder");
        let script =
            "#!/bin/sh\nset -e\nexec 3>&1\n[ -f x ] && exec false\nexec \"node\" x.js $@\n";
        std::fs::write(folder.path().join("start.sh"), script).expect("the folder is writable");
        let of = |shell: &str, line: &[&str]| {
            let line: Vec<OsString> = line.iter().map(OsString::from).collect();
            executed(OsStr::new(shell), &line, Some(folder.path()))
        };
        let expected = |line: &str| Some(words(line));
        assert_eq!(of("bash", &["-e", "start.sh", "word"]), expected("node x.js $@"));
        assert_eq!(of("sh", &["-ec", "cd x; exec node y.js"]), expected("node y.js"));
        for (shell, line) in
            [("sh", ["-c", "node y.js"]), ("sh", ["missing.sh", ""]), ("node", ["start.sh", ""])]
        {
            assert_eq!(of(shell, &line), None, "{line:?}");
        }
    }
}
