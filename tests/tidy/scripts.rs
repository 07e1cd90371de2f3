//! Rules on the form of the scripts that Node workers load, as for Rust files.
//!
//! Owns finding functions of JavaScript: in these files one begins at the margin or one step in, in
//! a class, and ends with the next brace at the same depth.

use super::source::Source;
use super::{Finding, hold, lines_found, sources_in};

/// Longest line, in characters.
const COLUMNS_MAX: usize = 100;
/// Longest function, from its first line to its closing brace.
const FUNCTION_LINES_MAX: usize = 70;
/// Longest file.
const FILE_LINES_MAX: usize = 500;

fn scripts() -> Vec<Source> {
    let sources = sources_in(&["src"], "cjs");
    assert!(!sources.is_empty(), "the rules found nothing to look at");
    sources
}

fn without_header(source: &Source) -> Vec<Finding> {
    if source.text.starts_with("// ") {
        return Vec::new();
    }
    vec![source.finding(0, "does not open with a comment")]
}

/// Lines with their offsets.
fn lines(source: &Source) -> impl Iterator<Item = (usize, &str)> {
    source.text.split('\n').scan(0, |offset, line| {
        let begin = *offset;
        *offset += line.len() + 1;
        Some((begin, line))
    })
}

fn long_lines(source: &Source) -> Vec<Finding> {
    let long = lines(source).filter(|(_, line)| line.chars().count() > COLUMNS_MAX);
    long.map(|(offset, _)| source.finding(offset, "is too long a line")).collect()
}

fn long_functions(source: &Source) -> Vec<Finding> {
    let mut open: Vec<(usize, usize, usize)> = Vec::new();
    let mut found = Vec::new();
    for (number, (offset, line)) in lines(source).enumerate() {
        let depth = line.len() - line.trim_start().len();
        if let Some((_, first, begin)) =
            open.pop_if(|(at, ..)| line.trim_start().starts_with('}') && *at == depth)
        {
            let count = number - first + 1;
            if count > FUNCTION_LINES_MAX {
                let what = format!("has {count} lines, more than {FUNCTION_LINES_MAX}");
                found.push(source.finding(begin, what));
            }
        }
        let begins = line.ends_with('{') && !line.trim_start().starts_with("class ");
        if begins && depth <= 2 {
            open.push((depth, number, offset));
        }
    }
    found
}

fn long_files(source: &Source) -> Vec<Finding> {
    if source.text.lines().count() <= FILE_LINES_MAX {
        return Vec::new();
    }
    vec![source.finding(0, "is too long a file")]
}

#[test]
fn scripts_have_the_form_of_rust_files() {
    let reason = "what Node workers load is read as often as the rest";
    for rule in [without_header, long_lines, long_functions, long_files] {
        hold(&scripts(), reason, rule);
    }
}

#[test]
fn scripts_without_that_form_are_found() {
    assert_eq!(lines_found(without_header, "src/x.cjs", "'use strict';\n"), [1]);
    let text = format!("// {}\n{}\n", "ß".repeat(97), "ß".repeat(101));
    assert_eq!(lines_found(long_lines, "src/x.cjs", &text), [2]);
    let body = "    call();\n".repeat(68);
    let text =
        format!("class A {{\n  b() {{\n{body}  }}\n\n  c() {{\n{body}    call();\n  }}\n}}\n");
    assert_eq!(lines_found(long_functions, "src/x.cjs", &text), [73]);
    assert_eq!(lines_found(long_files, "src/x.cjs", &"a\n".repeat(500)), [0_usize; 0]);
    assert_eq!(lines_found(long_files, "src/x.cjs", &"a\n".repeat(501)), [1]);
}
