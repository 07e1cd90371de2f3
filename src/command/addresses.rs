//! Resolves `--listen`: names are looked up once, at the start of a run.
//!
//! Owns the time limit of the lookup, and that workers listen where their primary does: they get
//! the addresses and look nothing up.

use std::time::Duration;

use super::settings::Settings;
use clusterlb::protocol::environment;
use clusterlb::{Dialect, Error, ListenAddress, ListenRule, Result};
use clusterlb_sys::passed::Passed;
use clusterlb_sys::resolve;

/// How long a lookup may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Finds the sockets that `fd:NAME` refers to among those that the service manager passed.
///
/// # Errors
/// No socket of that name was passed.
pub(super) fn find_passed(settings: &mut Settings, passed: &[Passed]) -> Result<()> {
    for address in &mut settings.listen {
        let ListenAddress::InheritedName(name) = address else { continue };
        let Some(found) = passed.iter().find(|one| one.name == *name) else {
            let names: Vec<&str> = passed.iter().map(|one| &*one.name).collect();
            let names = if names.is_empty() { "none".into() } else { names.join(", ") };
            return Err(Error::usage(
                format!("--listen fd:{name}: no socket of this name was passed"),
                format!("LISTEN_FDNAMES has {names}; set FileDescriptorName= in the socket unit"),
            ));
        };
        *address = ListenAddress::Inherited(found.number());
    }
    Ok(())
}

/// Looks up the names in the settings and passes the addresses on to workers.
///
/// # Errors
/// The name does not exist, or the lookup timed out.
pub(super) fn resolve(settings: &mut Settings) -> Result<()> {
    let takes_sockets =
        settings.program.as_ref().is_some_and(|program| program.dialect == Dialect::ListenFds);
    let mut found = Vec::new();
    for address in &settings.listen {
        let mut candidates = look_up(address)?;
        // A port that is free at one address may be taken at another, and programs that inherit
        // sockets know an address by its port.
        if address.is_port_zero() || takes_sockets {
            candidates.truncate(1);
        }
        let named = ListenRule::Address(address.clone());
        if let Some(place) = settings.proxy_protocol.iter().position(|rule| *rule == named) {
            let rules = candidates.iter().cloned().map(ListenRule::Address);
            settings.proxy_protocol.splice(place..=place, rules);
        }
        found.extend(candidates);
    }
    settings.listen = without_covered(found, takes_sockets)?;
    settings.validate()?;
    ensure_meant(settings)?;
    if settings.program.is_none() {
        let addresses: Vec<String> = settings.listen.iter().map(ToString::to_string).collect();
        let text = serde_json::to_string(&addresses).expect("texts can be written as JSON");
        let variable = (environment::LISTEN.into(), text.into());
        settings.own_variables.push(variable);
    }
    Ok(())
}

/// The addresses without those that another one includes, as 0.0.0.0:80 beside [::]:80: the kernel
/// gives a connection to one socket, and refuses to open the second.
///
/// # Errors
/// A program takes the sockets over, and would miss one.
fn without_covered(all: Vec<ListenAddress>, takes_sockets: bool) -> Result<Vec<ListenAddress>> {
    let covering = |narrow: &ListenAddress| all.iter().find(|wide| covers(wide, narrow));
    if let Some((narrow, wide)) =
        all.iter().filter(|_| takes_sockets).find_map(|one| Some((one, covering(one)?)))
    {
        return Err(Error::usage(
            format!("--listen {wide} includes {narrow}"),
            format!("leave out --listen {narrow}; its connections come to the other socket"),
        ));
    }
    Ok(all.iter().filter(|one| covering(one).is_none()).cloned().collect())
}

/// Whether connections to one address also come to another one, which stands for all.
fn covers(wide: &ListenAddress, narrow: &ListenAddress) -> bool {
    let (ListenAddress::Tcp(wide), ListenAddress::Tcp(narrow)) = (wide, narrow) else {
        return false;
    };
    let (all, one) = (wide.ip().to_canonical(), narrow.ip().to_canonical());
    wide.port() == narrow.port()
        && wide.port() != 0
        && all.is_unspecified()
        && all != one
        && (all.is_ipv6() || one.is_ipv4())
}

/// Ensures that every rule for headers is about a listener, if these are known: one that is
/// mistyped would leave a listener without.
fn ensure_meant(settings: &Settings) -> Result<()> {
    let is_meant = |rule: &&ListenRule| settings.listen.iter().any(|one| rule.allows(one));
    let idle = settings.proxy_protocol.iter().find(|rule| !is_meant(rule));
    match idle.filter(|_| settings.program.is_none()) {
        Some(rule) => Err(Error::usage(
            format!("--proxy-protocol {rule} is about no --listen"),
            "write the address as in --listen, its port, or all",
        )),
        None => Ok(()),
    }
}

/// The addresses that a name stands for; at least one.
///
/// # Errors
/// The name does not exist, or the lookup timed out.
pub(super) fn look_up(address: &ListenAddress) -> Result<Vec<ListenAddress>> {
    if resolve::is_resolved(address) {
        return Ok(vec![address.clone()]);
    }
    let question = address.clone();
    let what = format!("look {address} up");
    resolve::within(PATIENCE, &what, move || resolve::resolve(&question))
}

/// The addresses of a worker, as its primary set them.
///
/// # Errors
/// A primary did not write this variable.
pub(super) fn take_over(settings: &mut Settings) -> Result<()> {
    let Ok(text) = std::env::var(environment::LISTEN) else { return Ok(()) };
    let wrong = || {
        Error::usage(
            format!("{} is not a list of addresses", environment::LISTEN),
            "workers are started by their primary; unset the variable to start a primary",
        )
    };
    let addresses: Vec<String> = serde_json::from_str(&text).map_err(|_| wrong())?;
    let addresses = addresses.iter().map(|address| address.parse());
    settings.listen = addresses.collect::<Result<_>>()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_another_one_includes_is_opened_once() {
        let listed = |text: &str| -> Vec<ListenAddress> {
            text.split(' ').map(|one| one.parse().expect("an address")).collect()
        };
        for (given, opened) in [
            ("0.0.0.0:80 [::]:80", "[::]:80"),
            ("[::]:80 0.0.0.0:80 127.0.0.1:80 [::1]:80 [::1]:81", "[::]:80 [::1]:81"),
            ("127.0.0.1:80 0.0.0.0:80 [::1]:80", "0.0.0.0:80 [::1]:80"),
            ("0.0.0.0:0 [::]:0", "0.0.0.0:0 [::]:0"),
            ("[::ffff:127.0.0.1]:80 0.0.0.0:80", "0.0.0.0:80"),
            ("unix:/a 0.0.0.0:80", "unix:/a 0.0.0.0:80"),
        ] {
            let found = without_covered(listed(given), false).expect("it is not refused");
            assert_eq!(found, listed(opened), "{given}");
        }
        let refused = without_covered(listed("0.0.0.0:80 [::]:80"), true).expect_err("one missing");
        assert!(refused.hint().contains("leave out --listen 0.0.0.0:80"), "{}", refused.hint());
    }
}
