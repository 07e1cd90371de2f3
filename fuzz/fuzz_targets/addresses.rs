//! Arbitrary bytes for the checks of `addresses.rs`.

#![no_main]

#[path = "../addresses.rs"]
mod addresses;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| addresses::addresses(bytes));
