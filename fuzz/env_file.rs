//! Invariants of files of variables for arbitrary text: what stands in front of or behind a text
//! does not change what is read from it, as far as lines allow.

#[path = "../src/dialect/node/env_file.rs"]
#[allow(dead_code, unreachable_pub, reason = "the library uses the rest of it")]
mod reader;

use reader::value_in;

/// A name that no input has.
const OWN: &str = "CLUSTERLB_FUZZ_OWN";

/// Checks one input.
pub(crate) fn env_file(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if text.contains(OWN) {
        return;
    }
    assert_eq!(value_in(&text, OWN), None, "{text:?}");
    let own_first = format!("# A comment\n\n{OWN} = 'a # b'\n{text}");
    assert_eq!(value_in(&own_first, OWN).as_deref(), Some("a # b"), "{text:?}");
    for name in text.lines().filter_map(|line| line.split_once('=')) {
        let name = name.0.trim();
        let value = value_in(&text, name);
        assert_eq!(value_in(&own_first, name), value, "{name:?} in {text:?}");
        let long = value.is_some_and(|value| value.len() > text.len());
        assert!(!long, "{name:?} is longer than its text: {text:?}");
    }
}
