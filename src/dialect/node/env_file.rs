//! Reads options from the files of Node's `--env-file`.
//!
//! Node uses the `NODE_OPTIONS` of such a file only if the environment has none. With a preload the
//! environment always has some, so those of the file are appended. Pure except for reading the
//! files.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

/// Maximum number of bytes read of a file; a file of variables is shorter.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
const OPTIONS: [&str; 2] = ["--env-file", "--env-file-if-exists"];

/// The value of `name` in the files named by Node's options (`exec_argv`), relative to `directory`.
/// The last file that has it counts. Node reports missing files.
pub(super) fn variable(
    options: &[OsString],
    directory: Option<&Path>,
    name: &str,
) -> Option<OsString> {
    let mut found = None;
    for file in files(options) {
        let path = directory.unwrap_or_else(|| Path::new("")).join(file);
        let mut text = String::new();
        let read =
            File::open(path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text));
        if read.is_ok() {
            found = value_in(&text, name).or(found);
        }
    }
    found.map(OsString::from)
}

fn files(options: &[OsString]) -> impl Iterator<Item = &str> {
    let words = options.iter().map(|word| word.to_str().unwrap_or_default());
    let next = words.clone().skip(1).map(Some).chain([None]);
    words.zip(next).filter_map(|(word, next)| match word.split_once('=') {
        Some((name, file)) => OPTIONS.contains(&name).then_some(file),
        None => next.filter(|_| OPTIONS.contains(&word)),
    })
}

/// The last value of a name in a text, by Node's rules for such files.
pub(super) fn value_in(text: &str, name: &str) -> Option<String> {
    let mut found = None;
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let line_end = rest.find('\n').unwrap_or(rest.len());
        let line = &rest[..line_end];
        let key_end = line.find('=').filter(|_| !line.starts_with('#'));
        let Some(key_end) = key_end else {
            rest = rest[line_end..].trim_start();
            continue;
        };
        let key = line[..key_end].trim();
        let key = key.strip_prefix("export ").map_or(key, str::trim);
        let (value, length) = value_of(&rest[key_end + 1..]);
        if key == name {
            found = Some(value);
        }
        rest = rest[key_end + 1 + length..].trim_start();
    }
    found
}

/// The value at the start of a text, and its length.
fn value_of(text: &str) -> (String, usize) {
    let line_end = text.find('\n').unwrap_or(text.len());
    let blank = text.len() - text.trim_start_matches([' ', '\t']).len();
    let quote = text[blank..].chars().next().filter(|letter| matches!(letter, '"' | '\'' | '`'));
    let closed = quote.and_then(|quote| text[blank + 1..].find(quote));
    if let (Some(quote), Some(length)) = (quote, closed) {
        let value = &text[blank + 1..blank + 1 + length];
        // Escaped line ends are interpreted in double quotes only.
        let value = if quote == '"' { value.replace("\\n", "\n") } else { value.to_owned() };
        let behind = blank + length + 2;
        let line_end = text[behind..].find('\n').map_or(text.len(), |end| behind + end);
        return (value, line_end);
    }
    let line = &text[..line_end];
    let value = line.split('#').next().unwrap_or(line).trim();
    (value.to_owned(), line_end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_node_reads_them() {
        for (text, value) in [
            ("", None),
            ("# A=1", None),
            ("A=1", Some("1")),
            ("B=2\n\n  A = 1 2 # why\nC", Some("1 2")),
            ("export A=1", Some("1")),
            ("A=1\nA=2", Some("2")),
            ("A=", Some("")),
            ("A='b # c' d\nB=2", Some("b # c")),
            ("A=`b\nA=c`\n", Some("b\nA=c")),
            ("B=\"1\nA=0\"\nA=\"b\\nc\"", Some("b\nc")),
            ("A='open\nB=1", Some("'open")),
            ("no sense\nA=1", Some("1")),
        ] {
            assert_eq!(value_in(text, "A").as_deref(), value, "{text:?}");
        }
    }

    #[test]
    fn the_last_file_before_the_script_counts() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("a"), "NODE_OPTIONS=--a").expect("room");
        std::fs::write(folder.path().join("b"), "NODE_OPTIONS=--b\nX=1").expect("room");
        std::fs::write(folder.path().join("c"), "X=1").expect("room");
        for (line, value) in [
            ("--no-warnings", None),
            ("--env-file=a", Some("--a")),
            ("--env-file a --env-file-if-exists=b", Some("--b")),
            ("--env-file=a --env-file=c --env-file-if-exists=missing", Some("--a")),
            ("-r x --env-file=b --env-file", Some("--b")),
        ] {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            let found = variable(&words, Some(folder.path()), "NODE_OPTIONS");
            assert_eq!(found, value.map(OsString::from), "{line}");
        }
    }
}
