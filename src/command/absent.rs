//! The file of a program, and the error where there is none that can be started: a guess at what
//! was meant, and the command line that works.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use clusterlb::Error;

/// Least similarity at which a name is suggested for another, as clap does for options.
const LIKENESS_MIN: f64 = 0.7;
/// Programs that are often named, in addition to the commands.
const PROGRAMS: [&str; 4] = ["node", "gunicorn", "uvicorn", "python3"];
/// Commands of other tools, and what does the same here.
const FAMILIAR: [(&str, &str); 8] = [
    ("start", "clusterlb node server.js"),
    ("serve", "clusterlb run"),
    ("restart", "clusterlb reload"),
    ("stop", "clusterlb drain"),
    ("list", "clusterlb status"),
    ("logs", "clusterlb events"),
    ("monit", "clusterlb top"),
    ("version", "clusterlb --version"),
];
/// Interpreters by file extension.
const INTERPRETERS: [(&str, &str); 10] = [
    ("js", "node"),
    ("cjs", "node"),
    ("mjs", "node"),
    ("ts", "node"),
    ("py", "python3"),
    ("rb", "ruby"),
    ("pl", "perl"),
    ("php", "php"),
    ("sh", "sh"),
    ("jar", "java -jar"),
];

/// The file that a name refers to for a process in `directory` (`execvp(3)`).
pub(super) fn find(path: &Path, directory: Option<&Path>) -> Option<PathBuf> {
    let from = directory.unwrap_or_else(|| Path::new(""));
    if path.as_os_str().as_bytes().contains(&b'/') {
        let path = from.join(path);
        return path.is_file().then_some(path);
    }
    let folders = std::env::var_os("PATH")?;
    let mut files = std::env::split_paths(&folders).map(|folder| from.join(folder).join(path));
    files.find(|file| file.is_file())
}

/// Why the program cannot be started from `directory`, if the cause is visible, and the remedy.
/// `commands` are names that may have been meant instead.
pub(super) fn objection(
    path: &Path,
    directory: Option<&Path>,
    commands: &[String],
) -> Option<Error> {
    let shown = path.display();
    if let Some(file) = find(path, directory) {
        return (!may_be_run(&file)).then(|| {
            let what = format!("{shown} is not executable");
            Error::usage(what, way_to_run(path, &file))
        });
    }
    // The file exists here, but a bare name is only looked up in PATH.
    let here = directory.unwrap_or_else(|| Path::new("")).join(path);
    let (what, hint) = if here.is_dir() {
        (format!("{shown} is a folder"), "name the program in it".to_owned())
    } else if here.is_file() {
        let what = format!("there is no program {shown} in PATH, only a file here");
        let path = Path::new(".").join(path);
        let hint = match may_be_run(&here) {
            true => format!("write `clusterlb {}`", path.display()),
            false => way_to_run(&path, &here),
        };
        (what, hint)
    } else {
        (format!("there is no program {shown}"), nearest_or_general(path, commands))
    };
    Some(Error::usage(what, hint))
}

/// Whether anyone may execute the file. Whether this user may, the kernel decides.
fn may_be_run(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|found| found.permissions().mode() & 0o111 != 0)
}

fn way_to_run(path: &Path, file: &Path) -> String {
    let shown = match path.to_string_lossy() {
        text if text.contains('/') => text.into_owned(),
        text => format!("./{text}"),
    };
    let ending = path.extension().and_then(OsStr::to_str);
    let interpreter = INTERPRETERS.iter().find(|(known, _)| Some(*known) == ending);
    let has_interpreter = fs::read(file).is_ok_and(|text| text.starts_with(b"#!"));
    match interpreter {
        Some((_, "node")) => format!("write `clusterlb node {shown}`"),
        Some((_, program)) => format!(
            "write `clusterlb --dialect listen-fds {program} {shown}`, if it takes its listening \
             sockets over (LISTEN_FDS)"
        ),
        None if has_interpreter => format!("`chmod +x {shown}`"),
        None => format!("`chmod +x {shown}`, if it is a program"),
    }
}

