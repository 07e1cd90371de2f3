//! Arbitrary bytes for the checks of `queries.rs`.

#![no_main]

#[path = "../queries.rs"]
mod queries;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| queries::queries(bytes));
