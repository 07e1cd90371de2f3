//! Arbitrary bytes for the checks of `http.rs`.

#![no_main]

#[path = "../http.rs"]
mod http;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| http::http(bytes));
