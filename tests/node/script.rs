//! Scripts for Node, each in a temporary folder, and the command that runs them.

use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::common::{Launch, has_program, lacking};

/// A server without any cluster code. It answers with its process id, after the request's body.
pub(crate) const SERVER: &str = "
    require('http').createServer((request, response) => {
        request.resume().on('end', () => response.end(String(process.pid)));
    }).listen(0, '127.0.0.1');";

/// A script in a temporary folder.
pub(crate) struct Script {
    folder: TempDir,
    name: &'static str,
}

impl Script {
    /// `None` if this machine has no Node.
    pub(crate) fn new(text: &str) -> Option<Self> {
        has_program("node").then(|| Self::named("server.js", text))
    }

    pub(crate) fn named(name: &'static str, text: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join(name), text).expect("the folder is writable");
        Self { folder, name }
    }

    /// A file in its folder.
    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// With the Node on the path.
    pub(crate) fn launch(&self, arguments: &str) -> Launch {
        self.launch_with(Path::new("node"), arguments)
    }

    /// With this Node.
    pub(crate) fn launch_with(&self, node: &Path, arguments: &str) -> Launch {
        let node = node.to_str().expect("a path in UTF-8");
        let launch = Launch::new(arguments).running(&[node, &self.path(self.name)]);
        let launch = launch.variable("TEST_SOCKET", &self.path("socket"));
        let launch = launch.variable("TEST_KEY", &self.path("key.pem"));
        launch.variable("TEST_CERTIFICATE", &self.path("certificate.pem"))
    }

    /// Makes a key and a certificate for it; reports openssl as missing otherwise.
    pub(crate) fn certify(&self) -> bool {
        let words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 \
                     -subj /CN=test -keyout";
        let made = Command::new("openssl")
            .args(words.split_whitespace())
            .args([&self.path("key.pem"), "-out", &self.path("certificate.pem")])
            .output();
        let made = made.is_ok_and(|made| made.status.success());
        if !made {
            lacking("openssl");
        }
        made
    }
}
