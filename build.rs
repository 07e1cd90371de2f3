//! Lets `clusterlb --version` name the commit and the features that it was built with.
//!
//! The commit is that of CLUSTERLB_COMMIT, the package or the checkout, the first that tells it.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=CLUSTERLB_COMMIT");
    let folder = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    let folder = Path::new(&folder);
    let given = env::var("CLUSTERLB_COMMIT").ok().filter(|commit| !commit.is_empty());
    let commit = given.or_else(|| packaged(folder)).or_else(|| checked_out(folder));
    println!("cargo:rustc-env=CLUSTERLB_BUILD_COMMIT={}", commit.as_deref().unwrap_or("unknown"));
    let features = env::vars().filter_map(|(name, _)| {
        let name = name.strip_prefix("CARGO_FEATURE_")?.to_lowercase().replace('_', "-");
        (name != "default").then_some(name)
    });
    let mut features: Vec<String> = features.collect();
    features.sort();
    println!("cargo:rustc-env=CLUSTERLB_BUILD_FEATURES={}", features.join(", "));
}

/// The commit that `cargo package` has written down.
fn packaged(folder: &Path) -> Option<String> {
    let text = fs::read_to_string(folder.join(".cargo_vcs_info.json")).ok()?;
    let (_, behind) = text.split_once("\"sha1\"")?;
    let commit = behind.split('"').nth(1)?;
    Some(commit.chars().take(12).collect())
}

/// The commit of the checkout. In a debug build it is left out: every commit would build anew.
fn checked_out(folder: &Path) -> Option<String> {
    if env::var("PROFILE").as_deref() != Ok("release") {
        return None;
    }
    // A checkout around a copy of this package has other commits.
    if fs::canonicalize(git(folder, &["rev-parse", "--show-toplevel"])?).ok()?
        != fs::canonicalize(folder).ok()?
    {
        return None;
    }
    let moves = git(folder, &["rev-parse", "--git-path", "logs/HEAD"])?;
    println!("cargo:rerun-if-changed={}", folder.join(moves).display());
    git(folder, &["rev-parse", "--short=12", "HEAD"])
}

fn git(folder: &Path, words: &[&str]) -> Option<String> {
    let told = Command::new("git").arg("-C").arg(folder).args(words).output().ok()?;
    let text = String::from_utf8(told.stdout).ok()?.trim().to_owned();
    (told.status.success() && !text.is_empty()).then_some(text)
}
