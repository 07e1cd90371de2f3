//! Shared by the tests of the running system: the cluster under test, its clients and its machine.
//!
//! Contains no assertions about behaviour except two that hold for every run: the counters balance,
//! and nothing is left behind.

pub(crate) mod books;
pub(crate) mod client;
pub(crate) mod cluster;
mod haproxy;
mod headers;
pub(crate) mod hostile;
pub(crate) mod machine;
mod missing;
mod ports;
pub(crate) mod seccomp;
mod wait;

pub(crate) use books::{Ended, Summary};
pub(crate) use client::{Client, GET, GET_CLOSE, HELLO, Response, get, get_from};
pub(crate) use cluster::{BINARY, Cluster, Launch};
pub(crate) use haproxy::Haproxy;
pub(crate) use headers::{headers, without_header};
pub(crate) use missing::lacking;
pub(crate) use ports::free_ports;
pub(crate) use wait::{PATIENCE, eventually};

/// Whether a program is installed; reports it as missing otherwise.
pub(crate) fn has_program(name: &str) -> bool {
    let found = std::process::Command::new(name)
        .arg("--version")
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .is_ok();
    if !found {
        lacking(name);
    }
    found
}
