//! Commands that start Node as another process, so the worker would be the launcher instead of the
//! server.
//!
//! Owns their list, with the working command line for each. `tsx` needs no other line: Node with
//! the loader of tsx replaces it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path};

/// How to handle a launcher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Launcher {
    /// Node with this option in front of the launcher's words does the same.
    Loader { option: String },
    /// The launcher cannot be a worker; `line` can.
    Refused { name: String, line: String },
}

/// Packages whose commands have other names.
const PACKAGES: [(&str, &str); 5] = [
    ("dotenv-cli", "dotenv"),
    ("@dotenvx/dotenvx", "dotenvx"),
    ("@nestjs/cli", "nest"),
    ("ts-node-dev", "ts-node-dev"),
    ("npm-run-all", "npm-run-all"),
];
/// Extensions of a server's file.
const SCRIPTS: [&str; 6] = ["js", "mjs", "cjs", "ts", "mts", "cts"];

/// The launcher that `file` is, as a program or a script of Node, with these words.
pub(super) fn launcher(file: &Path, words: &[OsString]) -> Option<Launcher> {
    let name = name_of(file)?;
    let script = script_in(words).unwrap_or_else(|| "server.js".into());
    let line = match name.as_str() {
        "tsx" => return Some(tsx(file, words)),
        "ts-node-esm" => format!("node --loader ts-node/esm {script}"),
        "ts-node" if words.iter().any(|word| word == "--esm") => {
            format!("node --loader ts-node/esm {script}")
        }
        "ts-node-dev" | "tsnd" => format!("ts-node {script}"),
        "nodemon" | "node-dev" | "supervisor" | "forever" | "pm2" | "pm2-runtime" => {
            format!("node {script}")
        }
        "cross-env" | "cross-env-shell" => format!("env {}", in_a_row(words)),
        "env-cmd" => format!("node --env-file={} {script}", value(words, "-f").unwrap_or(".env")),
        "dotenv" | "dotenvx" => {
            let file = value(words, "-e").or_else(|| value(words, "-f"));
            format!("node --env-file={} {script}", file.unwrap_or(".env"))
        }
        "nest" => "node dist/main.js".into(),
        "concurrently" | "npm-run-all" => "node server.js".into(),
        _ => return None,
    };
    Some(Launcher::Refused { name, line })
}

/// The option of Node that makes it start another Node for the server.
pub(super) fn launches(options: &[OsString], rest: &[OsString]) -> Option<Launcher> {
    let is_one = |word: &&OsString| {
        let word = word.to_str().unwrap_or_default();
        matches!(word, "--watch" | "--watch-path" | "--watch-preserve-output" | "--run" | "--test")
            || word.starts_with("--watch-path=")
            || word.starts_with("--run=")
    };
    let word = options.iter().find(is_one)?.to_string_lossy();
    let name = word.split('=').next().unwrap_or(&word);
    let script = script_in(rest).unwrap_or_else(|| "server.js".into());
    Some(Launcher::Refused { name: format!("node {name}"), line: format!("node {script}") })
}

/// The command's name: that of its package, or of the file.
fn name_of(file: &Path) -> Option<String> {
    let own = file.file_name()?.to_str()?.to_owned();
    let Some(package) = package_of(file) else { return Some(own) };
    // The files tell the commands of one package apart.
    if package == "ts-node" {
        let is_esm = own.starts_with("bin-esm");
        return Some(if is_esm { "ts-node-esm" } else { "ts-node" }.into());
    }
    let known = PACKAGES.iter().find(|(name, _)| *name == package);
    Some(known.map_or(package, |(_, command)| (*command).to_owned()))
}

fn package_of(file: &Path) -> Option<String> {
    let names: Vec<&str> = file
        .components()
        .filter_map(|part| match part {
            Component::Normal(name) => name.to_str(),
            _ => None,
        })
        .collect();
    let place = names.iter().rposition(|name| *name == "node_modules")?;
    match &names[place + 1..] {
        [".bin", ..] | [] | [_] => None,
        [scope, name, ..] if scope.starts_with('@') => Some(format!("{scope}/{name}")),
        [name, ..] => Some((*name).to_owned()),
    }
}

fn tsx(file: &Path, words: &[OsString]) -> Launcher {
    let refused = |line: String| Launcher::Refused { name: "tsx".into(), line };
    let script = script_in(words).unwrap_or_else(|| "server.ts".into());
    let first = words.first().and_then(|word| word.to_str()).unwrap_or_default();
    if let Some(tsconfig) = value(words, "--tsconfig") {
        return refused(format!("env TSX_TSCONFIG_PATH={tsconfig} tsx {script}"));
    }
    if words.iter().any(|word| word == "--no-cache") {
        return refused(format!("env TSX_DISABLE_CACHE=1 tsx {script}"));
    }
    let is_other = matches!(first, "" | "watch" | "-e" | "--eval" | "-p" | "--print" | "--test");
    if is_other {
        return refused(format!("tsx {script}"));
    }
    // Beside the command, or, where pnpm made that a shell script, in the package beside it.
    let folder = file.parent().unwrap_or_else(|| Path::new("/"));
    let places = [folder.join("loader.mjs"), folder.join("../tsx/dist/loader.mjs")];
    match places.iter().find_map(|place| place.canonicalize().ok()) {
        Some(loader) => Launcher::Loader { option: format!("--import={}", file_url(&loader)) },
        None => refused(format!("node --import tsx {script}")),
    }
}

