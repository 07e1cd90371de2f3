//! The house rules that can be checked automatically, over every Rust file and document.
//!
//! A rule is a function from a file to its findings, a test that applies it to the tree, and a test
//! that shows a finding. Rules read text with comments and literals blanked out; they do not parse
//! Rust, and leave to the compiler and to clippy what those check.

#[path = "tidy/books.rs"]
mod books;
#[path = "tidy/cycles.rs"]
mod cycles;
#[path = "tidy/licences.rs"]
mod licences;
#[path = "tidy/paths.rs"]
mod paths;
#[path = "tidy/promises.rs"]
mod promises;
#[path = "tidy/purity.rs"]
mod purity;
#[path = "tidy/scripts.rs"]
mod scripts;
#[path = "tidy/source.rs"]
mod source;
#[path = "tidy/style.rs"]
mod style;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use source::Source;

/// Folders whose Rust files the rules cover, if they exist.
const ROOTS: [&str; 7] = ["src", "crates", "loadtest", "benches", "tests", "examples", "fuzz"];

/// A place that breaks a rule.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    path: String,
    /// Counted from one.
    line: usize,
    what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.what)
    }
}

/// The project's top folder.
fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files below `folder` that end in `extension`, except build output.
fn files_below(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        if hidden || path.ends_with("target") {
            continue;
        }
        if path.is_dir() {
            files_below(&path, extension, found);
        } else if path.extension().is_some_and(|end| end == extension) {
            found.push(path);
        }
    }
}

/// All files with this extension in these folders, with their text.
fn sources_in(folders: &[&str], extension: &str) -> Vec<Source> {
    let mut paths = Vec::new();
    for folder in folders {
        files_below(&top().join(folder), extension, &mut paths);
    }
    paths.sort();
    paths.iter().map(|path| read(path)).collect()
}

/// Every Rust file of the project.
fn rust_sources() -> Vec<Source> {
    let sources = sources_in(&ROOTS, "rs");
    assert!(sources.len() > 20, "the rules found hardly anything to look at");
    sources
}

fn read(path: &Path) -> Source {
    let text = fs::read_to_string(path).expect("a source file is readable text");
    let name = path.strip_prefix(top()).unwrap_or(path);
    Source::new(&name.to_string_lossy(), &text)
}

/// Applies a rule to every file.
fn hold(sources: &[Source], reason: &str, rule: fn(&Source) -> Vec<Finding>) {
    report(sources.iter().flat_map(rule).collect(), reason);
}

/// Fails with every finding and the reason of the rule, if there are findings.
fn report(findings: Vec<Finding>, reason: &str) {
    let lines: Vec<String> = findings.iter().map(Finding::to_string).collect();
    assert!(lines.is_empty(), "\n{}\nthe reason: {reason}\n", lines.join("\n"));
}

/// The lines that a rule finds in an invented file.
fn lines_found(rule: fn(&Source) -> Vec<Finding>, path: &str, text: &str) -> Vec<usize> {
    rule(&Source::new(path, text)).iter().map(|finding| finding.line).collect()
}

#[test]
fn findings_are_told_with_place_and_reason() {
    let source = Source::new("src/made_up.rs", "one\ntwo\n");
    let finding = source.finding(4, "is bad");
    assert_eq!(finding.to_string(), "src/made_up.rs:2: is bad");
    let failure = std::panic::catch_unwind(|| report(vec![finding], "so be it"));
    let message = failure.expect_err("a finding fails the test");
    let message = message.downcast_ref::<String>().expect("panics carry their text");
    assert!(message.contains("src/made_up.rs:2: is bad"));
    assert!(message.contains("so be it"));
}
