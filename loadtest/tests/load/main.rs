//! The load generator as a program, against servers whose behaviour is known: one binary, so that
//! what the tests share is compiled once.

mod common;
mod errors;
mod expect;
mod latency;
mod modes;
mod output;
mod requests;
mod tls;
mod view;
