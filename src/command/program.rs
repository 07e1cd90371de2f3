//! The program of the workers: what it is, what it speaks, and its options.
//!
//! Owns the options for programs, and the defaults for known ones.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Args;

use super::absent;
use super::companion;
use super::headings::PROGRAM;
use super::inspect::{Inspection, inspection, options_before_script};
use super::known_programs::{Known, Launched, launched, look_at};
use super::launcher::Launcher;
use super::no_script::ensure_script;
use super::values::time;
use crate::command::settings::{MessageFormat, Program};
use clusterlb::{Dialect, Readiness, ReadyAfter};
use clusterlb::{Error, Result};

/// Longest name of a socket (`sd_listen_fds_with_names(3)`).
const SOCKET_NAME_BYTES_MAX: usize = 255;

/// The dialect, as on the command line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum DialectChoice {
    /// node, if PROGRAM is Node or a script of it, otherwise native.
    #[default]
    Auto,
    /// The channel of node:cluster: any Node.js server, unmodified.
    Node,
    /// This project's channel.
    Native,
    /// None: PROGRAM inherits listening sockets as from systemd (LISTEN_FDS), and accepts. Implies
    /// --policy none.
    ListenFds,
}

/// When a worker is ready, as on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReadyChoice {
    /// For workers with a channel.
    Channel(ReadyAfter),
    /// For programs that inherit sockets.
    Sockets(Readiness),
}

/// Options of a program.
#[derive(Clone, Debug, Args)]
pub(super) struct ProgramArguments {
    /// A program to run as workers [default: a built-in one]
    ///
    /// Node programs need no change: what they listen on is opened once, and connections are handed
    /// to them in turns. Others inherit listening sockets with --dialect listen-fds. Words after
    /// the program belong to it; options of clusterlb come before it. Write -- in front of a
    /// program that is named like a command of clusterlb. SIGHUP replaces the workers one after the
    /// other.
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = false,
        value_name = "PROGRAM",
        help_heading = PROGRAM,
        conflicts_with_all = [
            "serve", "work", "work_seed", "runtime", "header_timeout", "idle_timeout"
        ]
    )]
    program: Vec<OsString>,

    /// Its protocol: node, native, listen-fds
    #[arg(
        long, value_name = "NAME",
        value_enum,
        default_value_t,
        requires = "program",
        help_heading = PROGRAM
    )]
    dialect: DialectChoice,

    /// When a worker of PROGRAM is ready [default: listening; accepting with --dialect listen-fds]
    ///
    /// listening, or message, when it listens and has sent the message ready
    /// (process.send('ready')); with --dialect listen-fds accepting, when it waits for connections
    /// (seen in /proc), a time for which it has to run, or notify, when it reports READY=1
    /// (sd_notify). The run is ready when all workers are. With
    /// message a successor has settled when it says so, and not after --settle. --start-limit
    /// covers all of this.
    #[arg(
        long,
        value_name = "listening|message|accepting|TIME|notify",
        value_parser = readiness,
        requires = "program",
        help_heading = PROGRAM,
        hide_short_help = true
    )]
    ready_after: Option<ReadyChoice>,

    /// Run FILE, or with self PROGRAM, as Node's primary beside the workers
    ///
    /// One more Node process, which gets no connections. In it cluster.isPrimary is true, it
    /// receives the messages of workers, and cluster.workers, its events, worker.send and the like
    /// are those of the real workers; cluster.fork() returns one of them, and adds a worker when
    /// all are returned. log4js, prom-client, @socket.io/cluster-adapter and other programs for
    /// Node's own primary work unchanged. It is restarted when it ends.
    #[arg(
        long,
        value_name = "self|FILE",
        requires = "program",
        help_heading = PROGRAM,
        hide_short_help = true
    )]
    companion: Option<PathBuf>,

    /// Names of the sockets with --dialect listen-fds [default: listener-1:listener-2:…]
    ///
    /// LISTEN_FDNAMES has them, in the order of --listen.
    #[arg(
        long,
        value_name = "NAME[:NAME…]",
        value_delimiter = ':',
        requires = "program",
        help_heading = PROGRAM,
        hide_short_help = true
    )]
    fdname: Vec<String>,

    /// Encoding of messages between the primary and PROGRAM
    #[arg(
        long,
        value_enum,
        default_value_t,
        requires = "program",
        help_heading = PROGRAM,
        hide_short_help = true
    )]
    pub(super) serialization: MessageFormat,

    /// Whether Node workers load a small script before PROGRAM
    ///
    /// It reports when connections end, and closes kept connections when a worker leaves.
    #[arg(
        long,
        value_enum,
        default_value_t,
        requires = "program",
        help_heading = PROGRAM,
        hide_short_help = true
    )]
    pub(super) preload: PreloadChoice,
}

/// Whether Node workers load the script.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum PreloadChoice {
    /// Unless their options forbid it.
    #[default]
    Auto,
    /// Load nothing.
    Off,
}

