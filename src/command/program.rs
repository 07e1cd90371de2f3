//! Which program is to be run, what it speaks, and what surrounds it.
//!
//! Owns the options for programs, and the guess: by the name of the program, behind links, `env`,
//! `python -m` and the first line of a script.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use clap::Args;

use super::arguments::time;
use super::inspect::{Inspection, inspection};
use crate::command::settings::Program;
use clusterlb::{Dialect, Readiness};
use clusterlb::{Error, Result};

/// Interpreters of interpreters that are looked behind.
const DEPTH_MAX: usize = 4;
/// What of a script is read to find its interpreter, as much as the kernel does (`execve(2)`).
const FIRST_LINE_BYTES_MAX: u64 = 256;
/// Longest name of a socket (`sd_listen_fds_with_names(3)`).
const SOCKET_NAME_BYTES_MAX: usize = 255;

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
    /// None: PROGRAM takes listening sockets over as from systemd (LISTEN_FDS), and accepts by
    /// itself. Implies --policy none.
    ListenFds,
}

/// How a program is run.
#[derive(Clone, Debug, Args)]
pub(super) struct ProgramArguments {
    /// What the workers of PROGRAM speak
    #[arg(long, value_enum, default_value_t, requires = "program")]
    dialect: DialectChoice,

    /// When a worker with --dialect listen-fds counts as serving: after a time, in which it has
    /// not ended, or notify, when it says READY=1 (sd_notify) [default: 1s]
    #[arg(long, value_name = "TIME|notify", value_parser = readiness, requires = "program")]
    ready_after: Option<Readiness>,

    /// What the sockets are called with --dialect listen-fds (LISTEN_FDNAMES), in the order of
    /// --listen [default: listener-1, listener-2, …]
    #[arg(long, value_name = "NAME[:NAME…]", value_delimiter = ':', requires = "program")]
    fdname: Vec<String>,

