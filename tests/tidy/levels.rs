//! Rules on direction: who may name whom. The table below is the project's layering as data.

use super::paths::paths;
use super::source::Source;
use super::{Finding, hold, lines_found, rust_sources};

/// Which parts of the system layer a module's code may name; its tests may name any.
#[derive(Clone, Copy, Debug)]
enum Kernel {
    /// Its level allows it to call the kernel.
    Any,
    /// Only these, for the plain data in them.
    Only(&'static [&'static str]),
}

/// A module at the top of `src`, a file or a folder.
#[derive(Debug)]
struct Module {
    name: &'static str,
    level: u8,
    kernel: Kernel,
    /// Modules of the same level that it may name, each with the reason.
    beside: &'static [(&'static str, &'static str)],
}

const fn module(
    level: u8,
    name: &'static str,
    kernel: Kernel,
    beside: &'static [(&'static str, &'static str)],
) -> Module {
    Module { name, level, kernel, beside }
}

use Kernel::{Any, Only};

/// Every module, lowest level first. A module names lower levels, and beside it only what its row
/// says. A new file or folder in `src` needs a row here, which is the moment to ask where it
/// belongs.
const MODULES: [Module; 26] = [
    // Words that everything else uses.
    module(0, "id", Only(&[]), &[]),
    module(0, "error", Only(&[]), &[]),
    module(0, "address", Only(&[]), &[("error", "an address that does not parse says why")]),
    // The kernel.
    module(1, "sys", Any, &[]),
    // Decisions: values in, values out.
    module(2, "topology", Only(&["cpu"]), &[]),
    module(2, "schedule", Only(&[]), &[]),
    module(2, "handoff", Only(&[]), &[]),
    module(2, "handler", Only(&[]), &[]),
    module(2, "work", Only(&[]), &[]),
    module(
        2,
        "settings",
        Only(&[]),
        &[
            ("handler", "what is served is a setting, defined where it is served"),
            ("schedule", "so are the rules of choosing"),
            ("topology", "so are the number of workers and their CPUs"),
            ("work", "and so is the work that a request costs"),
        ],
    ),
    // The data path.
    module(3, "board", Any, &[]),
    module(3, "control", Any, &[]),
    module(3, "check", Any, &[]),
    module(3, "primary", Any, &[("board", "it counts what it hands over")]),
    module(
        3,
        "worker",
        Any,
        &[
            ("board", "it counts what it claims and finishes"),
            ("control", "its primary talks to it there"),
        ],
    ),
    module(
        3,
        "runtime",
        Any,
        &[
            ("board", "it counts what it claims and finishes"),
            ("worker", "it is a worker: same inheritance, same conversation with the primary"),
        ],
    ),
    module(
        3,
        "dialect",
        Any,
        &[
            ("board", "it counts for workers that cannot"),
            ("primary", "what a worker does not take goes back to the data path"),
        ],
    ),
    // The cluster.
    module(4, "cluster", Any, &[]),
    module(4, "metrics", Any, &[("cluster", "it shows the cluster's events and counts")]),
    // What the command does with a cluster, and measuring.
    module(5, "keeper", Any, &[]),
    module(5, "harness", Any, &[]),
    // What other programs do with it.
    module(5, "adapter", Any, &[]),
    // The shell.
    module(6, "cli", Any, &[]),
    module(6, "main", Any, &[("cli", "it runs what the command line asks for")]),
    module(6, "lib", Any, &[]),
    module(6, "bin", Any, &[("cli", "a further command shares the types of the first")]),
];

fn row(name: &str) -> Option<&'static Module> {
    MODULES.iter().find(|module| module.name == name)
}

/// The parts of a file's module path: `src/a/b/mod.rs` and `src/a/b.rs` are `a`, `b`.
fn module_path(source: &Source) -> Vec<&str> {
    let inside = source.path.trim_start_matches("src/").trim_end_matches(".rs");
    inside.split('/').filter(|part| *part != "mod").collect()
}

fn wrong_way(source: &Source) -> Vec<Finding> {
    if !source.path.starts_with("src/") || source.path == "src/lib.rs" {
        return Vec::new();
    }
    let name = module_path(source)[0];
    let Some(own) = row(name) else {
        return vec![source.finding(0, format!("`{name}` has no row in the table of levels"))];
    };
    let mut found = Vec::new();
    for root in ["crate", "clusterlb"] {
        for (offset, path) in paths(source, root) {
            let problem = objection(own, &path, source.is_test(offset));
            found.extend(problem.map(|what| source.finding(offset, what)));
        }
    }
    found
}

