//! Recognizes programs by name, also behind links, `env` and the like, `python -m`, the first line
//! of a script, and the last `exec` of a shell's.
//!
//! Owns the list of names and the search.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;

use super::absent::find;
use super::inspect::options_before_script;
use super::launcher::{Launcher, launcher, launches};
use super::wrappers::{Wrapper, executed, wrapper};

/// Levels of interpreters to follow.
const DEPTH_MAX: usize = 4;
/// Bytes of a script to read for its interpreter line, as the kernel does (`execve(2)`).
const FIRST_LINE_BYTES_MAX: u64 = 256;
/// Node with no words known.
const NODE: Known = Known::Node { words: Some(0) };

/// What a program's name says about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// Its options begin with this many last words; for a script none of them are known.
    Node { words: Option<usize> },
    /// Claims compatibility with Node, but its workers do not speak Node's channel.
    Unlike(&'static str),
    /// Starts Node as a separate process, which does not know clusterlb.
    Starter(&'static str),
    /// Starts its last arguments, this many, as a separate process; it can start clusterlb instead.
    Outer { words: usize },
    /// Also a launcher, with a better command line. Its last `words` are its own; it would start
    /// this Node.
    Launcher { launcher: Launcher, words: usize, node: OsString },
    /// Inherits listening sockets; how to configure that.
    Activated(&'static str, &'static str),
}

/// A launcher in a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Launched {
    pub(super) launcher: Launcher,
    /// Its position in the line.
    pub(super) place: usize,
    /// What to start in its place, if the line does not start Node already.
    pub(super) node: Option<OsString>,
}

/// What the program of a command line is.
pub(super) fn look_at(line: &[OsString], directory: Option<&Path>) -> Option<Known> {
    let (path, arguments) = line.split_first()?;
    look(Path::new(path), arguments, directory, DEPTH_MAX)
}

/// The launcher that a line starts: as its program, or as the script of its Node.
pub(super) fn launched(
    line: &[OsString],
    known: &Known,
    directory: Option<&Path>,
) -> Option<Launched> {
    match known {
        Known::Launcher { launcher, words, node } => Some(Launched {
            launcher: launcher.clone(),
            place: line.len() - words - 1,
            node: Some(node.clone()),
        }),
        Known::Node { words: Some(words) } => {
            let before = line.len() - words;
            let place = before + options_before_script(&line[before..]);
            let (options, rest) = (&line[before..place], &line[place..]);
            let by_script = || {
                let (script, words) = rest.split_first()?;
                let file = directory.unwrap_or_else(|| Path::new("")).join(script);
                launcher(&fs::canonicalize(file).ok()?, words)
            };
            let launcher = launches(options, rest).or_else(by_script)?;
            Some(Launched { launcher, place, node: None })
        }
        _ => None,
    }
}

/// What a program with these arguments is.
fn look(
    path: &Path,
    arguments: &[OsString],
    directory: Option<&Path>,
    depth: usize,
) -> Option<Known> {
    let named = path.file_name()?;
    if let Some(known) = known(named, arguments.len()) {
        return Some(known);
    }
    if depth == 0 {
        return None;
    }
    if named == OsStr::new("env") {
        let is_word = |word: &&OsString| {
            let bytes = word.as_bytes();
            !bytes.starts_with(b"-") && !bytes.contains(&b'=')
        };
        let place = arguments.iter().position(|word| is_word(&word))?;
        let rest = &arguments[place + 1..];
        return look(Path::new(&arguments[place]), rest, directory, depth - 1);
    }
    if let Some(wrapper) = wrapper(named, arguments, directory) {
        let (Wrapper::Replaced { place } | Wrapper::Starting { place }) = wrapper;
        let rest = &arguments[place + 1..];
        let inner = look(Path::new(&arguments[place]), rest, directory, depth - 1)?;
        return Some(match (wrapper, inner) {
            (
                Wrapper::Starting { .. },
                Known::Node { .. } | Known::Launcher { .. } | Known::Starter(_),
            ) => Known::Outer { words: rest.len() + 1 },
            (_, inner) => inner,
        });
    }
    if let Some(line) = executed(named, arguments, directory) {
        return match look(Path::new(&line[0]), &line[1..], directory, depth - 1)? {
            Known::Node { .. } => Some(Known::Node { words: None }),
            _ => None,
        };
    }
    if named.as_bytes().starts_with(b"python") {
        // A module is named like its program.
        let place = arguments.iter().position(|word| word == "-m")?;
        return known(arguments.get(place + 1)?, arguments.len() - place - 2);
    }
    let file = find(path, directory)?;
    let target = fs::canonicalize(&file).ok()?;
    if let Some(launcher) = launcher(&target, arguments) {
        let interpreter = interpreter(&target).and_then(|mut words| words.pop());
        let is_node = |word: &OsString| {
            Path::new(word).file_name().is_some_and(|name| known(name, 0) == Some(NODE))
        };
        let node = interpreter.filter(is_node).unwrap_or_else(|| "node".into());
        return Some(Known::Launcher { launcher, words: arguments.len(), node });
    }
    known(target.file_name()?, arguments.len()).or_else(|| {
        let words = interpreter(&target)?;
        let (program, interpreted) = words.split_first()?;
        let words: Vec<OsString> = interpreted.iter().cloned().chain([target.into()]).collect();
        match look(Path::new(program), &words, directory, depth - 1)? {
            Known::Node { .. } => Some(Known::Node { words: None }),
            other => Some(other),
        }
    })
}

fn known(name: &OsStr, words: usize) -> Option<Known> {
    Some(match name.to_str()? {
        "node" | "nodejs" => Known::Node { words: Some(words) },
        "bun" => Known::Unlike("bun"),
        "deno" => Known::Unlike("deno"),
        "npm" => Known::Starter("npm"),
        "npx" => Known::Starter("npx"),
        "yarn" => Known::Starter("yarn"),
        "pnpm" => Known::Starter("pnpm"),
        "gunicorn" => Known::Activated("gunicorn", "gunicorn MODULE:APP"),
        "uvicorn" => Known::Activated("uvicorn", "uvicorn --fd 3 MODULE:APP"),
        "hypercorn" => Known::Activated("hypercorn", "hypercorn --bind fd://3 MODULE:APP"),
        _ => return None,
    })
}

/// The words of a script's first line.
fn interpreter(script: &Path) -> Option<Vec<OsString>> {
    let mut line = Vec::new();
    File::open(script).ok()?.take(FIRST_LINE_BYTES_MAX).read_to_end(&mut line).ok()?;
    let line = line.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    Some(words.map(|word| OsString::from_vec(word.to_vec())).collect())
}
