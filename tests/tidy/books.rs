//! Rules on the project's statements about itself: every dependency is accounted for, and no file
//! names a place that exists on one machine only.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use super::source::Source;
use super::{Finding, hold, lines_found, read, report, sources_in, top};

/// The document with a table that names every dependency in backticks in its first column.
const BOOK: &str = "docs/ARCHITECTURE.md";
/// The manifests whose dependencies it accounts for.
const MANIFESTS: [&str; 7] = [
    "Cargo.toml",
    "crates/harness/Cargo.toml",
    "crates/protocol/Cargo.toml",
    "crates/schedule/Cargo.toml",
    "crates/sys/Cargo.toml",
    "fuzz/Cargo.toml",
    "loadtest/Cargo.toml",
];
/// Crates that measure the server from outside.
const OUTSIDE: [&str; 2] = ["crates/harness/Cargo.toml", "loadtest/Cargo.toml"];
/// The registry of every dependency.
const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Places that a reader does not have, split so that this file does not contain them.
const ELSEWHERE: [(&str, &str); 5] = [
    (concat!("/ro", "ot/"), "a home folder"),
    (concat!("/ho", "me/"), "a home folder"),
    (concat!("/wo", "rk/"), "a working copy"),
    (concat!("/tmp", "/h-"), "a working copy"),
    (concat!("..", "/shared/"), "a page that is not part of the project"),
];

/// The dependencies of a manifest with the lines that name them, of any kind.
fn dependencies(manifest: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut inside = false;
    let mut depth = 0_usize;
    for (number, line) in manifest.lines().enumerate() {
        let line = line.split('#').next().unwrap_or("").trim();
        if depth == 0 && line.starts_with('[') {
            let section = line.trim_matches(['[', ']']);
            let own = !section.starts_with("workspace.");
            inside = own && section.ends_with("dependencies");
            let table = section.rsplit_once("dependencies.");
            found.extend(table.filter(|_| own).map(|(_, name)| (number + 1, name.to_owned())));
        } else if let (true, 0, Some((name, _))) = (inside, depth, line.split_once('=')) {
            let name = name.split('.').next().unwrap_or(name).trim();
            found.push((number + 1, name.trim_matches('"').to_owned()));
        }
        if !line.starts_with('[') || depth > 0 {
            depth += line.matches(['[', '{']).count();
            depth = depth.saturating_sub(line.matches([']', '}']).count());
        }
    }
    found
}

/// Names in backticks in the first column of a document's tables.
fn accounted_for(book: &str) -> BTreeSet<&str> {
    let rows = book.lines().filter_map(|line| line.trim().strip_prefix('|'));
    let cells = rows.map(|row| row.split('|').next().unwrap_or(""));
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect()
}

/// The dependencies of a manifest that a document does not account for.
fn unaccounted(path: &str, manifest: &str, book: &str) -> Vec<Finding> {
    let known = accounted_for(book);
    let own = |name: &str| name == "loadtest" || name.starts_with("clusterlb");
    let unknown = dependencies(manifest).into_iter();
    let unknown = unknown.filter(|(_, name)| !own(name) && !known.contains(&**name));
    let finding = |(line, name)| Finding {
        path: path.to_owned(),
        line,
        what: format!("`{name}` has no row in {BOOK}"),
    };
    unknown.map(finding).collect()
}

fn elsewhere(source: &Source) -> Vec<Finding> {
    let mut found = Vec::new();
    for (place, whose) in ELSEWHERE {
        for (offset, _) in source.text.match_indices(place) {
            // A path that continues another word is a different place.
            let before = source.text[..offset].chars().next_back();
            let goes_on =
                before.is_some_and(|letter| letter.is_alphanumeric() || "_-.*}".contains(letter));
            if !goes_on {
                found.push(source.finding(offset, format!("names `{place}`, {whose}")));
            }
        }
    }
    found
}

fn other_registries(lock: &Source) -> Vec<Finding> {
    let mut found = Vec::new();
    for (offset, _) in lock.text.match_indices("source = ") {
        let line = lock.text[offset..].lines().next().unwrap_or("");
        if !line.contains(CRATES_IO) {
            found.push(lock.finding(offset, format!("has {line}")));
        }
    }
    found
}

