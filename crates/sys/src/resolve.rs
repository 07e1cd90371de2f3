//! Resolves the names in an address: hosts, interfaces, users and groups.
//!
//! Owns queries to the system's databases. They may block as long as an unresponsive name server,
//! so they never run on a thread that others wait for. Does not open anything.

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, ToSocketAddrs};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;

use crate::account;
use crate::address::{FileAccess, ListenAddress};
use crate::error::{Error, Result, errno_of};
use crate::listener::{is_own, unspecified};

/// Whether an address contains nothing to look up.
#[must_use]
pub fn is_resolved(address: &ListenAddress) -> bool {
    let is_number =
        |text: &Option<String>| text.as_ref().is_none_or(|one| one.parse::<u32>().is_ok());
    match address {
        ListenAddress::Name(..) => false,
        ListenAddress::Unix(_, access) => is_number(&access.user) && is_number(&access.group),
        _ => true,
    }
}

/// The addresses that an address stands for, at least one. Of a name with several addresses, those
/// that this machine has, in the order of the system's resolver.
///
/// # Errors
/// [`Error::Usage`] if a host, interface, user or group does not exist.
pub fn resolve(address: &ListenAddress) -> Result<Vec<ListenAddress>> {
    match address {
        ListenAddress::Name(host, port) if host == "*" => {
            Ok(vec![ListenAddress::Tcp(unspecified(*port))])
        }
        ListenAddress::Name(host, port) => match host.split_once('%') {
            Some((inner, interface)) => scoped(address, inner, interface, *port),
            None => hosts(address, host, *port),
        },
        ListenAddress::Unix(path, access) => {
            let access = owners(address, access)?;
            Ok(vec![ListenAddress::Unix(path.clone(), access)])
        }
        other => Ok(vec![other.clone()]),
    }
}

fn unknown(address: &ListenAddress, why: &str, hint: &str) -> Error {
    Error::usage(format!("cannot listen on {address}: {why}"), hint)
}

fn scoped(
    address: &ListenAddress,
    inner: &str,
    interface: &str,
    port: u16,
) -> Result<Vec<ListenAddress>> {
    let number = if_nametoindex(interface).map_err(|_| {
        unknown(address, "there is no such network interface", "`ip link` lists those there are")
    })?;
    let inner: Ipv6Addr = inner.parse().map_err(|_| {
        unknown(address, "not an IPv6 address", "write it as in [fe80::1%eth0]:8000")
    })?;
    Ok(vec![ListenAddress::Tcp(SocketAddr::V6(SocketAddrV6::new(inner, port, 0, number)))])
}

fn hosts(address: &ListenAddress, host: &str, port: u16) -> Result<Vec<ListenAddress>> {
    let found = (host, port).to_socket_addrs().map_err(|error| {
        let why = format!("the host name cannot be resolved ({error})");
        unknown(address, &why, "use an address, or add the name to /etc/hosts")
    })?;
    let mut all: Vec<SocketAddr> = Vec::new();
    for one in found {
        if !all.contains(&one) {
            all.push(one);
        }
    }
    let own: Vec<SocketAddr> = all.iter().copied().filter(|one| is_own(*one)).collect();
    // If this machine has none of them, opening the first one gives the error message.
    let usable = if own.is_empty() { all.into_iter().take(1).collect() } else { own };
    match usable.is_empty() {
        true => Err(unknown(address, "the host name has no address", "use an address")),
        false => Ok(usable.into_iter().map(ListenAddress::Tcp).collect()),
    }
}

fn owners(address: &ListenAddress, access: &FileAccess) -> Result<FileAccess> {
    let missing = |what: &str| unknown(address, what, "see `getent`, or give a number");
    let user = match &access.user {
        Some(name) => {
            let found = account::find_user(name)?;
            Some(found.ok_or_else(|| missing("there is no such user"))?.user.to_string())
        }
        None => None,
    };
    let group = match &access.group {
        Some(name) => {
            let found = account::find_group(name)?;
            Some(found.ok_or_else(|| missing("there is no such group"))?.to_string())
        }
        None => None,
    };
    Ok(FileAccess { mode: access.mode, user, group })
}

/// Runs a query on a separate thread, which continues unattended if it takes longer than
/// `patience`.
///
/// # Errors
/// Those of the query; ETIMEDOUT; or too many threads.
pub fn within<T: Send + 'static>(
    patience: Duration,
    what: &str,
    question: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (answer, answered) = sync_channel(1);
    // Sending fails if the caller no longer waits.
    let body = move || drop(answer.send(question()));
    let thread = thread::Builder::new().name("lookup".into()).spawn(body);
    thread.map_err(|error| Error::system(format!("start a thread to {what}"), errno_of(&error)))?;
    match answered.recv_timeout(patience) {
        Ok(found) => found,
        Err(RecvTimeoutError::Timeout) => Err(no_answer(what, patience)),
        Err(RecvTimeoutError::Disconnected) => Err(Error::system(what, Errno::EIO)),
    }
}

/// The error for a query that timed out.
#[must_use]
pub fn no_answer(what: &str, patience: Duration) -> Error {
    Error::system(format!("{what} within {} s", patience.as_secs()), Errno::ETIMEDOUT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn resolved(text: &str) -> Result<Vec<String>> {
        let address: ListenAddress = text.parse().expect("a valid form");
        resolve(&address).map(|all| all.iter().map(ListenAddress::to_string).collect())
    }

    #[test]
    fn names_become_numbers() {
        let local = resolved("localhost:80").expect("every machine has it");
        assert!(local.contains(&"127.0.0.1:80".to_owned()), "{local:?}");
        assert!(local.len() <= 2, "{local:?}");
        let all = resolved("*:80").expect("every machine has it");
        assert!(["[::]:80", "0.0.0.0:80"].contains(&all[0].as_str()), "{all:?}");
        let scoped = resolved("[fe80::1%lo]:80").expect("every machine has a loopback");
        let number = if_nametoindex("lo").expect("every machine has a loopback");
        assert_eq!(scoped, [format!("[fe80::1%{number}]:80")]);
        let socket = resolved("unix:/a,mode=660,user=root,group=root").expect("there is root");
        assert_eq!(socket, ["unix:/a,mode=660,user=0,group=0"]);
        assert_eq!(resolved("[::1]:80").expect("it is an address"), ["[::1]:80"]);
    }

    #[test]
    fn what_is_not_there_is_named() {
        for (text, why) in [
            ("[fe80::1%nowhere]:80", "network interface"),
            ("no-such-host.invalid:80", "cannot be resolved"),
            ("unix:/a,user=no-such-user", "user"),
            ("unix:/a,group=no-such-group", "group"),
        ] {
            let error = resolved(text).expect_err(text);
            assert_eq!(error.kind(), ErrorKind::Usage);
            assert!(error.to_string().contains(why), "{error}");
        }
    }

    #[test]
    fn an_answer_that_does_not_come_is_not_waited_for() {
        let slow = || {
            thread::sleep(Duration::from_secs(60));
            Ok(())
        };
        let error = within(Duration::from_millis(20), "look a name up", slow).expect_err("slow");
        assert_eq!(error.to_string(), "look a name up within 0 s: Connection timed out");
        assert_eq!(within(Duration::from_secs(60), "add", || Ok(1)).expect("fast"), 1);
    }
}
