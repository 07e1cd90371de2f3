//! The live view: drawn on a terminal, absent elsewhere and with `--quiet`.

use std::fs::File;
use std::io::Read;
use std::process::Stdio;
use std::thread;

use crate::common::{Server, command, hello, http};
use nix::pty::{Winsize, openpty};

/// What the command draws on a terminal of 100 columns.
fn drawn(words: &str) -> String {
    let size = Winsize { ws_row: 40, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
    let terminal = openpty(&size, None).expect("a pseudo-terminal");
    let mut screen = File::from(terminal.master);
    let reader = thread::spawn(move || {
        let mut text = Vec::new();
        let mut piece = [0; 4096];
        // Reading fails as soon as no process has the terminal open.
        while let Ok(length @ 1..) = screen.read(&mut piece) {
            text.extend_from_slice(&piece[..length]);
        }
        String::from_utf8_lossy(&text).into_owned()
    });
    let status = command(words)
        .env("TERM", "xterm")
        .stdout(Stdio::null())
        .stderr(Stdio::from(terminal.slave))
        .status()
        .expect("the command starts");
    assert!(status.success(), "{words}");
    reader.join().expect("it reads to the end")
}

#[test]
fn a_terminal_shows_rate_latency_statuses_and_errors_so_far() {
    let server = Server::start(http(|stream, _| hello(stream)));
    let text = drawn(&format!("--rate 200 -d 2500ms http://{}/", server.address));
    for word in ["in flight", "/s now", "p50", "p99", "2xx", "errors", "starts late"] {
        assert!(text.contains(word), "{word} is missing in {text:?}");
    }
    let text = drawn(&format!("-n 5 -c 1 --quiet {}", server.address));
    assert_eq!(text, "");
}
