//! Minimal configurations of other servers: hello world, a number of workers, a set of CPUs.
//!
//! Owns the texts. Pure: does not start a program or write a file.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::target::Peer;
use crate::work::{ServiceTime, Work, WorkKind};

/// Script that `node` runs, embedded in this program.
pub const NODE_SCRIPT: &str = include_str!("../peers/node-cluster.js");
/// Path of Debian's nginx module that can block.
pub const NGINX_ECHO_MODULE: &str = "/usr/lib/nginx/modules/ngx_http_echo_module.so";
/// Listen backlog, the same for every server.
pub const BACKLOG: u32 = 4096;
/// Connection limit of an nginx worker and of HAProxy.
const CONNECTIONS_MAX: u32 = 8192;

/// Settings of a peer.
#[derive(Clone, Debug)]
pub struct PeerPlan<'a> {
    /// Worker processes, or threads.
    pub workers: usize,
    /// CPUs, assigned to workers in turn; none if they are not pinned.
    pub cpus: &'a [usize],
    /// Port on the loopback interface.
    pub port: u16,
    /// Cost of a request: a constant or a mix.
    pub work: Option<&'a Work>,
    /// Private directory.
    pub temp_dir: &'a str,
}

/// Weights and times (in nanoseconds) of a constant or a mix.
fn parts(time: &ServiceTime) -> Vec<(u32, u64)> {
    match time {
        ServiceTime::Mix { parts } => parts.clone(),
        ServiceTime::Constant { ns } => vec![(1, *ns)],
        // Rejected earlier by `Target::objection`.
        ServiceTime::Exponential { mean_ns } | ServiceTime::LogNormal { mean_ns, .. } => {
            vec![(1, *mean_ns)]
        }
    }
}

/// Options of the Node script.
#[must_use]
pub fn node_options(plan: &PeerPlan<'_>, primary_accepts: bool) -> Value {
    let kind = |work: &Work| match work.kind {
        WorkKind::Cpu => "cpu",
        WorkKind::Block => "block",
    };
    json!({
        "workers": plan.workers,
        "policy": if primary_accepts { "rr" } else { "none" },
        "port": plan.port,
        "backlog": BACKLOG,
        "work": plan.work.map(|work| json!({ "kind": kind(work), "parts": parts(&work.time) })),
    })
}

/// nginx's configuration.
#[must_use]
pub fn nginx_configuration(plan: &PeerPlan<'_>, reuseport: bool) -> String {
    let PeerPlan { workers, port, temp_dir, .. } = plan;
    let mut text = String::new();
    if plan.work.is_some() {
        let _ = writeln!(text, "load_module {NGINX_ECHO_MODULE};");
    }
    let masks: Vec<String> =
        plan.cpus.iter().cycle().take(*workers).map(|cpu| mask(*cpu)).collect();
    let affinity = match masks.is_empty() {
        true => String::new(),
        false => format!("worker_cpu_affinity {};\n", masks.join(" ")),
    };
    let socket = if reuseport { " reuseport" } else { "" };
    let (chance, locations) = plan.work.map_or_else(
        || (String::new(), answer("/", "return 200 \"hello world\\n\";")),
        |work| blocking(&parts(&work.time)),
    );
    let _ = write!(
        text,
        "worker_processes {workers};\n\
         {affinity}\
         daemon off;\n\
         pid {temp_dir}/nginx.pid;\n\
         error_log stderr warn;\n\
         events {{ worker_connections {CONNECTIONS_MAX}; }}\n\
         http {{\n\
         access_log off;\n\
         keepalive_requests 1000000000;\n\
         client_body_temp_path {temp_dir}/body;\n\
         proxy_temp_path {temp_dir}/proxy;\n\
         fastcgi_temp_path {temp_dir}/fastcgi;\n\
         uwsgi_temp_path {temp_dir}/uwsgi;\n\
         scgi_temp_path {temp_dir}/scgi;\n\
         default_type text/plain;\n\
         {chance}\
         server {{\n\
         listen 127.0.0.1:{port} backlog={BACKLOG}{socket};\n\
         {locations}\
         }}\n\
         }}\n"
    );
    text
}

/// A CPU as nginx's mask of zeros and a one.
fn mask(cpu: usize) -> String {
    format!("1{}", "0".repeat(cpu))
}

fn answer(path: &str, how: &str) -> String {
    format!("location {path} {{ {how} }}\n")
}

