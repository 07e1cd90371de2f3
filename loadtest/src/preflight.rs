//! Arithmetic before a run: are there enough descriptors, ports and source addresses? Pure.
//!
//! A connection needs a descriptor here and a (source address, port) pair; a closed one keeps its
//! pair for the TIME_WAIT period. Linux has 28 232 ports a source by default. On loopback with
//! `tcp_tw_reuse` 1 or 2 a pair may be used again after about a second, otherwise after 60.

use std::net::Ipv4Addr;

use crate::error::Error;
use crate::settings::{CloseBy, Load, RequestsPerConnection, Settings, Sources};

/// Descriptors that are no connections: standard streams, files, closes not yet carried out.
const DESCRIPTORS_OTHER: u64 = 64;
/// Descriptors for each thread: its ring and a full submission queue of closes.
const DESCRIPTORS_PER_THREAD: u64 = 64;
/// Open-loop connections at most, if not said otherwise.
const CONNECTIONS_DEFAULT: u64 = 10_000;
/// New connections per second that a closed loop is prepared for, per thread.
const CLOSED_RATE_PER_S: f64 = 100_000.0;
/// The largest share of a source's ports to use: the kernel searches for a free one at every
/// connect, and the search takes long when few are free.
const PORTS_SHARE: f64 = 0.25;
/// Most source addresses taken by `auto`.
const SOURCES_MAX: u32 = 4096;
/// Most source addresses there are: 127.64.0.1 and the two million after it.
const SOURCES_LIMIT: u32 = 1 << 21;

/// What the machine offers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Resources {
    /// Soft limit of open files, after raising it.
    pub(crate) descriptors: u64,
    /// First and last local port.
    pub(crate) ports: (u16, u16),
    /// `net.ipv4.tcp_tw_reuse`.
    pub(crate) tcp_tw_reuse: u8,
    /// The target is in 127/8.
    pub(crate) loopback_v4: bool,
    /// The target is a unix socket.
    pub(crate) unix: bool,
}

/// What a run may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Granted {
    /// Most connections for requests at once.
    pub(crate) connections: u32,
    /// Source addresses to bind to; none leaves it to the kernel.
    pub(crate) sources: Vec<Ipv4Addr>,
}

/// Decides how many connections and sources a run uses, or says what is missing.
pub(crate) fn grant(settings: &Settings, resources: Resources) -> Result<Granted, Error> {
    let connections = connections(settings, resources.descriptors)?;
    let count = source_count(settings, resources, connections)?;
    check_ports(settings, resources, connections, count)?;
    let sources = match count {
        // One source needs no binding: the kernel takes the only one there is.
        0 | 1 => Vec::new(),
        count => (1..=count).map(source).collect(),
    };
    Ok(Granted { connections, sources })
}

/// How long a closed connection's port stays in TIME_WAIT and cannot be used again.
pub(crate) fn port_rest_s(settings: &Settings, resources: Resources) -> f64 {
    match (settings.close, resources.tcp_tw_reuse) {
        (CloseBy::Rst, _) => 0.0,
        (CloseBy::Fin, 1) => 1.0,
        (CloseBy::Fin, 2) if resources.loopback_v4 => 1.0,
        (CloseBy::Fin, _) => 60.0,
    }
}

fn connections(settings: &Settings, descriptors: u64) -> Result<u32, Error> {
    let other = DESCRIPTORS_OTHER + DESCRIPTORS_PER_THREAD * u64::from(settings.threads);
    let hold = u64::from(settings.hold);
    let left = descriptors.saturating_sub(other + hold);
    let wanted = match settings.load {
        Load::Closed { connections } => u64::from(connections),
        Load::Open { connections_max: Some(most), .. } => u64::from(most),
        Load::Open { .. } => CONNECTIONS_DEFAULT.min(left).max(u64::from(settings.threads)),
    };
    if wanted > left {
        let needed = wanted + hold + other;
        return Err(Error::environment(
            format!("open {} connections", wanted + hold),
            format!("that takes {needed} descriptors, and the hard limit is {descriptors}"),
            "raise `ulimit -Hn`, or give fewer --connections, --connections-max or --hold",
        ));
    }
    Ok(u32::try_from(wanted).unwrap_or(u32::MAX))
}

/// The new connections per second to expect; for a closed loop this is a guess.
pub(crate) fn connections_per_s(settings: &Settings) -> f64 {
    let per_connection = match settings.requests_per_connection {
        RequestsPerConnection::Unlimited => return 0.0,
        RequestsPerConnection::Between(least, most) => f64::midpoint(least.into(), most.into()),
    };
    let requests_per_s = match settings.load {
        Load::Open { rate_per_s, .. } => rate_per_s,
        Load::Closed { .. } => CLOSED_RATE_PER_S * f64::from(settings.threads),
    };
    requests_per_s / per_connection
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a saturating cast of a positive number, clamped at once"
)]
fn source_count(settings: &Settings, resources: Resources, connections: u32) -> Result<u32, Error> {
    match settings.sources {
        _ if resources.unix => Ok(0),
        Sources::Count(1) => Ok(1),
        Sources::Count(_) if !resources.loopback_v4 => Err(Error::usage(
            format!("{} is not in 127/8, where any source address works", settings.target),
            "leave out --sources",
        )),
        Sources::Count(count) if count > SOURCES_LIMIT => Err(Error::usage(
            format!("{count} source addresses are more than the {SOURCES_LIMIT} set apart"),
            "give fewer --sources",
        )),
        Sources::Count(count) => Ok(count),
        Sources::Auto if !resources.loopback_v4 => Ok(1),
        Sources::Auto => {
            let resting = connections_per_s(settings) * port_rest_s(settings, resources);
            // An open loop reaches its bound on connections only if the server stalls: ports are
            // planned for the rate.
            let open = match settings.load {
                Load::Open { rate_per_s, .. } => rate_per_s.min(connections.into()),
                Load::Closed { .. } => connections.into(),
            };
            let in_use = resting + open + f64::from(settings.hold);
            let per_source = f64::from(port_count(resources.ports)) * PORTS_SHARE;
            Ok(((in_use / per_source).ceil() as u32).clamp(1, SOURCES_MAX))
        }
    }
}

