//! Safe interfaces to the kernel, one facility per file. The only code with `unsafe`.
//!
//! Event loops:
//!
//! * [`engine`]: the system calls of an event loop, by io_uring ([`engine::ring`]) or by epoll.
//! * [`probe`]: what this kernel's io_uring supports.
//! * [`waker`]: a descriptor that wakes a waiting thread.
//! * [`watch`]: epoll waits shorter than a millisecond.
//! * [`clock`]: monotonic time, comparable between processes.
//! * [`signal`]: signals as a readable descriptor.
//! * `readiness`: waiting for a descriptor inside a tokio runtime.
//!
//! Sockets:
//!
//! * [`address`], [`resolve`]: addresses to listen on, and lookups that do not block the caller.
//! * [`listener`], [`datagram`]: sockets of every kind: opened, adopted, drained and removed.
//! * `deferral`: connections that wait for their first bytes.
//! * [`backlog`]: length of an accept queue, and the time spent in it.
//! * [`peer`]: endpoints and type of a socket.
//! * [`fdpass`]: sending descriptors over a unix socket, outside a ring.
//! * [`passed`], [`notify`]: sockets from a service manager, and readiness messages to it.
//! * [`steering`], [`picking`], [`migration`], [`bpf`]: programs by which the kernel chooses among
//!   the sockets of a port; `hashing` is the hash of a client's address, the same in both worlds.
//!
//! Processes:
//!
//! * [`process`], [`guard`]: starting, watching and ending workers, also those of a killed primary.
//! * [`shared`]: a sealed page of counters that two processes map.
//! * [`inherited`], [`terminal`]: what a parent left behind, and the controlling terminal.
//! * [`account`], [`privileges`], `seccomp`: users and groups, and the rights that a process keeps.
//! * [`limits`], [`cpu`]: descriptor limits; CPUs, the CPU quota, and pinning.
//! * [`schedstat`], [`activity`], [`accepting`], [`listening`]: what `/proc` knows of a process:
//!   its CPU time, its state, and the sockets from which it accepts.
//!
//! [`error`] is the error type of all of them.
//!
//! This crate takes no decisions: policies, limits and retries belong to its callers.

pub mod accepting;
pub mod account;
pub mod activity;
pub mod address;
pub mod backlog;
pub mod bpf;
mod cgroup;
pub mod clock;
pub mod cpu;
pub mod datagram;
mod deferral;
pub mod engine;
pub mod error;
pub mod fdpass;
pub mod guard;
mod hashing;
pub mod inherited;
pub mod limits;
pub mod listener;
pub mod listening;
pub mod migration;
#[cfg(test)]
#[path = "../../../tests/common/missing.rs"]
mod missing;
pub mod notify;
pub mod passed;
pub mod peer;
pub mod picking;
pub mod privileges;
pub mod probe;
pub mod process;
#[cfg(feature = "tokio")]
pub mod readiness;
pub mod resolve;
pub mod schedstat;
#[cfg(feature = "seccomp")]
pub mod seccomp;
pub mod shared;
pub mod signal;
mod signal_number;
pub mod steering;
pub mod terminal;
mod unix_socket;
pub mod waker;
pub mod watch;

/// Compiles the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