/// What speaks against a module naming a path from the crate's root on.
fn objection(own: &Module, path: &str, in_test: bool) -> Option<String> {
    let mut parts = path.split("::").skip(1);
    let other = parts.next()?;
    if other == own.name {
        return None;
    }
    let Some(target) = row(other) else {
        return Some(format!("`{path}` has no row in the table of levels"));
    };
    let beside = own.beside.iter().any(|(name, _)| *name == other);
    if target.level > own.level || target.level == own.level && !beside {
        let (mine, theirs) = (own.level, target.level);
        return Some(format!("`{}` (level {mine}) names `{path}` (level {theirs})", own.name));
    }
    match own.kernel {
        Only(allowed) if other == "sys" && !in_test => {
            let part = parts.next().unwrap_or("*");
            let refused = !allowed.contains(&part);
            refused.then(|| format!("`{}` decides and must not name `{path}`", own.name))
        }
        _ => None,
    }
}

/// Finds `super::super::…` that ends in the crate's root, where the table would not see it.
fn climbing(source: &Source) -> Vec<Finding> {
    if !source.path.starts_with("src/") {
        return Vec::new();
    }
    let depth = module_path(source).len();
    let mut found = Vec::new();
    let mut end = 0;
    for (offset, _) in source.code.match_indices("super::") {
        if offset < end {
            continue;
        }
        let mut steps = 0;
        end = offset;
        while source.code[end..].starts_with("super::") {
            steps += 1;
            end += "super::".len();
        }
        if steps >= depth + source.modules_around(offset) {
            found.push(source.finding(offset, "climbs to the root; write `crate::`"));
        }
    }
    found
}

#[test]
fn modules_name_lower_levels_only() {
    let reason = "a lower level can be understood, tested and kept without the higher ones";
    hold(&rust_sources(), reason, wrong_way);
    let found = |path: &str, text: &str| lines_found(wrong_way, path, text);
    assert_eq!(found("src/board.rs", "use crate::error::Error;\nuse crate::cluster;\n"), [2]);
    assert_eq!(found("src/board.rs", "//!\nuse crate::{id, worker::{a, b}};\n"), [2, 2]);
    assert_eq!(found("src/primary/a.rs", "use crate::board;\nuse crate::worker;\n"), [2]);
    assert_eq!(found("src/primary/a.rs", "fn a() { crate::primary::b() }\n"), []);
    assert_eq!(found("src/main.rs", "use clusterlb::cli;\nuse clusterlb::nowhere;\n"), [2]);
    assert_eq!(found("src/made_up/mod.rs", "//!\n"), [1]);
}

#[test]
fn decisions_name_what_is_allowed_of_the_kernel() {
    let found = |path: &str, text: &str| lines_found(wrong_way, path, text);
    let text = "use crate::sys::cpu;\nuse crate::sys::ring::Ring;\nuse crate::sys;\n";
    assert_eq!(found("src/topology.rs", text), [2, 3]);
    assert_eq!(found("src/topology/tests.rs", text), []);
    assert_eq!(found("src/worker/mod.rs", text), []);
}

#[test]
fn the_table_is_in_order() {
    assert!(MODULES.is_sorted_by_key(|module| module.level));
    for module in &MODULES {
        for (name, reason) in module.beside {
            let other = row(name).expect("an exception names a module of the table");
            assert_eq!(other.level, module.level, "{name} beside {}", module.name);
            assert!(!reason.is_empty());
        }
    }
}

#[test]
fn nobody_climbs_around_the_table() {
    hold(&rust_sources(), "the table of levels sees paths that begin with `crate`", climbing);
    let text = "use super::super::board;\nuse super::a;\nmod b { use super::super::c; }\n";
    assert_eq!(lines_found(climbing, "src/worker/inbox.rs", text), [1]);
    assert_eq!(lines_found(climbing, "src/board.rs", "use super::error;\n"), [1]);
    assert_eq!(lines_found(climbing, "src/board.rs", "mod tests { use super::*; }\n"), []);
}