impl ProgramArguments {
    /// The program's words; empty without a program.
    pub(super) fn words(&self) -> &[OsString] {
        &self.program
    }

    /// Whether the program inherits its sockets.
    pub(super) fn takes_sockets(&self) -> bool {
        self.dialect == DialectChoice::ListenFds
    }

    /// The program, if there is one. It is looked up from `directory`, and sees `variable` as
    /// `NODE_OPTIONS`. `commands` are names that may have been meant instead.
    ///
    /// # Errors
    /// [`Error::Usage`]: the program does not exist, or cannot be a worker.
    pub(super) fn resolve(
        &self,
        directory: Option<&Path>,
        variable: &str,
        commands: &[String],
    ) -> Result<Option<Program>> {
        let Some(path) = self.program.first().map(PathBuf::from) else { return Ok(None) };
        if let Some(error) = absent::objection(&path, directory, commands) {
            return Err(error);
        }
        let (line, known) = self.without_launcher(directory)?;
        let dialect = self.dialect(known.as_ref())?;
        self.ensure_sockets_are_taken(dialect)?;
        let words = match (dialect, known) {
            (Dialect::Node, Some(Known::Node { words: Some(words) })) => {
                ensure_script(&line[line.len() - words..], line.len() == 1)?;
                words
            }
            _ => 0,
        };
        let (path, arguments) = line.split_first().expect("it has a first word");
        let before = arguments.len() - words;
        let node_words = &arguments[before..];
        let asked = inspection(node_words, variable).filter(|_| words > 0);
        let count = match asked {
            Some(Inspection { words, .. }) => before + words,
            None if words > 0 => before + options_before_script(node_words),
            None => 0,
        };
        let (options, arguments) = arguments.split_at(count);
        let script = before + options_before_script(node_words) - count;
        let script = (words > 0 && script < arguments.len()).then_some(script);
        let companion = self.companion.as_deref();
        let companion = companion.map(|file| match dialect {
            Dialect::Node => companion::arguments(file, arguments, script, directory),
            _ => Err(companion::not_node()),
        });
        Ok(Some(Program {
            path: path.into(),
            options: options.to_vec(),
            arguments: arguments.to_vec(),
            dialect,
            readiness: match self.ready_after {
                Some(ReadyChoice::Sockets(readiness)) => readiness,
                _ => Readiness::default(),
            },
            ready_after: match self.ready_after {
                Some(ReadyChoice::Channel(what)) => what,
                _ => ReadyAfter::default(),
            },
            socket_names: self.fdname.clone(),
            script: script.map(|place| arguments[place].to_string_lossy().into_owned()),
            companion: companion.transpose()?,
            inspect_port: asked.map(|asked| asked.port),
        }))
    }

    /// The words of the program, and what it is. A launcher is replaced by the Node that it would
    /// start.
    fn without_launcher(&self, directory: Option<&Path>) -> Result<(Vec<OsString>, Option<Known>)> {
        let known = look_at(&self.program, directory);
        let is_node = matches!(self.dialect, DialectChoice::Auto | DialectChoice::Node);
        let found = known.as_ref().filter(|_| is_node);
        let found = found.and_then(|known| launched(&self.program, known, directory));
        match found {
            None => Ok((self.program.clone(), known)),
            Some(Launched { launcher: Launcher::Refused { name, line }, .. }) => Err(Error::usage(
                format!("{name} starts the program as a separate process"),
                format!("write `clusterlb -- {line}`; SIGHUP replaces the workers by new ones"),
            )),
            Some(Launched { launcher: Launcher::Loader { option }, place, node }) => {
                let words = node.into_iter().chain([option.into()]);
                let mut line = self.program.clone();
                line.splice(place..=place, words);
                let known = look_at(&line, directory);
                Ok((line, known))
            }
        }
    }

