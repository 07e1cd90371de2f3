//! Debuggers of Node workers: which words of the program ask for one, and at which port.
//!
//! Owns the rules that Node's own `cluster.fork()` follows. Pure.

use std::ffi::OsString;

/// Node's default debugger port (`process.debugPort`).
const PORT_DEFAULT: u16 = 9229;
/// Options that start a debugger or set its address.
const OPTIONS: [&str; 5] =
    ["--inspect", "--inspect-brk", "--inspect-wait", "--inspect-port", "--debug-port"];
/// Options of Node with their value in the next word.
const WITH_VALUE: [&str; 24] = [
    "-e",
    "--eval",
    "-p",
    "--print",
    "-pe",
    "-r",
    "--require",
    "--import",
    "--loader",
    "--experimental-loader",
    "-C",
    "--conditions",
    "--env-file",
    "--env-file-if-exists",
    "--redirect-warnings",
    "--diagnostic-dir",
    "--disable-warning",
    "--unhandled-rejections",
    "--watch-path",
    "--title",
    "--inspect-port",
    "--debug-port",
    "--icu-data-dir",
    "--input-type",
];

/// A request for debuggers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Inspection {
    /// Number of Node's words in front of which a port can be added.
    pub(super) words: usize,
    /// The first port.
    pub(super) port: u16,
}

/// The request in Node's words, its options first, and in `NODE_OPTIONS`. `None` also if each
/// process picks a free port (0).
pub(super) fn inspection(words: &[OsString], variable: &str) -> Option<Inspection> {
    let mut port = None;
    for word in variable.split_whitespace() {
        port = named(word, None).or(port);
    }
    let (mut place, mut behind) = (0, 0);
    while let Some(word) = words.get(place).and_then(|word| word.to_str()) {
        if !word.starts_with('-') || word == "--" {
            break;
        }
        let next = words.get(place + 1).and_then(|word| word.to_str());
        let has_value = WITH_VALUE.contains(&word);
        place += if has_value { 2 } else { 1 };
        if let Some(named) = named(word, next.filter(|_| has_value)) {
            // An option without a value keeps the port.
            port = Some(named.or_else(|| port.flatten()));
            behind = place;
        }
    }
    let port = port?.unwrap_or(PORT_DEFAULT);
    (port != 0).then_some(Inspection { words: behind.min(words.len()), port })
}

/// Number of Node's words before its script.
pub(super) fn options_before_script(words: &[OsString]) -> usize {
    let mut place = 0;
    while let Some(word) = words.get(place).and_then(|word| word.to_str()) {
        if !word.starts_with('-') || matches!(word, "-" | "--") {
            break;
        }
        place += if WITH_VALUE.contains(&word) { 2 } else { 1 };
    }
    place.min(words.len())
}

/// The port that a word sets, if it is a debugger option at all.
fn named(word: &str, value: Option<&str>) -> Option<Option<u16>> {
    let (name, value) = match word.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (word, value),
    };
    OPTIONS.contains(&name).then(|| value.map(port_of))
}

/// `PORT`, `HOST:PORT` or `HOST`.
fn port_of(value: &str) -> u16 {
    let last = value.rsplit(':').next().unwrap_or(value);
    last.parse().unwrap_or(PORT_DEFAULT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(line: &str, variable: &str) -> Option<(usize, u16)> {
        let words: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        inspection(&words, variable).map(|found| (found.words, found.port))
    }

    #[test]
    fn options_before_the_script_ask_for_debuggers() {
        for (line, found) in [
            ("server.js", None),
            ("server.js --inspect", None),
            ("-- server.js --inspect", None),
            ("--inspect server.js", Some((1, 9229))),
            ("--inspect-brk=9300 server.js", Some((1, 9300))),
            ("--inspect-wait=0.0.0.0:80 server.js", Some((1, 80))),
            ("--inspect=[::1]:9300 server.js", Some((1, 9300))),
            ("--inspect=localhost server.js", Some((1, 9229))),
            ("--inspect-port 9300 --inspect server.js", Some((3, 9300))),
            ("-r x --inspect --no-warnings server.js", Some((3, 9229))),
            ("--inspect=1 --inspect-port=2 server.js", Some((2, 2))),
            ("--inspect=0 server.js", None),
            ("--inspect --inspect-port=0 server.js", None),
            ("--inspect-publish-uid=http server.js", None),
            ("--inspect-port", Some((1, 9229))),
        ] {
            assert_eq!(asked(line, ""), found, "{line}");
        }
    }

    #[test]
    fn the_variable_asks_as_well_and_the_words_have_the_last_one() {
        assert_eq!(asked("server.js", "--inspect"), Some((0, 9229)));
        assert_eq!(asked("server.js", "-r x --inspect=9300"), Some((0, 9300)));
        assert_eq!(asked("--inspect server.js", "--inspect-port=9300"), Some((1, 9300)));
        assert_eq!(asked("--inspect=9400 server.js", "--inspect=9300"), Some((1, 9400)));
        assert_eq!(asked("server.js", "--inspect=0"), None);
        assert_eq!(asked("server.js", "--max-old-space-size=100"), None);
    }
}
