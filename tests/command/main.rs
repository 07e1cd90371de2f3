//! The command as users run it: each test starts the real program and talks to it.

mod admin;
mod balancers;
mod clocks;
#[path = "../common/mod.rs"]
mod common;
mod config;
mod crash;
mod cross_check;
mod dispatch;
mod distribution;
mod drain;
mod engines;
mod examples;
mod guest;
mod harness;
mod hostile;
mod http;
mod inherited_dispatch;
mod left_out;
mod limits;
mod listen;
mod listen_fds;
mod measuring;
mod outliers;
mod output;
mod primary_user;
mod proxied;
mod room;
mod seccomp;
mod service_manager;
mod sleeping;
mod steal;
mod storm;
mod streams;
mod timers;
mod usage;
