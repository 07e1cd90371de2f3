//! A rule on modules: no two beside each other need each other, at any depth.
//!
//! A module may use what its parent owns, and a parent its children; that is how a subject is
//! divided into files.

use std::collections::{BTreeMap, BTreeSet};

use super::paths::paths;
use super::source::Source;
use super::sources_in;

/// Each module with the modules beside it that it or its children name, and one place each.
type Arrows = BTreeMap<String, BTreeMap<String, String>>;

/// Folders whose modules may need each other, and why.
const TOGETHER: [&str; 1] = [
    // An event names its worker, and a worker's handle yields its events.
    "src/handle",
];

/// The module that a file is: `src/a/b` for both `src/a/b.rs` and `src/a/b/mod.rs`.
fn module_of(path: &str) -> &str {
    let module = path.strip_suffix(".rs").unwrap_or(path);
    let last = module.rsplit('/').next().unwrap_or_default();
    match last {
        "mod" | "lib" | "main" => module[..module.len() - last.len()].trim_end_matches('/'),
        _ => module,
    }
}

/// Modules of all crates, and the names that each takes from its children.
struct Tree<'a> {
    modules: BTreeSet<&'a str>,
    taken: BTreeMap<(&'a str, String), String>,
}

impl<'a> Tree<'a> {
    fn new(sources: &'a [Source]) -> Self {
        let modules: BTreeSet<&str> = sources.iter().map(|one| module_of(&one.path)).collect();
        let mut taken = BTreeMap::new();
        for source in sources {
            let module = module_of(&source.path);
            let parent = |one: &&&str| one.rsplit_once('/').is_some_and(|(top, _)| top == module);
            for child in modules.iter().filter(parent) {
                let name = child.rsplit('/').next().unwrap_or_default();
                for (_, path) in paths(source, name) {
                    let Some((_, last)) = path.rsplit_once("::") else { continue };
                    taken.insert((module, last.to_owned()), (*child).to_owned());
                }
            }
        }
        Self { modules, taken }
    }

    /// The module that a path in `module` leads to.
    fn target(&self, module: &str, path: &str) -> String {
        let mut names = path.split("::").peekable();
        let mut at = module.to_owned();
        if names.next_if_eq(&"crate").is_some() {
            let root = |place: &&str| {
                let (top, below) = place.split_once("src").unwrap_or((place, ""));
                module.starts_with(top) && below.is_empty()
            };
            let root = self.modules.iter().find(|place| root(place));
            at = root.map_or_else(String::new, |root| (*root).to_owned());
        }
        names.next_if_eq(&"self");
        while names.next_if_eq(&"super").is_some() {
            at.truncate(at.rfind('/').unwrap_or(0));
        }
        for name in names {
            let child = format!("{at}/{name}");
            let is_module = self.modules.contains(child.as_str());
            let owner = || self.taken.get(&(at.as_str(), name.to_owned())).cloned();
            match is_module.then_some(child).or_else(owner) {
                Some(next) => at = next,
                None => break,
            }
        }
        at
    }
}

/// The modules beside each other in which two modules are; `None` if one contains the other.
fn beside<'a>(one: &'a str, other: &'a str) -> Option<(&'a str, &'a str)> {
    let (mut ends, mut pairs) = ((0, 0), one.split('/').zip(other.split('/')));
    let differ = pairs.find(|(one, other)| {
        ends = (ends.0 + one.len() + 1, ends.1 + other.len() + 1);
        one != other
    });
    differ.map(|_| (&one[..ends.0 - 1], &other[..ends.1 - 1]))
}