    fn dialect(&self, known: Option<&Known>) -> Result<Dialect> {
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
                Some(Known::Outer { words }) => Err(self.outer(*words)),
                Some(Known::Starter(name)) => Err(Error::usage(
                    format!("{name} starts the program as a separate process"),
                    "name the program itself, as in `-- node server.js`",
                )),
                // The remaining launchers start other programs.
                Some(Known::Launcher { .. }) => Ok(Dialect::Native),
                Some(Known::Activated(name, line)) => Err(Error::usage(
                    format!(
                        "{name} does not speak the worker protocol; it can take listening sockets \
                         over"
                    ),
                    format!(
                        "write `clusterlb --dialect listen-fds --listen 127.0.0.1:8000 -- {line}`"
                    ),
                )),
                None => Ok(Dialect::Native),
            },
        }
    }

    /// The error for a command that starts Node with its last words.
    fn outer(&self, words: usize) -> Error {
        let line = |words: &[OsString]| {
            let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
            words.join(" ")
        };
        let (outer, inner) = self.program.split_at(self.program.len() - words);
        Error::usage(
            format!("{} starts the program as a separate process", outer[0].display()),
            format!("let it start clusterlb: `{} clusterlb -- {}`", line(outer), line(inner)),
        )
    }

    fn ensure_sockets_are_taken(&self, dialect: Dialect) -> Result<()> {
        let takes_sockets = dialect == Dialect::ListenFds;
        if let (true, Some(ReadyChoice::Channel(_))) = (takes_sockets, self.ready_after) {
            return Err(Error::usage(
                "programs that take listening sockets over send no messages, and none says that \
                 it listens",
                "say --ready-after accepting or notify, or name a time",
            ));
        }
        let time = matches!(self.ready_after, Some(ReadyChoice::Sockets(_)));
        let given = time.then_some("--ready-after with accepting, a time or notify");
        let given = given.or_else(|| (!self.fdname.is_empty()).then_some("--fdname"));
        if let Some(option) = given.filter(|_| !takes_sockets) {
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

fn readiness(text: &str) -> std::result::Result<ReadyChoice, String> {
    match text {
        "listening" => Ok(ReadyChoice::Channel(ReadyAfter::Listening)),
        "message" => Ok(ReadyChoice::Channel(ReadyAfter::Message)),
        "accepting" => Ok(ReadyChoice::Sockets(Readiness::Accepting)),
        "notify" => Ok(ReadyChoice::Sockets(Readiness::Notified)),
        text => time(text)
            .map(|time| ReadyChoice::Sockets(Readiness::After(time)))
            .map_err(|error| format!("{error}; or listening, message, accepting, notify")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clusterlb::ErrorKind;

    fn resolve(words: &[&str]) -> Result<Program> {
        let program = ProgramArguments {
            dialect: DialectChoice::Auto,
            ready_after: None,
            companion: None,
            fdname: vec![],
            serialization: MessageFormat::Json,
            preload: PreloadChoice::Auto,
            program: words.iter().map(OsString::from).collect(),
        };
        program.resolve(None, "", &[]).map(|program| program.expect("there are words"))
    }

    fn dialect(words: &[&str]) -> Result<Dialect> {
        resolve(words).map(|program| program.dialect)
    }

    /// A folder with these programs; they do nothing.
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
            let path = self.path(name);
            std::fs::write(&path, text).expect("the folder is writable");
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(path, mode).expect("it is ours");
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
    fn node_is_known_behind_commands_that_become_it() {
        let programs = Programs::new(&["nice", "taskset", "sh", "node", "other", "timeout"]);
        let path = |name| programs.path(name);
        programs.write("node.sh", &format!("#!{}\nexec {} x.js", path("sh"), path("node")));
        programs.write("other.sh", &format!("#!{}\nexec {} node", path("sh"), path("other")));
        let exec = format!("exec {} x.js", path("node"));
        for (words, expected) in [
            (vec![&*path("nice"), "-n", "1", &path("node"), "x.js"], Dialect::Node),
            (vec![&*path("taskset"), "-c", "0", &path("nice"), &path("node")], Dialect::Node),
            (vec![&*path("nice"), &path("other"), "node"], Dialect::Native),
            (vec![&*path("node.sh"), "word"], Dialect::Node),
            (vec![&*path("sh"), "-c", &exec], Dialect::Node),
            (vec![&*path("other.sh")], Dialect::Native),
            (vec![&*path("timeout"), "9", &path("other")], Dialect::Native),
        ] {
            assert_eq!(dialect(&words).ok(), Some(expected), "{words:?}");
        }
        let words = [&*path("nice"), &path("node"), "--inspect", "x.js"];
        assert_eq!(resolve(&words).ok().and_then(|program| program.inspect_port), Some(9229));
    }

    #[test]
    fn what_cannot_be_a_worker_is_told_what_to_do() {
        let names = ["bun", "deno", "npm", "node", "tini", "gunicorn", "uvicorn", "python3.11"];
        let programs = Programs::new(&names);
        let path = |name| programs.path(name);
        let module = ["-m", "uvicorn", "app:app"];
        for (words, remedy) in [
            (vec![&*path("bun"), "run"], "--dialect native"),
            (vec![&*path("deno"), "run"], "--dialect native"),
            (vec![&*path("npm"), "start"], "-- node server.js"),
            (vec![&*path("tini"), "--", &path("node"), "x.js"], "tini -- clusterlb -- "),
            (vec![&*path("missing")], "found in PATH"),
            (vec![&*path("gunicorn"), "app:app"], "--dialect listen-fds"),
            (vec![&*path("uvicorn"), "app:app"], "uvicorn --fd 3"),
            ([&[&*path("python3.11")], &module[..]].concat(), "uvicorn --fd 3"),
        ] {
            let error = resolve(&words).expect_err(words[0]);
            assert_eq!(error.kind(), ErrorKind::Usage);
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
