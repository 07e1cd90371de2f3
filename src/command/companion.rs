//! The option `--companion`: Node's arguments, and the messages about the process.

use std::ffi::OsString;
use std::path::Path;

use clusterlb::{CompanionEvent, Ending, Error, Result, Signal};

/// The program itself, instead of another file.
const SELF: &str = "self";

/// Node's arguments that run this file, or the program, as a companion. `arguments` are those of
/// the workers; `script` is the one that Node runs.
///
/// # Errors
/// [`Error::Usage`]: the file does not exist, or the script's position is unknown.
pub(super) fn arguments(
    file: &Path,
    arguments: &[OsString],
    script: Option<usize>,
    directory: Option<&Path>,
) -> Result<Vec<OsString>> {
    let mut arguments = arguments.to_vec();
    if file == Path::new(SELF) {
        return Ok(arguments);
    }
    let Some(place) = script else {
        return Err(Error::usage(
            format!("--companion {}: PROGRAM does not show where Node's script is", file.display()),
            "write `-- node server.js`, or say --companion self",
        ));
    };
    if !directory.unwrap_or_else(|| Path::new("")).join(file).is_file() {
        return Err(Error::usage(
            format!("--companion: there is no file {}", file.display()),
            "write its path, from the folder that --chdir names; or self, for PROGRAM itself",
        ));
    }
    arguments[place] = file.into();
    Ok(arguments)
}

/// The error for workers that do not speak Node's channel.
pub(super) fn not_node() -> Error {
    Error::usage(
        "--companion is for programs of Node, and PROGRAM is none",
        "say --dialect node if it runs Node, or leave --companion out",
    )
}

/// An event of the companion, in words.
pub(super) fn in_words(event: &CompanionEvent) -> String {
    match event {
        CompanionEvent::Started { pid } => format!("the companion runs, pid {pid}"),
        CompanionEvent::StartFailed { error, retry } => format!(
            "the companion cannot be started: {error}; {}; trying again in {} ms",
            error.hint(),
            retry.as_millis()
        ),
        CompanionEvent::Ended { ending, retry } => {
            let how = match ending {
                Ending::Code(code) => format!("with code {code}"),
                Ending::Signal(number) => match Signal::from_raw(*number) {
                    Some(signal) => format!("by {signal}"),
                    None => format!("by signal {number}"),
                },
            };
            let next =
                retry.map(|retry| format!("; another one is started in {} ms", retry.as_millis()));
            format!("the companion ended {how}{}", next.unwrap_or_default())
        }
        CompanionEvent::Behind => {
            "the companion does not read: messages of workers are dropped".into()
        }
        CompanionEvent::CaughtUp { dropped } => {
            format!("{dropped} messages of workers have not reached the companion")
        }
        CompanionEvent::Refused { reason } => {
            format!("what the companion asked for is not done: {reason}")
        }
        _ => "the companion reported an unknown event".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clusterlb::ErrorKind;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn a_companion_gets_what_workers_get_but_for_the_script() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("primary.js"), "").expect("the folder is writable");
        let given = words("A=b node --no-warnings server.js --port 80");
        let of =
            |file: &str, script| arguments(Path::new(file), &given, script, Some(folder.path()));
        let expected = words("A=b node --no-warnings primary.js --port 80");
        assert_eq!(of("primary.js", Some(3)).ok(), Some(expected));
        assert_eq!(of("self", None).ok(), Some(given.clone()));
        for (file, script) in [("primary.js", None), ("missing.js", Some(3))] {
            assert_eq!(of(file, script).expect_err(file).kind(), ErrorKind::Usage);
        }
    }
}
