//! The examples of adapters, run as a reader would run them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};

use crate::stage::PATIENCE;

/// An example that runs. Dropping it kills the primary, and with that its workers end.
struct Example {
    primary: Child,
    output: BufReader<ChildStdout>,
}

impl Example {
    fn start(name: &str) -> Self {
        let file = file_of(name);
        let mut command = Command::new(&file);
        let primary = command.arg("127.0.0.1:0").stdout(Stdio::piped()).spawn();
        let mut primary = primary.unwrap_or_else(|error| {
            panic!("cannot run {}: {error}; run `cargo build --examples`", file.display())
        });
        let output = BufReader::new(primary.stdout.take().expect("it is a pipe"));
        Self { primary, output }
    }

    /// What the first worker serves.
    fn address(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("it is text");
        let address = line.trim_end().split_once(" serves ").map(|(_, address)| address.to_owned());
        address.unwrap_or_else(|| panic!("no address: {line:?}"))
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.primary.kill();
        let _ = self.primary.wait();
        // Workers have the same output: it ends with the last of them.
        let _ = self.output.read_to_end(&mut Vec::new());
    }
}

/// Examples lie in a folder beside the one of the tests' programs.
fn file_of(example: &str) -> PathBuf {
    let own = std::env::current_exe().expect("this program has a file");
    let folder = own.parent().and_then(|folder| folder.parent()).expect("a folder of its own");
    folder.join("examples").join(example)
}

/// What comes back for these bytes, as far as `is_all` says.
fn exchange(address: &str, request: &str, is_all: impl Fn(&str) -> bool) -> String {
    let mut stream = TcpStream::connect(address).expect("somebody listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("it is a socket");
    stream.write_all(request.as_bytes()).expect("somebody reads");
    let (mut answer, mut buffer) = (String::new(), [0; 1024]);
    while !is_all(&answer) {
        let length = stream.read(&mut buffer).expect("an answer");
        assert!(length > 0, "the connection ended after {answer:?}");
        answer.push_str(std::str::from_utf8(&buffer[..length]).expect("it is text"));
    }
    answer
}

pub(crate) fn axum_says_hello() {
    let mut example = Example::start("axum");
    let address = example.address();
    let request = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    let answer = exchange(&address, request, |answer| answer.contains("from worker "));
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("hello 127.0.0.1:"), "{answer}");
}

pub(crate) fn echo_echoes() {
    let mut example = Example::start("echo");
    let address = example.address();
    let text = "there and back";
    assert_eq!(exchange(&address, text, |answer| answer.len() >= text.len()), text);
}