/// One location per time, and the random split between them.
fn blocking(parts: &[(u32, u64)]) -> (String, String) {
    let total: u32 = parts.iter().map(|(weight, _)| weight).sum();
    let mut chance = "split_clients $request_id $service {\n".to_owned();
    let mut locations = answer("/", "rewrite ^ /$service last;");
    for (place, (weight, ns)) in parts.iter().enumerate() {
        let share = 100.0 * f64::from(*weight) / f64::from(total.max(1));
        let share = if place + 1 == parts.len() { "*".into() } else { format!("{share:.2}%") };
        let _ = writeln!(chance, "{share} s{place};");
        // The module's resolution is one millisecond.
        let seconds = format!("{}.{:03}", ns / 1_000_000_000, ns / 1_000_000 % 1_000);
        let how = format!("echo_blocking_sleep {seconds}; echo \"hello world\";");
        locations += &answer(&format!("= /s{place}"), &how);
    }
    (chance + "}\n", locations)
}

/// HAProxy's configuration.
#[must_use]
pub fn haproxy_configuration(plan: &PeerPlan<'_>) -> String {
    let PeerPlan { workers, port, .. } = plan;
    let mut text = format!("global\n    nbthread {workers}\n    maxconn {CONNECTIONS_MAX}\n");
    for (thread, cpu) in (1..=*workers).zip(plan.cpus.iter().cycle()) {
        let _ = writeln!(text, "    cpu-map 1/{thread} {cpu}");
    }
    let _ = write!(
        text,
        "defaults\n\
         \x20   mode http\n\
         \x20   timeout client 75s\n\
         \x20   timeout http-request 10s\n\
         frontend hello\n\
         \x20   bind 127.0.0.1:{port} backlog {BACKLOG}\n\
         \x20   http-request return status 200 content-type text/plain string \"hello world\\n\"\n"
    );
    text
}

/// Description of a peer's configuration for the report.
#[must_use]
pub fn description(peer: Peer) -> &'static str {
    match peer {
        Peer::Node { primary_accepts: true } => {
            "Node's cluster, SCHED_RR: the primary accepts and sends each socket in a message"
        }
        Peer::Node { primary_accepts: false } => {
            "Node's cluster, SCHED_NONE: the workers accept from the shared socket"
        }
        Peer::Nginx { reuseport: false } => {
            "nginx: workers accept from a shared socket with EPOLLEXCLUSIVE, and take it out of \
             their epoll set and in again every 16 accepts"
        }
        Peer::Nginx { reuseport: true } => "nginx with a listening socket for each worker",
        Peer::Haproxy => {
            "HAProxy: one process with a thread for each worker; the thread that accepts \
             gives the connection to the less loaded of two threads"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan<'a>(work: Option<&'a Work>, cpus: &'a [usize]) -> PeerPlan<'a> {
        PeerPlan { workers: 3, cpus, port: 8123, work, temp_dir: "/somewhere" }
    }

    #[test]
    fn nginx_takes_its_cpus_in_turn() {
        let text = nginx_configuration(&plan(None, &[0, 2]), false);
        assert!(text.contains("worker_cpu_affinity 1 100 1;"), "{text}");
        assert!(text.contains("listen 127.0.0.1:8123 backlog=4096;"));
        assert!(text.contains("return 200 \"hello world\\n\"") && !text.contains("load_module"));
        assert!(!nginx_configuration(&plan(None, &[]), false).contains("worker_cpu_affinity"));
        let text = nginx_configuration(&plan(None, &[0]), true);
        assert!(text.contains("backlog=4096 reuseport;"));
    }

    #[test]
    fn nginx_throws_dice_for_the_time_it_blocks() {
        let work: Work = "block:heavy".parse().expect("work");
        let text = nginx_configuration(&plan(Some(&work), &[0]), false);
        for line in [
            "99.00% s0;\n* s1;",
            "= /s0 { echo_blocking_sleep 0.001;",
            "= /s1 { echo_blocking_sleep 0.050;",
            "load_module",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert_eq!(text.matches('{').count(), text.matches('}').count());
    }

    #[test]
    fn haproxy_gets_a_thread_for_each_worker() {
        let text = haproxy_configuration(&plan(None, &[1]));
        assert!(text.contains("nbthread 3\n") && text.contains("cpu-map 1/3 1\n"), "{text}");
        assert!(text.contains("string \"hello world\\n\""));
    }

    #[test]
    fn node_gets_its_options() {
        let work: Work = "cpu:200us".parse().expect("work");
        let options = node_options(&plan(Some(&work), &[0]), false);
        assert_eq!(options["policy"], "none");
        assert_eq!(options["work"], json!({ "kind": "cpu", "parts": [[1, 200_000]] }));
        assert_eq!(node_options(&plan(None, &[0]), true)["work"], Value::Null);
    }
}
