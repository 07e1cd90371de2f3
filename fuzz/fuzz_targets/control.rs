//! Arbitrary bytes for the checks of `control.rs`.

#![no_main]

#[path = "../control.rs"]
mod control;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| control::control(bytes));
