//! A file as the rules see it: its text, the same text with comments and literals blanked out, and
//! the positions of its functions, modules and test-only parts.
//!
//! Owns a minimal lexer: strings, raw strings, characters, lifetimes and nested comments. It knows
//! no grammar beyond matching brackets.

use std::ops::Range;

use super::Finding;

/// A file.
#[derive(Debug)]
pub(crate) struct Source {
    /// Relative to the project's top folder.
    pub(crate) path: String,
    pub(crate) text: String,
    /// As long as `text`, byte for byte, with only ASCII code left.
    pub(crate) code: String,
    tests: Vec<Range<usize>>,
}

impl Source {
    pub(crate) fn new(path: &str, text: &str) -> Self {
        let code = blank(text);
        let tests = test_parts(&code);
        Self { path: path.to_owned(), text: text.to_owned(), code, tests }
    }

    pub(crate) fn finding(&self, offset: usize, what: impl Into<String>) -> Finding {
        Finding { path: self.path.clone(), line: self.line_at(offset), what: what.into() }
    }

    /// The number of the line at a byte offset, counted from one.
    pub(crate) fn line_at(&self, offset: usize) -> usize {
        1 + self.text.as_bytes()[..offset].iter().filter(|byte| **byte == b'\n').count()
    }

    /// The whole file is compiled for tests, benchmarks or examples only.
    pub(crate) fn is_test_file(&self) -> bool {
        let parts: Vec<&str> = self.path.split('/').collect();
        let beside = ["benches", "examples", "fuzz"].contains(&parts[0]);
        beside || parts.contains(&"tests") || parts.last() == Some(&"tests.rs")
    }

    /// The code at this offset is compiled for tests only.
    pub(crate) fn is_test(&self, offset: usize) -> bool {
        self.is_test_file() || self.tests.iter().any(|part| part.contains(&offset))
    }

    /// Every word of the code with its offset.
    pub(crate) fn words(&self) -> impl Iterator<Item = (usize, &str)> {
        words(&self.code)
    }

    /// The name and the extent of every function that has a body.
    pub(crate) fn functions(&self) -> Vec<(&str, Range<usize>)> {
        let mut found = Vec::new();
        let mut words = self.words().peekable();
        while let Some((start, word)) = words.next() {
            let Some((name_start, name)) = words.peek().copied() else {
                break;
            };
            // Between `fn` and a name there is only space; a function pointer has `fn(`.
            let names_it = word == "fn" && self.code[start + 2..name_start].trim().is_empty();
            let body = item_end(&self.code, name_start).filter(|(_, has_body)| *has_body);
            if let (true, Some((end, _))) = (names_it, body) {
                found.push((name, start..end));
            }
        }
        found
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Every word of blanked code with its offset.
fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    code.split(|letter: char| !letter.is_ascii() || !is_word(letter as u8))
        .filter(|word| !word.is_empty())
        .map(|word| (word.as_ptr() as usize - code.as_ptr() as usize, word))
}

/// The end of the item that continues at `from`, and whether it ends with a body in braces.
fn item_end(code: &str, from: usize) -> Option<(usize, bool)> {
    let mut depth = 0_usize;
    for (place, byte) in code.bytes().enumerate().skip(from) {
        match byte {
            b'{' if depth == 0 => return Some((closing(code, place)?, true)),
            b';' if depth == 0 => return Some((place + 1, false)),
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.checked_sub(1)?,
            _ => {}
        }
    }
    None
}

/// The offset behind the bracket that closes the one at `open`.
fn closing(code: &str, open: usize) -> Option<usize> {
    let mut depth = 0_usize;
    for (place, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.checked_sub(1)?,
            _ => {}
        }
        if depth == 0 {
            return Some(place + 1);
        }
    }
    None
}

/// Items under `#[cfg(test)]`, or under a condition that contains `test` and no `not`.
fn test_parts(code: &str) -> Vec<Range<usize>> {
    let attributes = code.match_indices("#[cfg(");
    let parts = attributes.filter_map(|(start, _)| {
        let behind = closing(code, start + 1)?;
        let condition: Vec<&str> = words(&code[start..behind]).map(|(_, word)| word).collect();
        let for_tests = condition.contains(&"test") && !condition.contains(&"not");
        for_tests.then_some(start..item_end(code, behind)?.0)
    });
    parts.collect()
}

/// Blanks out comments and literals. Lines and offsets stay the same.
fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = String::with_capacity(text.len());
    let mut place = 0;
    while place < bytes.len() {
        let end = skipped_until(bytes, place);
        if end == place {
            code.push(if bytes[place].is_ascii() { bytes[place] as char } else { '_' });
            place += 1;
            continue;
        }
        let skipped = bytes[place..end].iter();
        code.extend(skipped.map(|byte| if *byte == b'\n' { '\n' } else { ' ' }));
        place = end;
    }
    code
}

