//! Paths such as `crate::a::{b, c}`, found in code and written out.

use super::source::Source;

/// Every path that begins with `root`, its groups in braces written out.
pub(crate) fn paths(source: &Source, root: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (offset, word) in source.words() {
        let mut rest = &source.code[offset + word.len()..];
        let before = source.code[..offset].trim_end();
        if word == root && rest.starts_with("::") && !before.ends_with("::") {
            rest = &rest[2..];
            let mut tree = Vec::new();
            expand(&mut rest, root, &mut tree);
            found.extend(tree.into_iter().map(|path| (offset, path)));
        }
    }
    found
}

/// Reads one branch of a path off `rest` and writes down every leaf.
fn expand(rest: &mut &str, prefix: &str, leaves: &mut Vec<String>) {
    *rest = rest.trim_start();
    if let Some(group) = rest.strip_prefix('{') {
        *rest = group;
        while !rest.trim_start().is_empty() && !rest.trim_start().starts_with('}') {
            expand(rest, prefix, leaves);
            // The new name of a leaf does not matter.
            let next = rest.find([',', '}']).unwrap_or(rest.len());
            *rest = rest[next..].trim_start_matches(',');
        }
        *rest = rest.trim_start().trim_start_matches('}');
        return;
    }
    let length = rest.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    let (word, behind) = rest.split_at(length.unwrap_or(rest.len()));
    if word.is_empty() {
        // A star, or the start of something other than a path.
        leaves.push(format!("{prefix}::*"));
        *rest = behind.trim_start_matches('*');
        return;
    }
    let path = format!("{prefix}::{word}");
    *rest = behind;
    match behind.strip_prefix("::") {
        Some(deeper) if !deeper.starts_with('<') => {
            *rest = deeper;
            expand(rest, &path, leaves);
        }
        _ => leaves.push(path),
    }
}

#[test]
fn paths_are_written_out() {
    let text =
        "use crate::{a, b::{self as z, c::d}, e::*};\nlet f = ::crate::g::<h>();\ni::crate_x::j";
    let source = Source::new("src/x.rs", text);
    let found: Vec<String> = paths(&source, "crate").into_iter().map(|(_, path)| path).collect();
    assert_eq!(found, ["crate::a", "crate::b::self", "crate::b::c::d", "crate::e::*"]);
}
