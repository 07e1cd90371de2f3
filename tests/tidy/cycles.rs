//! A rule on the library's modules: no two of them need each other.

use std::collections::{BTreeMap, BTreeSet};

use super::paths::paths;
use super::source::Source;
use super::sources_in;

/// Each module of the library with the modules that it names by `crate::`, and one place each.
type Arrows = BTreeMap<String, BTreeMap<String, String>>;

/// The top-level module that a file of the library belongs to.
fn module_of(path: &str) -> Option<&str> {
    let module = path.strip_prefix("src/")?.split('/').next()?;
    let module = module.strip_suffix(".rs").unwrap_or(module);
    (!matches!(module, "lib" | "main" | "command")).then_some(module)
}

/// The modules whose names `lib.rs` re-exports.
fn reexports<'a>(sources: &[Source], modules: &BTreeSet<&'a str>) -> BTreeMap<String, &'a str> {
    let library = sources.iter().filter(|source| source.path == "src/lib.rs");
    let names = library.flat_map(|source| {
        modules.iter().flat_map(|module| {
            let paths = paths(source, module).into_iter();
            paths.filter_map(|(_, path)| Some((path.rsplit_once("::")?.1.to_owned(), *module)))
        })
    });
    names.collect()
}

fn arrows(sources: &[Source]) -> Arrows {
    let modules: BTreeSet<&str> = sources.iter().filter_map(|one| module_of(&one.path)).collect();
    let reexports = reexports(sources, &modules);
    let mut arrows = Arrows::new();
    for source in sources {
        let Some(from) = module_of(&source.path) else { continue };
        for (offset, path) in paths(source, "crate") {
            let name = path.split("::").nth(1).unwrap_or_default();
            let to = reexports.get(name).copied().unwrap_or(name);
            if to != from && modules.contains(to) {
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
fn modules_of_the_library_do_not_need_each_other() {
    let sources = sources_in(&["src"], "rs");
    let found = arrows(&sources);
    assert!(found["control_plane"].contains_key("data_path"), "the rule sees what is there");
    let findings = cycle(&found).unwrap_or_default();
    let reason = "a module below others can be read, tested and moved without them";
    assert!(findings.is_empty(), "\n{}\nthe reason: {reason}\n", findings.join("\n"));
    let source = |path: &str, text: &str| Source::new(path, text);
    let mut made_up = vec![
        source("src/lib.rs", "mod b;\npub use b::{W, Y};\n"),
        source("src/a/x.rs", "use crate::Y;\n"),
        source("src/b.rs", "use crate::{c::Z, error::Error};\n"),
        source("src/c/mod.rs", "use std::fmt;\n"),
    ];
    assert_eq!(cycle(&arrows(&made_up)), None);
    made_up.push(source("src/c/w.rs", "fn f() {\n    crate::a::f()\n}\n"));
    let found = arrows(&made_up);
    let places = cycle(&found).expect("there is one now");
    assert_eq!(places.len(), 3);
    assert_eq!(places[2], "src/c/w.rs:2: names `crate::a::f`");
}