/// The end of the comment or literal that begins at `place`, or `place` if none does.
fn skipped_until(bytes: &[u8], place: usize) -> usize {
    let rest = &bytes[place..];
    let length = match rest {
        [b'/', b'/', ..] => rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len()),
        [b'/', b'*', ..] => comment_length(rest),
        [b'"', ..] => quoted_length(rest, b'"'),
        [b'\'', ..] => character_length(rest),
        [b'r', ..] | [b'b' | b'c', b'r', ..] if place == 0 || !is_word(bytes[place - 1]) => {
            raw_length(rest)
        }
        _ => 0,
    };
    place + length
}

/// The length of a comment, which may be nested.
fn comment_length(rest: &[u8]) -> usize {
    let (mut depth, mut place) = (0_usize, 0);
    while place < rest.len() {
        match &rest[place..] {
            [b'/', b'*', ..] => (depth, place) = (depth + 1, place + 2),
            [b'*', b'/', ..] => (depth, place) = (depth - 1, place + 2),
            _ => place += 1,
        }
        if depth == 0 {
            break;
        }
    }
    place.min(rest.len())
}

/// The length of a literal in quotes, where a backslash escapes the next byte.
fn quoted_length(rest: &[u8], quote: u8) -> usize {
    let mut place = 1;
    while place < rest.len() && rest[place] != quote {
        place += if rest[place] == b'\\' { 2 } else { 1 };
    }
    (place + 1).min(rest.len())
}

/// The length of a character, or 0 for a lifetime.
fn character_length(rest: &[u8]) -> usize {
    if rest.get(1) == Some(&b'\\') {
        return quoted_length(rest, b'\'');
    }
    // The first byte of a character beyond ASCII determines its length.
    let bytes = match rest.get(1) {
        None => return 0,
        Some(0..=0x7f) => 1,
        Some(0x80..=0xdf) => 2,
        Some(0xe0..=0xef) => 3,
        Some(0xf0..) => 4,
    };
    if rest.get(1 + bytes) == Some(&b'\'') { bytes + 2 } else { 0 }
}

/// The length of a raw string, or 0 for a word that only starts like one.
fn raw_length(rest: &[u8]) -> usize {
    let prefix = rest.iter().take_while(|byte| b"bcr".contains(byte)).count();
    let hashes = rest[prefix..].iter().take_while(|byte| **byte == b'#').count();
    let open = prefix + hashes;
    if prefix > 2 || rest.get(open) != Some(&b'"') {
        return 0;
    }
    let mut end = vec![b'"'];
    end.extend(std::iter::repeat_n(b'#', hashes));
    let found = rest[open + 1..].windows(end.len()).position(|window| window == end);
    found.map_or(rest.len(), |at| open + 1 + at + end.len())
}

#[test]
fn comments_and_literals_are_blanked_and_code_is_not() {
    let blanked = |text: &str| blank(text).split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(blanked("a /* b /* c */ d */ e // f\ng"), "a e g");
    assert_eq!(blanked(r#"a("b\"c", d)"#), "a( , d)");
    assert_eq!(blanked("a r#\"b\" \"c\"# d br\"e\\\" f"), "a d f");
    assert_eq!(blanked("r#type r1 bright"), "r#type r1 bright");
    assert_eq!(blanked(r"'{' '\'' '\u{7f}' 'ß' b'}' x"), "b x");
    assert_eq!(
        blanked("fn a<'b>(c: &'b str, d: &'static str)"),
        blank("fn a<'b>(c: &'b str, d: &'static str)")
    );
    let text = "\"zwölf\n\" 'ß' // ünd\n";
    assert_eq!(blank(text).len(), text.len());
    assert_eq!(blank("\"open"), "     ");
}

#[test]
fn functions_end_where_their_braces_do() {
    let text = "fn a(x: [u8; 3]) -> T where F: Fn() { if x { '{' } }\nfn b();\n\
                type C = fn(u8);\nimpl D { const fn e() { fn f() {} } }\n";
    let source = Source::new("src/x.rs", text);
    let names: Vec<&str> = source.functions().iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["a", "e", "f"]);
    let (_, first) = &source.functions()[0];
    assert!(text[first.clone()].ends_with("} }"));
}

#[test]
fn test_parts_are_known() {
    let text = "fn a() {}\n#[cfg(test)]\nmod tests { fn b() {} }\nfn c() {}\n\
                #[cfg(all(test, unix))]\nmod d;\n#[cfg(not(test))]\nfn e() {}\n";
    let source = Source::new("src/x.rs", text);
    let at = |name: &str| text.find(name).expect("it is in the text");
    let inside = |name: &str| source.is_test(at(name));
    assert_eq!(
        ["a()", "b()", "c()", "mod d", "e()"].map(inside),
        [false, true, false, true, false]
    );
    for path in ["src/x/tests.rs", "src/x/tests/cases.rs", "tests/a.rs", "benches/b.rs"] {
        assert!(Source::new(path, "").is_test_file(), "{path}");
    }
    assert!(!Source::new("src/x/contests.rs", "").is_test_file());
}
