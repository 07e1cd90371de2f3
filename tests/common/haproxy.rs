//! The real HAProxy in front of a run.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use super::{eventually, free_ports};

/// A running HAProxy. Dropping it kills it.
pub(crate) struct Haproxy {
    child: Child,
    folder: tempfile::TempDir,
}

impl Haproxy {
    /// Starts it with a configuration and a socket for its statistics.
    pub(crate) fn start(configuration: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("stats");
        let global = format!("global\n    stats socket {} mode 600\n", socket.display());
        let file = folder.path().join("haproxy.cfg");
        fs::write(&file, format!("{global}{configuration}")).expect("it can be written");
        let child = Command::new("haproxy")
            .args(["-db", "-f"])
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let haproxy = Self { child: child.expect("it is installed"), folder };
        eventually("HAProxy to run", || haproxy.try_statistics().map(drop));
        haproxy
    }

    /// Puts one listener in front of a server for each version of the PROXY protocol's header.
    /// `check` is what its lines for the server say beyond that.
    pub(crate) fn with_headers(server: &str, check: &str) -> (Self, Vec<u16>) {
        let ports = free_ports(&["127.0.0.1"], 2);
        let mut configuration = String::from(
            "defaults\n    mode tcp\n    timeout connect 30s\n    timeout client 60s\n    \
             timeout server 60s\n    timeout check 30s\n",
        );
        for (port, version) in ports.iter().zip(["send-proxy", "send-proxy-v2"]) {
            configuration += &format!(
                "listen {version}\n    bind 127.0.0.1:{port}\n    \
                 server {version} {server} {version} {check}\n"
            );
        }
        (Self::start(&configuration), ports)
    }

    fn try_statistics(&self) -> Option<String> {
        let mut stream = UnixStream::connect(self.folder.path().join("stats")).ok()?;
        stream.write_all(b"show stat\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        (!text.is_empty()).then_some(text)
    }

    /// A server's state, and its weight.
    pub(crate) fn server(&self, name: &str) -> (String, u32) {
        let text = self.try_statistics().expect("it runs");
        let mut lines = text.lines();
        let names: Vec<&str> = lines.next().expect("names").split(',').collect();
        let line = lines.find(|line| line.split(',').nth(1) == Some(name)).expect("the server");
        let field = |wanted: &str| {
            let place = names.iter().position(|name| *name == wanted).expect("the field");
            line.split(',').nth(place).unwrap_or_default()
        };
        (field("status").to_owned(), field("weight").parse().unwrap_or(0))
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
