//! The checks of the fuzz targets on any compiler: over the committed corpus, and over seeded
//! mutations of it. `CLUSTERLB_SEED` runs a single seed.

#[path = "../fuzz/addresses.rs"]
mod addresses;
#[path = "../fuzz/checks.rs"]
mod checks;
#[path = "../fuzz/control.rs"]
mod control;
#[path = "../fuzz/env_file.rs"]
mod env_file;
#[path = "../fuzz/http.rs"]
mod http;
#[path = "../fuzz/proxy_protocol.rs"]
mod proxy_protocol;
#[path = "../fuzz/queries.rs"]
mod queries;

use std::fs;
use std::panic::RefUnwindSafe;
use std::path::Path;

use clusterlb::internals::dialect::node::Serialization;
use fastrand::Rng;

/// Mutations of each entry.
const SEEDS: u64 = 400;

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let files = fs::read_dir(&folder).expect("the corpus is a part of the project");
    let mut paths: Vec<_> = files.flatten().map(|file| file.path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} is empty", folder.display());
    paths.iter().map(|path| fs::read(path).expect("a corpus is readable")).collect()
}

/// Changes, removes, repeats or inserts bytes in a few places, or appends another entry.
fn mutate(bytes: &mut Vec<u8>, others: &[Vec<u8>], rng: &mut Rng) {
    for _ in 0..rng.usize(1..6) {
        let place = rng.usize(0..=bytes.len());
        let end = rng.usize(place..=bytes.len()).min(place + 16);
        match rng.u8(0..6) {
            0 if place < bytes.len() => bytes[place] = rng.u8(..),
            1 if place < bytes.len() => bytes[place] ^= 1 << rng.u8(0..8),
            2 => drop(bytes.drain(place..end)),
            3 => {
                let again = bytes[place..end].to_vec();
                bytes.splice(place..place, again.repeat(rng.usize(1..40)));
            }
            4 => {
                const TELLING: &[u8] = b"\n{}[]\",:\\0\xff\x7f\x80\x00oA{$I\"c_";
                bytes.insert(place, TELLING[rng.usize(0..TELLING.len())]);
            }
            _ => bytes.extend_from_slice(&others[rng.usize(0..others.len())]),
        }
    }
}

fn run(name: &str, check: impl Fn(&[u8]) + RefUnwindSafe) {
    let corpus = corpus(name);
    corpus.iter().for_each(|entry| check(entry));
    let seeds = match std::env::var("CLUSTERLB_SEED") {
        Ok(seed) => {
            let seed = seed.parse().expect("CLUSTERLB_SEED is a number");
            seed..seed + 1
        }
        Err(_) => 0..SEEDS,
    };
    for seed in seeds {
        let mut rng = Rng::with_seed(seed);
        for entry in &corpus {
            let mut bytes = entry.clone();
            mutate(&mut bytes, &corpus, &mut rng);
            let checked = std::panic::catch_unwind(|| check(&bytes));
            if let Err(panic) = checked {
                eprintln!("seed {seed} failed with {:?}", String::from_utf8_lossy(&bytes));
                std::panic::resume_unwind(panic);
            }
        }
    }
}

#[test]
fn lines_of_json_are_read_or_refused() {
    run("node_json", |bytes| checks::node(Serialization::Json, bytes));
}

#[test]
fn blocks_of_v8_are_read_or_refused() {
    run("node_advanced", |bytes| checks::node(Serialization::Advanced, bytes));
}

#[test]
fn heads_and_bodies_are_answered_alike_however_they_are_split() {
    run("http", http::http);
}

#[test]
fn frames_of_the_control_channel_are_read_or_refused() {
    run("control", control::control);
}

#[test]
fn addresses_are_understood_as_they_are_written_down() {
    run("addresses", addresses::addresses);
}

#[test]
fn files_of_variables_are_read_alike_behind_other_lines() {
    run("env_file", env_file::env_file);
}

#[test]
fn requests_to_the_admin_interface_are_understood_or_refused() {
    run("queries", queries::queries);
}

#[test]
fn headers_of_balancers_are_read_or_refused_alike_however_they_are_split() {
    run("proxy_protocol", proxy_protocol::proxy_protocol);
}