    /// A program to run as workers instead of the built-in one, and its arguments
    ///
    /// Node programs need no change: what they listen on is opened once, and connections are
    /// handed to them in turns. Others get listening sockets with --dialect listen-fds. SIGHUP
    /// replaces the workers one after the other.
    #[arg(
        last = true,
        value_name = "PROGRAM",
        conflicts_with_all = [
            "serve", "work", "work_seed", "runtime", "header_timeout", "idle_timeout"
        ]
    )]
    program: Vec<OsString>,
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
    /// Its options begin with the so many last of the words; none of them are known for a script.
    Node { words: Option<usize> },
    /// It says it is compatible with Node, and its workers do not speak as Node's do.
    Unlike(&'static str),
    /// It starts Node as a process of its own, which knows nothing of us.
    Starter(&'static str),
    /// It takes listening sockets over; how it is told to.
    Activated(&'static str, &'static str),
}

impl ProgramArguments {
    /// Whether a program takes its sockets from us.
    pub(super) fn takes_sockets(&self) -> bool {
        self.dialect == DialectChoice::ListenFds
    }

    /// The program, if there is one. It is looked for from `directory`, and sees `variable` as
    /// `NODE_OPTIONS`.
    ///
    /// # Errors
    /// [`Error::Usage`]: there is no such program, or it cannot be a worker.
    pub(super) fn resolve(
        &self,
        directory: Option<&Path>,
        variable: &str,
    ) -> Result<Option<Program>> {
        let Some((path, arguments)) = self.program.split_first() else { return Ok(None) };
        let path = PathBuf::from(path);
        if find(&path, directory).is_none() {
            return Err(Error::usage(
                format!("there is no program {}", path.display()),
                "write its path, or a name that is found in PATH, behind the --",
            ));
        }
        let known = look(&path, arguments, directory, DEPTH_MAX);
        let dialect = self.dialect(known)?;
        self.ensure_sockets_are_taken(dialect)?;
        let words = match (dialect, known) {
            (Dialect::Node, Some(Known::Node { words: Some(words) })) => words,
            _ => 0,
        };
        let before = arguments.len() - words;
        let asked = inspection(&arguments[before..], variable).filter(|_| words > 0);
        let count = asked.map_or(0, |Inspection { words, .. }| before + words);
        let (options, arguments) = arguments.split_at(count);
        Ok(Some(Program {
            path,
            options: options.to_vec(),
            arguments: arguments.to_vec(),
            dialect,
            readiness: self.ready_after.unwrap_or_default(),
            socket_names: self.fdname.clone(),
            inspect_port: asked.map(|asked| asked.port),
        }))
    }

    fn dialect(&self, known: Option<Known>) -> Result<Dialect> {
        match self.dialect {
            DialectChoice::Node => Ok(Dialect::Node),
            DialectChoice::Native => Ok(Dialect::Native),
            DialectChoice::ListenFds => Ok(Dialect::ListenFds),
            DialectChoice::Auto => match known {
                Some(Known::Node { .. }) => Ok(Dialect::Node),
                Some(Known::Unlike(name)) => Err(Error::usage(
                    format!("{name} does not speak the channel of Node's workers"),
                    format!(
                        "run the program with node; or, if {name} runs something built for \
                         clusterlb, say --dialect native"
                    ),
                )),
                Some(Known::Starter(name)) => Err(Error::usage(
                    format!("{name} starts the program as a process of its own"),
                    "name the program itself, as in `-- node server.js`",
                )),
                Some(Known::Activated(name, line)) => Err(Error::usage(
                    format!("{name} does not call home; it can take listening sockets over"),
                    format!(
                        "write `clusterlb --dialect listen-fds --listen 127.0.0.1:8000 -- {line}`"
                    ),
                )),
                None => Ok(Dialect::Native),
            },
        }
    }

    fn ensure_sockets_are_taken(&self, dialect: Dialect) -> Result<()> {
        let given = self.ready_after.map(|_| "--ready-after");
        let given = given.or_else(|| (!self.fdname.is_empty()).then_some("--fdname"));
        if let Some(option) = given.filter(|_| dialect != Dialect::ListenFds) {
            return Err(Error::usage(
                format!("{option} is for programs that take listening sockets over"),
                "say --dialect listen-fds, or leave it out",
            ));
        }
        let fits = |name: &String| {
            let printable = name.bytes().all(|byte| byte.is_ascii_graphic());
            printable && (1..=SOCKET_NAME_BYTES_MAX).contains(&name.len())
        };
        match self.fdname.iter().find(|name| !fits(name)) {
            None => Ok(()),
            Some(name) => Err(Error::usage(
                format!("--fdname: {name:?} cannot be the name of a socket"),
                "write letters, digits and dashes, with a colon between two names",
            )),
        }
    }
}

fn readiness(text: &str) -> std::result::Result<Readiness, String> {
    match text {
        "notify" => Ok(Readiness::Notified),
        text => time(text)
            .map(Readiness::After)
            .map_err(|error| format!("{error}; or notify, if it knows sd_notify")),
    }
}

/// The file that a name means for a process in `directory` (`execvp(3)`).
fn find(path: &Path, directory: Option<&Path>) -> Option<PathBuf> {
    let from = directory.unwrap_or_else(|| Path::new(""));
    if path.as_os_str().as_bytes().contains(&b'/') {
        let path = from.join(path);
        return path.is_file().then_some(path);
    }
    let folders = std::env::var_os("PATH")?;
    let mut files = std::env::split_paths(&folders).map(|folder| from.join(folder).join(path));
    files.find(|file| file.is_file())
}

/// What a program is known for, with the words that it is given.
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
    if named.as_bytes().starts_with(b"python") {
        // A module that is run has the name of its program.
        let place = arguments.iter().position(|word| word == "-m")?;
        return known(arguments.get(place + 1)?, arguments.len() - place - 2);
    }
    let file = find(path, directory)?;
    let target = fs::canonicalize(&file).ok()?;
    known(target.file_name()?, arguments.len()).or_else(|| {
        let words = interpreter(&target)?;
        let (program, interpreted) = words.split_first()?;
        match look(Path::new(program), interpreted, directory, depth - 1)? {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(words: &[&str]) -> Result<Program> {
        let program = ProgramArguments {
            dialect: DialectChoice::Auto,
            ready_after: None,
            fdname: vec![],
            program: words.iter().map(OsString::from).collect(),
        };
        program.resolve(None, "").map(|program| program.expect("there are words"))
    }

    fn dialect(words: &[&str]) -> Result<Dialect> {
        resolve(words).map(|program| program.dialect)
    }

    /// A folder with these programs, none of which does anything.
    struct Programs {
        folder: tempfile::TempDir,
    }

    impl Programs {
        fn new(names: &[&str]) -> Self {
            let programs = Self { folder: tempfile::tempdir().expect("a folder") };
            names.iter().for_each(|name| programs.write(name, ""));
            programs
        }

        fn path(&self, name: &str) -> String {
            self.folder.path().join(name).display().to_string()
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.path(name), text).expect("the folder is writable");
        }
    }

    #[test]
    fn node_is_known_by_its_name_behind_links_env_and_scripts() {
        let programs = Programs::new(&["node", "other"]);
        let path = |name| programs.path(name);
        std::os::unix::fs::symlink(path("node"), path("link")).expect("a link");
        programs.write("script", &format!("#!/usr/bin/env -S {}\nserve()", path("node")));
        assert_eq!(dialect(&[&path("node"), "x.js"]).ok(), Some(Dialect::Node));
        assert_eq!(dialect(&[&path("link"), "x.js"]).ok(), Some(Dialect::Node));
        assert_eq!(dialect(&[&path("script")]).ok(), Some(Dialect::Node));
        let env = ["/usr/bin/env", "-i", "A=b", &path("link"), "x.js"];
        assert_eq!(dialect(&env).ok(), Some(Dialect::Node));
        assert_eq!(dialect(&[&path("other"), "node"]).ok(), Some(Dialect::Native));
    }

    #[test]
    fn what_cannot_be_a_worker_is_told_what_to_do() {
        let names = ["bun", "deno", "npm", "gunicorn", "uvicorn", "python3.11"];
        let programs = Programs::new(&names);
        let path = |name| programs.path(name);
        let module = ["-m", "uvicorn", "app:app"];
        for (words, remedy) in [
            (vec![&*path("bun"), "run"], "--dialect native"),
            (vec![&*path("deno"), "run"], "--dialect native"),
            (vec![&*path("npm"), "start"], "-- node server.js"),
            (vec![&*path("missing")], "found in PATH"),
            (vec![&*path("gunicorn"), "app:app"], "--dialect listen-fds"),
            (vec![&*path("uvicorn"), "app:app"], "uvicorn --fd 3"),
            ([&[&*path("python3.11")], &module[..]].concat(), "uvicorn --fd 3"),
        ] {
            let error = resolve(&words).expect_err(words[0]);
            assert_eq!(error.exit_code(), 2);
            assert!(error.hint().contains(remedy), "{error}: {}", error.hint());
        }
    }

    #[test]
    fn ports_for_debuggers_are_put_behind_the_options_that_ask_for_them() {
        let programs = Programs::new(&["node"]);
        let node = programs.path("node");
        for (words, options, port) in [
            (vec![&*node, "--inspect", "x.js", "y"], 1, Some(9229)),
            (vec!["/usr/bin/env", "A=b", &node, "--inspect=9300", "x.js"], 3, Some(9300)),
            (vec![&*node, "x.js", "--inspect"], 0, None),
        ] {
            let program = resolve(&words).expect("they are words for Node");
            assert_eq!((program.options.len(), program.inspect_port), (options, port), "{words:?}");
            let again = [program.options, program.arguments].concat();
            assert!(again.iter().eq(&words[1..]), "{again:?}");
        }
    }
}
