//! Which program is to be run, and what it speaks.
//!
//! Owns the guess: by the name of the program, behind links, `env` and the first line of a script.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::settings::{Dialect, Program};

/// Interpreters of interpreters that are looked behind.
const DEPTH_MAX: usize = 4;
/// What of a script is read to find its interpreter, as much as the kernel does (`execve(2)`).
const FIRST_LINE_BYTES_MAX: u64 = 256;

/// What workers speak, as the command line has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum DialectChoice {
    /// node, if PROGRAM is Node or a script of it, otherwise native.
    #[default]
    Auto,
    /// The channel of node:cluster: any Node.js server, unmodified.
    Node,
    /// This project's own.
    Native,
}

/// Whether Node workers load something before their program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum PreloadChoice {
    /// Unless their options forbid it.
    #[default]
    Auto,
    /// Nothing is loaded.
    Off,
}

/// What is known by a program's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Node,
    /// It says it is compatible with Node, and its workers do not speak as Node's do.
    Unlike(&'static str),
    /// It starts Node as a process of its own, which knows nothing of us.
    Starter(&'static str),
}

/// The program that the words name, if there are any.
///
/// # Errors
/// [`Error::Usage`]: there is no such program, or it cannot be a worker.
pub(super) fn resolve(words: &[OsString], choice: DialectChoice) -> Result<Option<Program>> {
    let Some((path, arguments)) = words.split_first() else { return Ok(None) };
    let path = PathBuf::from(path);
    if find(&path).is_none() {
        return Err(Error::usage(
            format!("there is no program {}", path.display()),
            "write its path, or a name that is found in PATH, behind the --",
        ));
    }
    let dialect = match choice {
        DialectChoice::Node => Dialect::Node,
        DialectChoice::Native => Dialect::Native,
        DialectChoice::Auto => match look(&path, arguments, DEPTH_MAX) {
            Some(Known::Node) => Dialect::Node,
            Some(Known::Unlike(name)) => {
                return Err(Error::usage(
                    format!("{name} does not speak the channel of Node's workers"),
                    format!(
                        "run the program with node; or, if {name} runs something built for \
                         clusterlb, say --dialect native"
                    ),
                ));
            }
            Some(Known::Starter(name)) => {
                return Err(Error::usage(
                    format!("{name} starts the program as a process of its own"),
                    "name the program itself, as in `-- node server.js`",
                ));
            }
            None => Dialect::Native,
        },
    };
    Ok(Some(Program { path, arguments: arguments.to_vec(), dialect }))
}

/// The file that a name means (`execvp(3)`).
fn find(path: &Path) -> Option<PathBuf> {
    if path.as_os_str().as_bytes().contains(&b'/') {
        return path.is_file().then(|| path.to_owned());
    }
    let folders = std::env::var_os("PATH")?;
    std::env::split_paths(&folders).map(|folder| folder.join(path)).find(|file| file.is_file())
}

fn look(path: &Path, arguments: &[OsString], depth: usize) -> Option<Known> {
    let named = path.file_name()?;
    if let Some(known) = known(named) {
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
        return look(Path::new(&arguments[place]), &arguments[place + 1..], depth - 1);
    }
    let file = find(path)?;
    let target = fs::canonicalize(&file).ok()?;
    known(target.file_name()?).or_else(|| {
        let words = interpreter(&target)?;
        let (program, arguments) = words.split_first()?;
        look(Path::new(program), arguments, depth - 1)
    })
}

fn known(name: &OsStr) -> Option<Known> {
    Some(match name.to_str()? {
        "node" | "nodejs" => Known::Node,
        "bun" => Known::Unlike("bun"),
        "deno" => Known::Unlike("deno"),
        "npm" => Known::Starter("npm"),
        "npx" => Known::Starter("npx"),
        "yarn" => Known::Starter("yarn"),
        "pnpm" => Known::Starter("pnpm"),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn dialect(words: &[&str]) -> Result<Dialect> {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        let program = resolve(&words, DialectChoice::Auto)?;
        Ok(program.expect("there are words").dialect)
    }

    #[test]
    fn node_is_known_by_its_name_behind_links_env_and_scripts() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name).display().to_string();
        let write = |name: &str, text: &str| {
            fs::write(path(name), text).expect("the folder is writable");
        };
        for name in ["node", "bun", "npm", "other"] {
            write(name, "");
        }
        std::os::unix::fs::symlink(path("node"), path("link")).expect("a link");
        write("script", &format!("#!/usr/bin/env -S {}\nserve()", path("node")));
        assert_eq!(dialect(&[&path("node"), "x.js"]).ok(), Some(Dialect::Node));
        assert_eq!(dialect(&[&path("link"), "x.js"]).ok(), Some(Dialect::Node));
        assert_eq!(dialect(&[&path("script")]).ok(), Some(Dialect::Node));
        let env = ["/usr/bin/env", "-i", "A=b", &path("link"), "x.js"];
        assert_eq!(dialect(&env).ok(), Some(Dialect::Node));
        assert_eq!(dialect(&[&path("other"), "node"]).ok(), Some(Dialect::Native));
        for refused in ["bun", "npm", "missing"] {
            let error = dialect(&[&path(refused)]).expect_err(refused);
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(refused), "{error}");
        }
    }
}
