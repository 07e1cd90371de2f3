//! Rules on form: sizes, headers, left-overs, and words that belong in few places.

use super::source::{Source, closing};
use super::{Finding, hold, lines_found, rust_sources, sources_in};

/// Longest line, in characters.
const COLUMNS_MAX: usize = 100;
/// Longest function, from `fn` to its closing brace.
const FUNCTION_LINES_MAX: usize = 70;
/// Longest file.
const FILE_LINES_MAX: usize = 600;
/// From here on a file is better split.
const FILE_LINES_WANTED: usize = 400;

/// Words that mark unfinished work, put together here so that this file does not hold them.
const UNFINISHED: [&str; 3] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("X", "XX")];

/// Where system calls are made.
const SYSTEM_LAYERS: [&str; 2] = ["src/sys/", "loadtest/src/sys/"];

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

fn stray_unsafe(source: &Source) -> Vec<Finding> {
    if SYSTEM_LAYERS.iter().any(|layer| source.path.starts_with(layer)) {
        return Vec::new();
    }
    let words = source.words().filter(|(_, word)| *word == "unsafe");
    words.map(|(offset, _)| source.finding(offset, "`unsafe` outside the system layer")).collect()
}

fn stray_permission(source: &Source) -> Vec<Finding> {
    if SYSTEM_LAYERS.iter().any(|layer| source.path == format!("{layer}mod.rs")) {
        return Vec::new();
    }
    let mut found = Vec::new();
    for level in ["allow(", "expect(", "warn("] {
        for (offset, _) in source.code.match_indices(level) {
            let open = offset + level.len() - 1;
            let end = closing(&source.code, open).unwrap_or(source.code.len());
            if source.code[open..end].contains("unsafe_code") {
                found.push(source.finding(offset, "lifts the ban on `unsafe`"));
            }
        }
    }
    found
}

fn unfinished(source: &Source) -> Vec<Finding> {
    let mut found = Vec::new();
    for word in source.text.split(|letter: char| !letter.is_alphanumeric() && letter != '_') {
        if UNFINISHED.contains(&word) {
            let offset = word.as_ptr() as usize - source.text.as_ptr() as usize;
            found.push(source.finding(offset, format!("`{word}` is left over")));
        }
    }
    for (offset, word) in source.words() {
        let call = source.code[offset + word.len()..].starts_with('!');
        if call && ["dbg", "todo", "unimplemented"].contains(&word) {
            found.push(source.finding(offset, format!("`{word}!` is left over")));
        }
    }
    found
}

fn unwraps(source: &Source) -> Vec<Finding> {
    let calls = source.code.match_indices(".unwrap()");
    let calls = calls.filter(|(offset, _)| !source.is_test(*offset));
    calls.map(|(offset, _)| source.finding(offset, "`.unwrap()` names no invariant")).collect()
}

/// Where a worker of a program ends that has lost its primary: as a library has no `main`.
const LAST_RESORT: &str = "src/sys/process.rs";

fn early_exits(source: &Source) -> Vec<Finding> {
    if source.path.ends_with("src/main.rs") || source.path == LAST_RESORT {
        return Vec::new();
    }
    let calls = source.code.match_indices("process::exit");
    calls.map(|(offset, _)| source.finding(offset, "ends the process")).collect()
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
    assert_eq!(lines_found(long_files, "src/x.rs", &"a\n".repeat(600)), []);
    assert_eq!(lines_found(long_files, "src/x.rs", &"a\n".repeat(601)), [1]);
}

#[test]
fn unsafe_code_stays_in_the_system_layer() {
    let reason = "whoever audits memory safety reads the system layer and nothing else";
    hold(&rust_sources(), reason, stray_unsafe);
    let text = "// unsafe\n#![deny(unsafe_code)]\nlet a = \"unsafe\";\nunsafe { b() }\n";
    assert_eq!(lines_found(stray_unsafe, "src/x.rs", text), [4]);
    assert_eq!(lines_found(stray_unsafe, "src/sys/x.rs", text), []);
}

#[test]
fn one_file_a_crate_permits_unsafe_code() {
    let reason = "the compiler keeps `unsafe` out as long as nobody lifts the ban";
    hold(&rust_sources(), reason, stray_permission);
    let text = "#![deny(unsafe_code)]\n#[allow(\n    unsafe_code,\n    reason = \"b\"\n)]\n";
    assert_eq!(lines_found(stray_permission, "src/sys/x.rs", text), [2]);
    assert_eq!(lines_found(stray_permission, "src/sys/mod.rs", text), []);
}

#[test]
fn nothing_is_left_over() {
    let reason = "unfinished work belongs in the issues, where it is seen";
    hold(&rust_sources(), reason, unfinished);
    hold(&sources_in(&["docs"], "md"), reason, unfinished);
    let text = format!("// {}: later\ndbg!(a);\n// dbg!(b)\nlet todo = 1;\n", UNFINISHED[0]);
    assert_eq!(lines_found(unfinished, "src/x.rs", &text), [1, 2]);
}

#[test]
fn expectations_are_named() {
    let reason = "write `expect` with the invariant that makes it hold";
    hold(&rust_sources(), reason, unwraps);
    let text = "a.unwrap();\n// b.unwrap()\n#[cfg(test)]\nmod tests { fn c() { d.unwrap() } }\n";
    assert_eq!(lines_found(unwraps, "src/x.rs", text), [1]);
    assert_eq!(lines_found(unwraps, "src/x/tests.rs", text), []);
}

#[test]
fn only_main_and_lost_workers_end_the_process() {
    let reason = "an exit in the middle skips every destructor, sockets and children included";
    hold(&rust_sources(), reason, early_exits);
    let text = "use std::process;\nfn a() { process::exit(1) }\n";
    assert_eq!(lines_found(early_exits, "src/x.rs", text), [2]);
    assert_eq!(lines_found(early_exits, "src/main.rs", text), []);
}
