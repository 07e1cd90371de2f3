//! Rules on promises of documents: the tests that they name exist, and every example is run.

use super::source::Source;
use super::{Finding, read, report, sources_in, top};

/// The documents with tests in the last columns of their tables, and their minimum number of rows.
const BOOKS: [(&str, usize); 2] = [("docs/NODE-PARITY.md", 50), ("docs/SECURITY.md", 20)];
/// Folder of a test whose name has no path.
const DEFAULT_FOLDER: &str = "tests/cluster";
/// Heading of a column of tests.
const HEADING: &str = "tests";

/// The tests of a row by line, file and name; empty if a row names none.
type Row = (usize, Vec<(String, String)>);

/// The rows of the tables whose last column holds tests.
fn rows(book: &Source) -> Vec<Row> {
    let mut found = Vec::new();
    let mut inside = false;
    for (number, line) in book.text.lines().enumerate() {
        let Some(row) = line.trim().strip_prefix('|') else {
            inside = false;
            continue;
        };
        let last = row.trim_end_matches('|').rsplit('|').next().unwrap_or("").trim();
        let ruler = last.chars().all(|letter| "-: ".contains(letter)) && !last.is_empty();
        if last == HEADING {
            inside = true;
        } else if inside && !ruler {
            found.push((number + 1, tests_in(last)));
        }
    }
    found
}

/// The tests that a cell names, in backticks.
fn tests_in(cell: &str) -> Vec<(String, String)> {
    let names = cell.split('`').skip(1).step_by(2);
    let tests = names.filter_map(|name| name.split_once("::"));
    let place = |(file, name): (&str, &str)| match file.ends_with(".rs") {
        true => (file.to_owned(), name.to_owned()),
        false => (format!("{DEFAULT_FOLDER}/{file}.rs"), name.to_owned()),
    };
    tests.map(place).collect()
}

/// Whether a file has a test of this name: one with the attribute, or one in a list of `trials!` or
/// `on_each_engine!`.
fn has_test(text: &str, name: &str) -> bool {
    let Some((before, _)) = text.split_once(&format!("fn {name}(")) else { return false };
    let attribute = before.trim_end().ends_with("#[test]");
    let mut lists = text.split("on_each_engine! {").skip(1);
    if lists.any(|list| list.lines().any(|line| line.trim() == name)) {
        return true;
    }
    let mut listed = text.split("trials!(").skip(1).filter_map(|rest| rest.split(')').next());
    attribute || listed.any(|names| names.split(',').any(|one| one.trim() == name))
}

/// Errors in a document's tests; `text_of` returns the text of a file.
fn broken(book: &Source, text_of: impl Fn(&str) -> Option<String>) -> Vec<Finding> {
    let mut found = Vec::new();
    let finding = |line, what| Finding { path: book.path.clone(), line, what };
    for (line, tests) in rows(book) {
        if tests.is_empty() {
            found.push(finding(line, "is without a test".to_owned()));
        }
        for (file, name) in tests {
            if !text_of(&file).is_some_and(|text| has_test(&text, &name)) {
                found.push(finding(line, format!("`{file}` has no test `{name}`")));
            }
        }
    }
    found
}

#[test]
fn tests_that_are_named_exist() {
    let text_of = |file: &str| std::fs::read_to_string(top().join(file)).ok();
    for (name, least) in BOOKS {
        let book = read(&top().join(name));
        assert!(rows(&book).len() > least, "the tables of {name} are not found");
        report(broken(&book, text_of), "what is promised is shown");
    }
}

#[test]
fn tests_that_are_not_there_are_found() {
    let text = "| a | tests |\n| --- | --- |\n| 1 | `x::one`, `src/y.rs::two` |\n| 2 | none |\n\
        | 3 | `x::three` |\n| 4 | `z::one` |\n\n| no | tests here |\n| 5 | none |\n";
    let text_of = |file: &str| match file {
        "tests/cluster/x.rs" => Some("trials!(\n one,\n);\nfn one() {}\nfn three() {}".to_owned()),
        "src/y.rs" => Some("#[test]\nfn two() {}".to_owned()),
        _ => None,
    };
    let found = broken(&Source::new("docs/made_up.md", text), text_of);
    let lines: Vec<usize> = found.iter().map(|finding| finding.line).collect();
    assert_eq!(lines, [4, 5, 6], "{found:?}");
}

#[test]
fn examples_are_run() {
    let tests: String = sources_in(&["tests"], "rs").into_iter().map(|one| one.text).collect();
    let examples = sources_in(&["examples"], "rs");
    assert!(!examples.is_empty());
    let name = |path: &str| path.trim_start_matches("examples/").trim_end_matches(".rs").to_owned();
    let unused = examples.iter().filter(|one| !tests.contains(&format!("\"{}\"", name(&one.path))));
    let findings = unused.map(|one| one.finding(0, "is run by no test")).collect();
    report(findings, "an example that is never run soon stops working");
}
