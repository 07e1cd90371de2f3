//! Arbitrary bytes for the checks of `env_file.rs`.

#![no_main]

#[path = "../env_file.rs"]
mod env_file;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| env_file::env_file(bytes));
