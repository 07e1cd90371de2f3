//! Makes worker text safe for a terminal or a log: it must not move cursors, hide text beside it,
//! or forge a line of another source. Pure.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Text on one line: control characters, line ends and direction marks become numbers.
pub(super) fn on_one_line(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_active) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for one in text.chars() {
        match one {
            '\n' => escaped.push_str("\\n"),
            '\t' => escaped.push_str("\\t"),
            one if is_active(one) => write_number(&mut escaped, one),
            one => escaped.push(one),
        }
    }
    Cow::Owned(escaped)
}

/// A line of JSON. The lower control characters are escaped already; this escapes the others, which
/// occur only in strings.
pub(super) fn in_json(line: &str) -> Cow<'_, str> {
    if !line.chars().any(is_active) {
        return Cow::Borrowed(line);
    }
    let mut escaped = String::with_capacity(line.len() + 16);
    for one in line.chars() {
        match is_active(one) {
            true => _ = write!(escaped, "\\u{:04x}", u32::from(one)),
            false => escaped.push(one),
        }
    }
    Cow::Owned(escaped)
}

/// Output of a worker. Line ends, tabs and colours stay; other control characters do not.
pub(super) fn printed(bytes: &[u8], told: &mut Vec<u8>) {
    let mut place = 0;
    while let Some(byte) = bytes.get(place) {
        let rest = &bytes[place..];
        let length = match (byte, rest.get(1)) {
            (b'\n' | b'\t', _) => 1,
            // A line end of Windows.
            (b'\r', Some(b'\n')) => 2,
            (0x1b, Some(b'[')) => colours(rest),
            (0xc2, Some(0x80..=0x9f)) => 0,
            (0..0x20 | 0x7f, _) => 0,
            _ => 1,
        };
        if length > 0 {
            told.extend_from_slice(&rest[..length]);
            place += length;
            continue;
        }
        let (number, taken) = if *byte == 0xc2 { (rest[1], 2) } else { (*byte, 1) };
        told.extend_from_slice(format!("\\x{number:02x}").as_bytes());
        place += taken;
    }
}

/// Length of the sequence at the start, if it only sets colours and styles.
fn colours(bytes: &[u8]) -> usize {
    let parameters = bytes[2..].iter().take_while(|byte| matches!(byte, b'0'..=b'9' | b';' | b':'));
    let end = 2 + parameters.count();
    if bytes.get(end) == Some(&b'm') { end + 1 } else { 0 }
}

fn is_active(one: char) -> bool {
    let has_effect = matches!(one, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    has_effect || one.is_control()
}

fn write_number(text: &mut String, one: char) {
    let _ = match u32::from(one) {
        number @ 0..=0xff => write!(text, "\\x{number:02x}"),
        number => write!(text, "\\u{{{number:x}}}"),
    };
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn text_stays_on_its_line() {
        assert_eq!(on_one_line("grüße ▇"), "grüße ▇");
        assert_eq!(on_one_line("a\nworker 1: fine"), "a\\nworker 1: fine");
        assert_eq!(on_one_line("\x1b[2J\u{9b}1m\u{202e}"), "\\x1b[2J\\x9b1m\\u{202e}");
    }

    #[test]
    fn json_keeps_its_meaning() {
        let value = serde_json::json!({ "text": "\x7f\u{9b}2J\u{2028}\n" });
        let line = serde_json::to_string(&value).expect("a value");
        let escaped = in_json(&line);
        assert!(!escaped.chars().any(is_active), "{escaped}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&escaped).expect("JSON"), value);
    }

    #[test]
    fn printed_lines_keep_their_colours_and_nothing_else() {
        let shown = |bytes: &[u8]| {
            let mut told = Vec::new();
            printed(bytes, &mut told);
            String::from_utf8(told).expect("what was UTF-8 is")
        };
        assert_eq!(shown(b"\x1b[1;31mred\x1b[0m\t\xc3\xbc\r\n"), "\x1b[1;31mred\x1b[0m\tü\r\n");
        assert_eq!(
            shown(b"\x1b[2J\x1b]0;title\x07\r\xc2\x9b1m"),
            "\\x1b[2J\\x1b]0;title\\x07\\x0d\\x9b1m"
        );
        assert_eq!(shown(b"\x1b[31"), "\\x1b[31");
    }

    proptest! {
        /// Whatever is printed, no text is lost, and only the named control characters remain.
        #[test]
        fn nothing_that_acts_is_left(bytes: Vec<u8>) {
            let mut told = Vec::new();
            printed(&bytes, &mut told);
            prop_assert!(told.len() >= bytes.len());
            for (place, byte) in told.iter().enumerate() {
                let next = told.get(place + 1);
                let is_harmless = match byte {
                    b'\n' | b'\t' => true,
                    b'\r' => next == Some(&b'\n'),
                    0x1b => next == Some(&b'['),
                    byte => !byte.is_ascii_control(),
                };
                prop_assert!(is_harmless, "{told:?}");
            }
        }
    }
}
