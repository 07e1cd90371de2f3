//! A rule on external code: every linked crate has a licence that `deny.toml` allows. `cargo deny`
//! checks the same and more, where it is installed.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use serde_json::Value;

use super::top;

/// The licences that the list in `deny.toml` allows.
fn allowed(deny: &str) -> BTreeSet<&str> {
    let list = deny.split_once("allow = [").map_or("", |(_, list)| list);
    let list = list.split(']').next().unwrap_or("");
    list.lines().filter_map(|line| line.split('"').nth(1)).collect()
}

/// Whether the allowed licences satisfy an SPDX expression. Older manifests write `/` for OR.
fn is_met(expression: &str, allowed: &BTreeSet<&str>) -> bool {
    let plain = expression.replace('/', " OR ").replace(['(', ')'], " ");
    let alternatives = plain.split(" OR ").map(|one| one.split(" AND ").map(str::trim));
    let mut met = alternatives.map(|mut all| all.all(|licence| allowed.contains(licence)));
    // An expression in brackets is read as if OR bound tighter than AND, which is stricter.
    if expression.contains('(') {
        let groups = plain.split(" AND ");
        return groups
            .into_iter()
            .all(|group| group.split(" OR ").any(|licence| allowed.contains(licence.trim())));
    }
    met.any(|met| met)
}

#[test]
fn every_licence_is_allowed() {
    let deny = fs::read_to_string(top().join("deny.toml")).expect("the list is there");
    let allowed = allowed(&deny);
    assert!(allowed.len() > 2, "the list is not found");
    let arguments = ["metadata", "--format-version", "1", "--locked", "--all-features"];
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let output = Command::new(cargo).args(arguments).current_dir(top()).output();
    let output = output.expect("cargo runs this test");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo writes JSON");
    let packages = metadata["packages"].as_array().expect("a list");
    assert!(packages.len() > 50, "hardly anything to look at");
    let refused: Vec<String> = packages
        .iter()
        .filter(|one| !is_met(one["license"].as_str().unwrap_or("none"), &allowed))
        .map(|one| format!("{} {}: {}", one["name"], one["version"], one["license"]))
        .collect();
    assert_eq!(refused, Vec::<String>::new(), "not in deny.toml");
}

#[test]
fn expressions_are_understood() {
    let allowed =
        allowed("x = 1\nallow = [\n \"MIT\",\n  \"Apache-2.0\", # \"Zlib\"\n]\n\"BSD\"\n");
    assert_eq!(allowed, ["Apache-2.0", "MIT"].into());
    for (expression, met) in [
        ("MIT", true),
        ("GPL-3.0 OR MIT", true),
        ("GPL-3.0/MIT", true),
        ("MIT AND Zlib", false),
        ("(MIT OR Zlib) AND Apache-2.0", true),
        ("(Zlib OR BSD) AND MIT", false),
        ("none", false),
    ] {
        assert_eq!(is_met(expression, &allowed), met, "{expression}");
    }
}