fn check_ports(
    settings: &Settings,
    resources: Resources,
    connections: u32,
    sources: u32,
) -> Result<(), Error> {
    if resources.unix {
        return Ok(());
    }
    let explicit = !matches!(settings.load, Load::Open { connections_max: None, .. });
    let wanted = u64::from(settings.hold) + if explicit { connections.into() } else { 1 };
    let there = u64::from(port_count(resources.ports)) * u64::from(sources.max(1));
    if wanted > there {
        let (first, last) = resources.ports;
        return Err(Error::environment(
            format!("open {wanted} connections"),
            format!("{sources} source addresses with ports {first} to {last} allow {there}"),
            "give more --sources (targets in 127/8), widen net.ipv4.ip_local_port_range, or give \
             fewer connections",
        ));
    }
    Ok(())
}

/// How many new connections per second the ports allow, if that is less than what is asked for.
pub(crate) fn port_warning(
    settings: &Settings,
    resources: Resources,
    sources: usize,
) -> Option<String> {
    let rest_s = port_rest_s(settings, resources);
    let asked_per_s = match settings.load {
        Load::Open { .. } => connections_per_s(settings),
        Load::Closed { .. } => return None,
    };
    if resources.unix || rest_s == 0.0 {
        return None;
    }
    let ports = f64::from(port_count(resources.ports)) * sources.max(1) as f64;
    let allowed_per_s = ports / rest_s;
    (asked_per_s > allowed_per_s).then(|| {
        format!(
            "{ports} ports resting {rest_s} s each allow {allowed_per_s:.0} new connections a \
             second, and the rate needs {asked_per_s:.0}: use --close rst or more --sources"
        )
    })
}

fn port_count((first, last): (u16, u16)) -> u32 {
    u32::from(last.saturating_sub(first)) + 1
}

/// The n-th source address, away from those that people type.
fn source(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(127, 64, 0, 0).to_bits() + number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::plan::Arrivals;

    const LINUX: Resources = Resources {
        descriptors: 20_000,
        ports: (32_768, 60_999),
        tcp_tw_reuse: 2,
        loopback_v4: true,
        unix: false,
    };

    fn open(rate_per_s: f64) -> Settings {
        let load = Load::Open { rate_per_s, arrivals: Arrivals::Constant, connections_max: None };
        Settings::new("127.0.0.1:80".parse().expect("a target"), load)
    }

    fn closed(connections: u32) -> Settings {
        let target = "127.0.0.1:80".parse().expect("a target");
        Settings::new(target, Load::Closed { connections })
    }

    #[test]
    fn slow_runs_need_one_source_and_fast_ones_several() {
        let slow = grant(&open(1000.0), LINUX).expect("a slow run");
        assert!(slow.sources.is_empty());
        // 20k connections resting a second and up to 10k open, a quarter of 28 232 ports each.
        let fast = grant(&open(20_000.0), LINUX).expect("a fast run");
        assert_eq!(fast.sources.len(), 5);
        assert!(fast.sources.iter().all(Ipv4Addr::is_loopback));
        let without_reuse = Resources { tcp_tw_reuse: 0, ..LINUX };
        let resting = grant(&open(20_000.0), without_reuse).expect("a run");
        assert_eq!(resting.sources.len(), 172);
    }

    #[test]
    fn other_machines_give_one_source_and_a_warning() {
        let far = Resources { loopback_v4: false, ..LINUX };
        let mut settings = open(1000.0);
        assert!(grant(&settings, far).expect("a run").sources.is_empty());
        let warning = port_warning(&settings, far, 1).expect("470 a second are possible");
        assert!(warning.contains("471"), "{warning}");
        settings.close = CloseBy::Rst;
        assert_eq!(port_warning(&settings, far, 1), None);
        settings.sources = Sources::Count(4);
        assert_eq!(grant(&settings, far).expect_err("no such addresses").exit_code(), 2);
    }

    #[test]
    fn too_few_descriptors_or_ports_are_reported_in_one_line() {
        let error = grant(&closed(30_000), LINUX).expect_err("20 000 descriptors");
        assert_eq!(error.exit_code(), 3);
        assert!(error.to_string().contains("20000"), "{error}");
        let plenty = Resources { descriptors: 1 << 20, ..LINUX };
        let mut settings = closed(30_000);
        settings.sources = Sources::Count(1);
        let error = grant(&settings, plenty).expect_err("28 232 ports");
        assert!(error.to_string().contains("28232"), "{error}");
        settings.sources = Sources::Auto;
        assert!(grant(&settings, plenty).is_ok());
    }

    proptest! {
        #[test]
        fn what_is_granted_fits(
            rate in 1.0_f64..1e6, hold in 0_u32..5000, descriptors in 0_u64..40_000,
            threads in 1_u32..9,
        ) {
            let mut settings = open(rate);
            settings.hold = hold;
            settings.threads = threads;
            let resources = Resources { descriptors, ..LINUX };
            match grant(&settings, resources) {
                Ok(granted) => {
                    prop_assert!(granted.connections >= threads);
                    prop_assert!(u64::from(granted.connections + hold) < descriptors);
                    prop_assert!(granted.sources.len() <= SOURCES_MAX as usize);
                }
                Err(error) => prop_assert_eq!(error.exit_code(), 3),
            }
        }
    }
}