/// Every text file that git lists, or all files without git.
fn kept_files() -> Vec<Source> {
    let arguments = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let listed = Command::new("git").args(arguments).current_dir(top()).output();
    let Some(listed) = listed.ok().filter(|output| output.status.success()) else {
        let endings = ["rs", "md", "toml", "sh", "js", "yml", "service", "json"];
        return endings.iter().flat_map(|ending| sources_in(&["."], ending)).collect();
    };
    let names = String::from_utf8_lossy(&listed.stdout).into_owned();
    let paths = names.split('\0').filter(|name| !name.is_empty()).map(|name| top().join(name));
    let texts = paths.filter(|path| fs::read_to_string(path).is_ok());
    texts.map(|path| read(&path)).collect()
}

#[test]
fn every_dependency_is_accounted_for() {
    let reason = "a dependency is code that others write: the table says what each one saves";
    let book = fs::read_to_string(top().join(BOOK));
    let book = book.unwrap_or_else(|error| panic!("{BOOK} is missing: {error}; {reason}"));
    let mut findings = Vec::new();
    for path in MANIFESTS {
        let manifest = fs::read_to_string(top().join(path)).expect("the manifest is there");
        findings.extend(unaccounted(path, &manifest, &book));
    }
    report(findings, reason);
}

#[test]
fn an_unaccounted_dependency_is_found() {
    let manifest = "[package]\nname = \"a\"\n[dependencies]\nb = \"1\"\nc.workspace = true\n\
                    d = { version = \"1\", features = [\n    \"e\",\n] } # f = 1\n\
                    [target.'cfg(unix)'.dev-dependencies]\ng-h = \"1\"\n\
                    [dependencies.i]\nversion = \"1\"\n[workspace.dependencies]\nj = \"1\"\n\
                    [lints]\nworkspace = true\n";
    let names: Vec<String> = dependencies(manifest).into_iter().map(|(_, name)| name).collect();
    assert_eq!(names, ["b", "c", "d", "g-h", "i"]);
    let book = "| crate | saves |\n| --- | --- |\n| `b`, `c` | `d` |\n| `g-h` | x |\n`i`\n";
    let lines: Vec<usize> =
        unaccounted("Cargo.toml", manifest, book).iter().map(|finding| finding.line).collect();
    assert_eq!(lines, [6, 11]);
}

/// The lines of a manifest that make a crate depend on the server, under its name or another.
fn server_dependencies(manifest: &str) -> Vec<usize> {
    let named = dependencies(manifest).into_iter().filter(|(_, name)| name == "clusterlb");
    let renamed = manifest.lines().enumerate();
    let renamed = renamed.filter(|(_, line)| line.contains("package = \"clusterlb\""));
    named.map(|(line, _)| line).chain(renamed.map(|(number, _)| number + 1)).collect()
}

#[test]
fn what_measures_the_server_is_built_without_it() {
    for path in OUTSIDE {
        let manifest = fs::read_to_string(top().join(path)).expect("it is there");
        assert_eq!(
            server_dependencies(&manifest),
            [0_usize; 0],
            "{path} must not share the server's code"
        );
    }
    let made_up = "[dependencies]\na = { package = \"clusterlb\" }\nclusterlb.path = \"..\"\n";
    assert_eq!(server_dependencies(made_up), [3, 2]);
}

#[test]
fn the_project_speaks_of_itself_alone() {
    let reason = "a place that exists on one machine tells a reader nothing and may tell too much";
    let sources = kept_files();
    assert!(sources.len() > 20, "the rule found hardly anything to look at");
    hold(&sources, reason, elsewhere);
    let [(home, _), _, (copy, _), ..] = ELSEWHERE;
    let text = format!("cd {home}a\ncd /srv/a{copy}b\n\"{copy}c\"\n");
    assert_eq!(lines_found(elsewhere, "README.md", &text), [1, 3]);
}

#[test]
fn dependencies_come_from_one_place() {
    let lock = read(&top().join("Cargo.lock"));
    hold(&[lock], "a lock file that names another registry builds nowhere else", other_registries);
    let text = format!("source = \"{CRATES_IO}\"\nsource = \"git+https://example.org/a\"\n");
    assert_eq!(lines_found(other_registries, "Cargo.lock", &text), [2]);
}