/// The first word that names a server's file.
fn script_in(words: &[OsString]) -> Option<String> {
    let is_script = |word: &&str| {
        let extension = Path::new(word).extension().and_then(OsStr::to_str);
        !word.starts_with('-') && extension.is_some_and(|one| SCRIPTS.contains(&one))
    };
    words.iter().filter_map(|word| word.to_str()).find(is_script).map(str::to_owned)
}

/// The value of an option, in the same word or the next.
fn value<'a>(words: &'a [OsString], option: &str) -> Option<&'a str> {
    let place = words.iter().position(|word| {
        let word = word.to_str().unwrap_or_default();
        word.split('=').next() == Some(option)
    })?;
    match words[place].to_str()?.split_once('=') {
        Some((_, value)) => Some(value),
        None => words.get(place + 1)?.to_str(),
    }
}

fn in_a_row(words: &[OsString]) -> String {
    let words: Vec<String> = words.iter().map(|word| word.to_string_lossy().into()).collect();
    words.join(" ")
}

/// A path as `--import` accepts it, with any characters.
fn file_url(path: &Path) -> String {
    let mut url = String::from("file://");
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' | b'~' | b'@' => {
                url.push(char::from(*byte));
            }
            _ => url += &format!("%{byte:02X}"),
        }
    }
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn each_launcher_is_refused_with_the_line_that_works() {
        for (file, line, works) in [
            ("/x/node_modules/nodemon/bin/nodemon.js", "-w src server.js", "node server.js"),
            ("/x/node_modules/.bin/nodemon", "", "node server.js"),
            (
                "/x/node_modules/cross-env/dist/bin/cross-env.js",
                "A=b node x.js",
                "env A=b node x.js",
            ),
            ("/usr/bin/env-cmd", "-f a.env node x.js", "node --env-file=a.env x.js"),
            ("/x/node_modules/dotenv-cli/cli.js", "-- node x.js", "node --env-file=.env x.js"),
            ("/x/node_modules/.bin/dotenv", "-e=b node x.js", "node --env-file=b x.js"),
            ("/x/node_modules/@nestjs/cli/bin/nest.js", "start", "node dist/main.js"),
            ("/x/node_modules/ts-node-dev/lib/bin.js", "--respawn a.ts", "ts-node a.ts"),
            ("/x/node_modules/ts-node/dist/bin-esm.js", "a.ts", "node --loader ts-node/esm a.ts"),
            ("/x/node_modules/ts-node/dist/bin.js", "--esm a.ts", "node --loader ts-node/esm a.ts"),
            ("/x/node_modules/tsx/dist/cli.mjs", "watch a.ts", "tsx a.ts"),
            ("/nowhere/tsx", "a.ts", "node --import tsx a.ts"),
            ("/nowhere/tsx", "--tsconfig t.json a.ts", "env TSX_TSCONFIG_PATH=t.json tsx a.ts"),
            ("/usr/bin/pm2", "start a.js", "node a.js"),
        ] {
            match launcher(Path::new(file), &words(line)) {
                Some(Launcher::Refused { line: found, .. }) => assert_eq!(found, works, "{file}"),
                other => panic!("{file} {line}: {other:?}"),
            }
        }
    }

    #[test]
    fn what_runs_in_its_own_process_is_no_launcher() {
        for (file, line) in [
            ("/x/node_modules/ts-node/dist/bin.js", "-T a.ts"),
            ("/x/server.js", ""),
            ("/x/node_modules/next/dist/bin/next", "start"),
            ("/usr/bin/node", "server.js"),
        ] {
            assert_eq!(launcher(Path::new(file), &words(line)), None, "{file}");
        }
    }

    #[test]
    fn node_is_a_launcher_when_it_watches() {
        let refused = launches(&words("--no-warnings --watch-path=src"), &words("a.mjs"));
        let (name, line) = ("node --watch-path".to_owned(), "node a.mjs".to_owned());
        assert_eq!(refused, Some(Launcher::Refused { name, line }));
        assert_eq!(launches(&words("--no-warnings"), &words("a.mjs --watch")), None);
    }

    #[test]
    fn tsx_is_its_loader_also_where_its_command_is_a_shell_script() {
        let folder = tempfile::tempdir().expect("a folder");
        let modules = folder.path().join("with space/node_modules");
        let package = modules.join("tsx/dist");
        std::fs::create_dir_all(modules.join(".bin")).expect("room");
        std::fs::create_dir_all(&package).expect("room");
        std::fs::write(package.join("loader.mjs"), "").expect("room");
        let url = file_url(&package.canonicalize().expect("it is there").join("loader.mjs"));
        assert!(url.starts_with("file:///") && url.contains("with%20space"), "{url}");
        for file in [package.join("cli.mjs"), modules.join(".bin/tsx")] {
            let option = format!("--import={url}");
            let found = launcher(&file, &words("--no-warnings a.ts"));
            assert_eq!(found, Some(Launcher::Loader { option }), "{file:?}");
        }
    }
}