fn nearest_or_general(path: &Path, commands: &[String]) -> String {
    let general = "write its path, or a name that is found in PATH; a file here is ./NAME";
    let name = path.to_string_lossy();
    if name.contains('/') {
        return "write the path of a file that is there, or a name that is found in PATH".into();
    }
    if let Some((_, command)) = FAMILIAR.iter().find(|(known, _)| *known == name) {
        return format!("`{command}` does that here; otherwise, {general}");
    }
    let ending = path.extension().and_then(OsStr::to_str);
    if let Some((_, program)) = INTERPRETERS.iter().find(|(known, _)| Some(*known) == ending) {
        return format!("there is no file of this name here; with its path write `{program} PATH`");
    }
    let nearest_command = nearest(&name, commands.iter().map(String::as_str));
    let nearest_program = nearest(&name, PROGRAMS.into_iter());
    match (nearest_command, nearest_program) {
        (Some((command, likeness)), other) if other.is_none_or(|(_, least)| least <= likeness) => {
            format!("a command of that kind is `clusterlb {command}`; otherwise, {general}")
        }
        (_, Some((program, _))) => format!("`{program}` is like it; otherwise, {general}"),
        _ => general.into(),
    }
}

/// The most similar name and its similarity, if any is similar enough.
pub(super) fn nearest<'a>(
    name: &str,
    among: impl Iterator<Item = &'a str>,
) -> Option<(&'a str, f64)> {
    let likeness = |one: &str| match strsim::osa_distance(name, one) {
        // In a short word one letter is a large share, and just as easily mistyped.
        0 | 1 if name.len() > 2 => 0.95,
        _ => strsim::jaro(name, one),
    };
    let rated = among.map(|one| (one, likeness(one)));
    rated.filter(|(_, likeness)| *likeness > LIKENESS_MIN).max_by(|a, b| a.1.total_cmp(&b.1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clusterlb::ErrorKind;

    #[test]
    fn every_way_to_be_no_program_has_its_own_remedy() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str, mode: u32| {
            let path = folder.path().join(name);
            fs::write(&path, text).expect("the folder is writable");
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("it is ours");
        };
        write("server.js", "", 0o644);
        write("my-script", "#!/bin/sh\n", 0o644);
        write("app.py", "", 0o644);
        write("is-ready", "#!/bin/sh\n", 0o755);
        fs::create_dir(folder.path().join("lib")).expect("the folder is writable");
        let commands = ["bench", "check", "top"].map(str::to_owned);
        for (path, words) in [
            ("server.js", &["PATH", "clusterlb node ./server.js"][..]),
            ("./server.js", &["not executable", "clusterlb node ./server.js"]),
            ("./my-script", &["not executable", "chmod +x ./my-script"]),
            ("my-script", &["chmod +x ./my-script"]),
            ("./app.py", &["--dialect listen-fds python3 ./app.py"]),
            ("is-ready", &["clusterlb ./is-ready"]),
            ("./lib", &["folder"]),
            ("bnech", &["no program bnech", "clusterlb bench"]),
            ("tpo", &["no program tpo", "clusterlb top"]),
            ("restart", &["no program restart", "clusterlb reload"]),
            ("main.js", &["no program main.js", "no file of this name here", "node PATH"]),
            ("ndoe", &["no program ndoe", "`node`"]),
            ("nothing-like-it", &["no program nothing-like-it", "PATH"]),
            ("./nothing", &["no program ./nothing", "path of a file that is there"]),
        ] {
            let error = objection(Path::new(path), Some(folder.path()), &commands).expect(path);
            let text = format!("{error}; {}", error.hint());
            assert_eq!(error.kind(), ErrorKind::Usage);
            assert!(words.iter().all(|word| text.contains(word)), "{path}: {text}");
        }
        assert!(objection(Path::new("./is-ready"), Some(folder.path()), &commands).is_none());
        assert!(objection(Path::new("sh"), Some(folder.path()), &commands).is_none());
    }
}