fn arrows(sources: &[Source]) -> Arrows {
    let tree = Tree::new(sources);
    let mut arrows = Arrows::new();
    for source in sources.iter().filter(|source| !source.is_test_file()) {
        let module = module_of(&source.path);
        for (offset, path) in ["crate", "super"].iter().flat_map(|root| paths(source, root)) {
            let target = tree.target(module, &path);
            let Some((from, to)) = beside(module, &target) else { continue };
            let is_together = TOGETHER
                .iter()
                .any(|top| from.rsplit_once('/').is_some_and(|(one, _)| one == *top));
            if !source.is_test(offset) && !is_together {
                let place = source.finding(offset, format!("names `{path}`")).to_string();
                let from = arrows.entry(from.to_owned()).or_default();
                from.entry(to.to_owned()).or_insert(place);
            }
        }
    }
    arrows
}

/// A cycle, as the places where each of its modules names the next one.
fn cycle(arrows: &Arrows) -> Option<Vec<&str>> {
    fn walk<'a>(arrows: &'a Arrows, way: &mut Vec<&'a str>, done: &mut BTreeSet<&'a str>) -> bool {
        let module = way[way.len() - 1];
        for next in arrows.get(module).into_iter().flat_map(BTreeMap::keys) {
            if let Some(start) = way.iter().position(|one| one == next) {
                way.drain(..start);
                return true;
            }
            way.push(next);
            if !done.contains(next.as_str()) && walk(arrows, way, done) {
                return true;
            }
            way.pop();
        }
        done.insert(module);
        false
    }
    let mut done = BTreeSet::new();
    let mut way = Vec::new();
    let found = arrows.keys().any(|module| {
        way = vec![module.as_str()];
        walk(arrows, &mut way, &mut done)
    });
    let next = |index: usize| way[(index + 1) % way.len()];
    found.then(|| (0..way.len()).map(|at| arrows[way[at]][next(at)].as_str()).collect())
}

#[test]
fn modules_beside_each_other_do_not_need_each_other() {
    let sources = sources_in(&["src", "crates", "loadtest/src"], "rs");
    let found = arrows(&sources);
    for (from, to) in [
        ("src/control_plane", "src/data_path"),
        ("src/command/admin/routes", "src/command/admin/actions"),
        ("crates/sys/src/engine", "crates/sys/src/probe"),
        ("src/dialect/node/bridge", "src/dialect/node/session"),
    ] {
        assert!(found[from].contains_key(to), "the rule sees that {from} names {to}");
    }
    let findings = cycle(&found).unwrap_or_default();
    let reason = "a module below others can be read, tested and moved without them";
    assert!(findings.is_empty(), "\n{}\nthe reason: {reason}\n", findings.join("\n"));
}

#[test]
fn a_cycle_is_found_at_any_depth_and_behind_names_that_a_parent_takes() {
    let source = |path: &str, text: &str| Source::new(path, text);
    let mut made_up = vec![
        source("src/lib.rs", "mod b;\npub use b::{W, Y};\n"),
        source("src/a.rs", "use crate::Y;\n"),
        source("src/b.rs", "use crate::{c::Z, error::Error};\n"),
        source("src/c/mod.rs", "use v::V;\nuse std::fmt;\n"),
        source("src/c/v.rs", "use super::Z;\n"),
    ];
    assert_eq!(cycle(&arrows(&made_up)), None);
    made_up.push(source("src/c/w.rs", "fn f() {\n    crate::a::f()\n}\n"));
    let found = arrows(&made_up);
    let places = cycle(&found).expect("there is one now");
    assert_eq!(places.len(), 3);
    assert_eq!(places[2], "src/c/w.rs:2: names `crate::a::f`");
    made_up.pop();
    made_up.push(source("src/c/w.rs", "use super::V;\n"));
    assert_eq!(cycle(&arrows(&made_up)), None);
    made_up.push(source("src/c/v/deep.rs", "use super::super::w::W;\n"));
    let found = arrows(&made_up);
    let places = cycle(&found).expect("there is one now");
    assert_eq!(
        places,
        ["src/c/v/deep.rs:1: names `super::super::w::W`", "src/c/w.rs:1: names `super::V`"]
    );
}
