//! Rules on form: sizes, headers, left-overs, and words that belong in few places.

use super::source::Source;
use super::{Finding, hold, lines_found, rust_sources, sources_in};

/// Longest line, in characters.
const COLUMNS_MAX: usize = 100;
/// Longest function, from `fn` to its closing brace.
const FUNCTION_LINES_MAX: usize = 70;
/// Longest file.
const FILE_LINES_MAX: usize = 500;
/// Above this length a file is better split.
const FILE_LINES_WANTED: usize = 400;

/// Words that mark unfinished work, split so that this file does not contain them.
const UNFINISHED: [&str; 3] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("X", "XX")];

/// The crates that make system calls: only their roots may permit `unsafe`.
const SYSTEM_CRATES: [&str; 2] = ["crates/sys/", "loadtest/"];

fn without_header(source: &Source) -> Vec<Finding> {
    if source.text.starts_with("//!") {
        return Vec::new();
    }
    vec![source.finding(0, "does not open with `//!`")]
}

fn long_lines(source: &Source) -> Vec<Finding> {
    let mut offset = 0;
    let mut found = Vec::new();
    for line in source.text.split('\n') {
        let columns = line.chars().count();
        if columns > COLUMNS_MAX {
            let what = format!("has {columns} columns, more than {COLUMNS_MAX}");
            found.push(source.finding(offset, what));
        }
        offset += line.len() + 1;
    }
    found
}

fn long_functions(source: &Source) -> Vec<Finding> {
    let mut found = Vec::new();
    for (name, extent) in source.functions() {
        let lines = 1 + source.line_at(extent.end - 1) - source.line_at(extent.start);
        if lines > FUNCTION_LINES_MAX {
            let what = format!("`{name}` has {lines} lines, more than {FUNCTION_LINES_MAX}");
            found.push(source.finding(extent.start, what));
        }
    }
    found
}

fn long_files(source: &Source) -> Vec<Finding> {
    let lines = source.text.lines().count();
    if lines > FILE_LINES_MAX {
        let what = format!("has {lines} lines, more than {FILE_LINES_MAX}");
        return vec![source.finding(0, what)];
    }
    if lines > FILE_LINES_WANTED {
        println!("{}: has {lines} lines; {FILE_LINES_WANTED} are better", source.path);
    }
    Vec::new()
}

/// A crate that does not forbid `unsafe`.
fn possible_unsafe(source: &Source) -> Vec<Finding> {
    let is_root = ["src/lib.rs", "src/main.rs"].iter().any(|end| source.path.ends_with(end));
    let is_system = SYSTEM_CRATES.iter().any(|place| source.path.starts_with(place));
    if !is_root || is_system || source.code.contains("#![forbid(unsafe_code)]") {
        return Vec::new();
    }
    vec![source.finding(0, "does not forbid `unsafe`")]
}

fn unfinished(source: &Source) -> Vec<Finding> {
    let mut found = Vec::new();
    for word in source.text.split(|letter: char| !letter.is_alphanumeric() && letter != '_') {
        if UNFINISHED.contains(&word) {
            let offset = word.as_ptr() as usize - source.text.as_ptr() as usize;
            found.push(source.finding(offset, format!("`{word}` is left over")));
        }
    }
    found
}

fn unwraps(source: &Source) -> Vec<Finding> {
    let calls = source.code.match_indices(".unwrap()");
    let calls = calls.filter(|(offset, _)| !source.is_test(*offset));
    calls.map(|(offset, _)| source.finding(offset, "`.unwrap()` names no invariant")).collect()
}

#[test]
fn every_file_says_what_it_owns() {
    let reason = "a reader learns from the first lines what a file owns and refuses to do";
    hold(&rust_sources(), reason, without_header);
    assert_eq!(lines_found(without_header, "src/x.rs", "// a\n//! b\n"), [1]);
}

#[test]
fn lines_fit_beside_each_other() {
    hold(&rust_sources(), "two files fit side by side on a screen", long_lines);
    let text = format!("{}\n{}\n", "ß".repeat(100), "ß".repeat(101));
    assert_eq!(lines_found(long_lines, "src/x.rs", &text), [2]);
}

#[test]
fn functions_fit_on_a_screen() {
    hold(&rust_sources(), "what fits on a screen can be checked by eye", long_functions);
    let body = "    call();\n".repeat(68);
    let text = format!("\nfn fits() {{\n{body}}}\nfn spills() {{\n{body}    call();\n}}\n");
    assert_eq!(lines_found(long_functions, "src/x.rs", &text), [72]);
}

#[test]
fn files_have_one_subject() {
    hold(&rust_sources(), "a file this long has more than one subject", long_files);
    assert_eq!(lines_found(long_files, "src/x.rs", &"a\n".repeat(500)), [0_usize; 0]);
    assert_eq!(lines_found(long_files, "src/x.rs", &"a\n".repeat(501)), [1]);
}

#[test]
fn unsafe_code_stays_in_the_system_layer() {
    let reason = "an audit of memory safety reads the system layer only";
    hold(&rust_sources(), reason, possible_unsafe);
    assert_eq!(lines_found(possible_unsafe, "crates/x/src/lib.rs", "//! a\n"), [1]);
    assert_eq!(
        lines_found(possible_unsafe, "src/main.rs", "#![forbid(unsafe_code)]\n"),
        [0_usize; 0]
    );
    assert_eq!(lines_found(possible_unsafe, "crates/sys/src/lib.rs", "//! a\n"), [0_usize; 0]);
}

#[test]
fn nothing_is_left_over() {
    let reason = "unfinished work belongs in the issues, where it is seen";
    hold(&rust_sources(), reason, unfinished);
    hold(&sources_in(&["docs"], "md"), reason, unfinished);
    let text =
        format!("// {}: later\nlet todo = 1;\nlet text = {:?};\n", UNFINISHED[0], UNFINISHED[1]);
    assert_eq!(lines_found(unfinished, "src/x.rs", &text), [1, 3]);
}

#[test]
fn expectations_are_named() {
    let reason = "write `expect` with the invariant that makes it hold";
    hold(&rust_sources(), reason, unwraps);
    let text = "a.unwrap();\n// b.unwrap()\n#[cfg(test)]\nmod tests { fn c() { d.unwrap() } }\n";
    assert_eq!(lines_found(unwraps, "src/x.rs", text), [1]);
    assert_eq!(lines_found(unwraps, "src/x/tests.rs", text), [0_usize; 0]);
}
