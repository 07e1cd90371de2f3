//! A run, prepared: everything that its threads share and never change.

use std::net::Ipv4Addr;
use std::ops::Range;
use std::sync::Arc;

use rustls::pki_types::ServerName;

use super::demand::Demand;
use super::payload::Payload;
use super::recorder::Window;
use super::resolve::resolve;
use crate::environment::{self, Environment};
use crate::error::Error;
use crate::plan::{Bounds, Plan};
use crate::preflight::{self, Resources};
use crate::settings::{Load, Pin, Settings};
use crate::sys::process;
use crate::sys::socket::{self, SocketAddress};
use crate::target::{Address, Endpoint, Scheme, Target};
use crate::tls::{self, Connector};

/// What the threads of a run share.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) settings: Settings,
    pub(super) servers: Vec<Server>,
    /// The server of each target and its place among that server's targets.
    pub(super) routes: Vec<(usize, usize)>,
    /// The addresses of all servers.
    pub(super) addresses: Arc<[SocketAddress]>,
    /// Present if a server speaks TLS.
    pub(super) connector: Option<Connector>,
    pub(super) payload: Payload,
    pub(super) pipeline: usize,
    pub(super) sources: Vec<Ipv4Addr>,
    /// The CPU of each thread; empty if they are not pinned.
    pub(super) cpus: Vec<u32>,
    pub(super) bounds: Bounds,
    pub(super) timeout_ns: u64,
    connections: u32,
}

/// Where connections lead: one endpoint, spoken to in one way.
#[derive(Debug)]
pub(super) struct Server {
    /// Its addresses, by their numbers in [`Job::addresses`]. There is at least one.
    pub(super) addresses: Range<usize>,
    /// What its certificate must prove, if it speaks TLS.
    pub(super) tls_name: Option<ServerName<'static>>,
}

impl Job {
    /// Checks what can be checked before a run, and prepares it. `interrupted` is asked now and
    /// then while name servers are waited for.
    pub(super) fn prepare(
        settings: &Settings,
        interrupted: &mut dyn FnMut() -> bool,
    ) -> Result<(Self, Environment), Error> {
        settings.check()?;
        let (groups, routes) = group(settings);
        let connector = settings
            .targets()
            .any(|target| target.scheme == Scheme::Https)
            .then(|| Connector::new(settings.insecure, settings.tls_resumption))
            .transpose()?;
        let (servers, addresses) = servers(&groups, interrupted)?;
        let allowed = process::allowed_cpus()?;
        let cpus = choose_cpus(&settings.pin, settings.threads, &allowed)?;
        let resources = Resources {
            descriptors: process::raise_descriptor_limit()?,
            ports: environment::port_range(),
            tcp_tw_reuse: environment::sysctl("/proc/sys/net/ipv4/tcp_tw_reuse"),
            loopback_v4: addresses.iter().any(socket::is_loopback_v4),
            unix: addresses.iter().all(|address| matches!(address, Address::Unix(_))),
        };
        let granted = preflight::grant(settings, resources)?;
        let environment = Environment {
            kernel: environment::read("/proc/sys/kernel/osrelease").unwrap_or_default(),
            cpu_model: environment::cpu_model(),
            allowed_cpus: allowed,
            pinned_cpus: cpus.clone(),
            nofile: resources.descriptors,
            port_range: [resources.ports.0, resources.ports.1],
            tcp_tw_reuse: resources.tcp_tw_reuse,
            somaxconn: environment::sysctl("/proc/sys/net/core/somaxconn"),
            sources: u32::try_from(granted.sources.len().max(1)).unwrap_or(u32::MAX),
            first_source: granted.sources.first().map(Ipv4Addr::to_string),
            connections_max: granted.connections,
            debug_build: cfg!(debug_assertions),
            port_warning: preflight::port_warning(settings, resources, granted.sources.len()),
            ..Environment::default()
        };
        let warmup_ns = nanoseconds(settings.warmup_ms);
        let job = Self {
            settings: settings.clone(),
            servers,
            routes,
            addresses: addresses.iter().map(SocketAddress::new).collect::<Result<_, _>>()?,
            connector,
            payload: Payload::new(settings, &groups),
            pipeline: settings.pipeline as usize,
            sources: granted.sources,
            cpus,
            bounds: Bounds {
                warmup_ns,
                end_ns: settings.duration_ms.map(|ms| warmup_ns.saturating_add(nanoseconds(ms))),
                measured_max: settings.requests,
            },
            timeout_ns: nanoseconds(settings.timeout_ms),
            connections: granted.connections,
        };
        Ok((job, environment))
    }

    /// A thread's share of the connections.
    pub(super) fn connections(&self, thread: u32) -> usize {
        part(self.connections, thread, self.settings.threads)
    }

    /// A thread's share of the held connections.
    pub(super) fn held(&self, thread: u32) -> usize {
        part(self.settings.hold, thread, self.settings.threads)
    }

    /// A thread's requests.
    pub(super) fn demand(&self, thread: u32) -> Demand {
        let share = (thread, self.settings.threads);
        match self.settings.load {
            Load::Closed { .. } => Demand::closed(self.bounds, share),
            Load::Open { rate_per_s, arrivals, .. } => {
                let plan = Plan { rate_per_s, arrivals, seed: self.settings.seed };
                Demand::open(&plan, self.bounds, share, self.timeout_ns)
            }
        }
    }

    /// The addresses of a server, for a message that all of them have failed.
    pub(super) fn tried(&self, server: usize) -> String {
        let all = &self.addresses[self.servers[server].addresses.clone()];
        all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }

    /// The measured time.
    pub(super) fn window(&self) -> Window {
        Window {
            warmup_ns: self.bounds.warmup_ns,
            end_ns: self.bounds.end_ns,
            planned: matches!(self.settings.load, Load::Open { .. }),
        }
    }
}

/// The targets of each server, and for each target its server and its place there.
fn group(settings: &Settings) -> (Vec<Vec<&Target>>, Vec<(usize, usize)>) {
    let mut groups: Vec<Vec<&Target>> = Vec::new();
    let mut routes = Vec::new();
    for target in settings.targets() {
        let same = |group: &Vec<&Target>| {
            group[0].endpoint == target.endpoint && group[0].scheme == target.scheme
        };
        let server = groups.iter().position(same).unwrap_or(groups.len());
        if server == groups.len() {
            groups.push(Vec::new());
        }
        routes.push((server, groups[server].len()));
        groups[server].push(target);
    }
    (groups, routes)
}

/// Resolves the endpoint of each group.
fn servers(
    groups: &[Vec<&Target>],
    interrupted: &mut dyn FnMut() -> bool,
) -> Result<(Vec<Server>, Vec<Address>), Error> {
    let mut servers = Vec::new();
    let mut addresses = Vec::new();
    for group in groups {
        let target = group[0];
        let found = match &target.endpoint {
            Endpoint::Unix(path) => vec![Address::Unix(path.clone())],
            Endpoint::Tcp(_) => resolve(target, interrupted)?,
        };
        let first = addresses.len();
        addresses.extend(found);
        let tls_name = target.server_name().map(|host| tls::server_name(&host)).transpose()?;
        servers.push(Server { addresses: first..addresses.len(), tls_name });
    }
    Ok((servers, addresses))
}

fn nanoseconds(ms: u64) -> u64 {
    ms.saturating_mul(1_000_000)
}

/// Thread number `thread`'s share of `all`: the first ones take what is left over.
fn part(all: u32, thread: u32, threads: u32) -> usize {
    (all / threads + u32::from(thread < all % threads)) as usize
}

fn choose_cpus(pin: &Pin, threads: u32, allowed: &[u32]) -> Result<Vec<u32>, Error> {
    let threads = threads as usize;
    if threads > allowed.len() {
        return Err(Error::usage(
            format!("{threads} threads do not have a CPU each: {} are allowed", allowed.len()),
            format!("give --threads {} or fewer", allowed.len()),
        ));
    }
    match pin {
        Pin::None => Ok(Vec::new()),
        Pin::Auto => Ok(allowed.iter().rev().take(threads).copied().collect()),
        Pin::List(cpus) => match cpus.iter().find(|cpu| !allowed.contains(cpu)) {
            None => Ok(cpus.clone()),
            Some(cpu) => Err(Error::usage(
                format!("CPU {cpu} is not among those allowed: {allowed:?}"),
                "name allowed CPUs, or start the generator with another `taskset`",
            )),
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parts_add_up(all in 0_u32..10_000, threads in 1_u32..65) {
            let sum: usize = (0..threads).map(|thread| part(all, thread, threads)).sum();
            prop_assert_eq!(sum, all as usize);
        }
    }

    #[test]
    fn targets_of_one_server_share_its_connections() {
        let target = |text: &str| text.parse::<Target>().expect("a target");
        let mut settings = Settings::new(target("http://a/1"), Load::Closed { connections: 9 });
        settings.other_targets =
            ["https://a/2", "http://a/3", "http://b/4", "http://A:80/5"].map(target).into();
        let (groups, routes) = group(&settings);
        assert_eq!(routes, [(0, 0), (1, 0), (0, 1), (2, 0), (0, 2)]);
        let sizes: Vec<usize> = groups.iter().map(Vec::len).collect();
        assert_eq!(sizes, [3, 1, 1]);
    }

    #[test]
    fn threads_take_the_last_cpus_unless_told_otherwise() {
        let allowed = [0, 2, 5];
        assert_eq!(choose_cpus(&Pin::Auto, 2, &allowed).expect("two CPUs"), [5, 2]);
        assert_eq!(choose_cpus(&Pin::List(vec![2]), 1, &allowed).expect("allowed"), [2]);
        assert!(choose_cpus(&Pin::List(vec![1]), 1, &allowed).is_err());
        assert!(choose_cpus(&Pin::Auto, 4, &allowed).is_err());
    }
}
