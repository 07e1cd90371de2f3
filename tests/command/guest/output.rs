//! A full disk, a closed standard output and a file size limit: an error with the reason, and exit
//! code 1.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use crate::common::{BINARY, eventually, has_program, machine};

const SHORT: [&[&str]; 6] =
    [&["--help"], &["-h"], &["--version"], &["check"], &["check", "--json"], &["bench", "--help"]];

/// Fails unless the command ends with 1 and one line with these words.
fn assert_fails(command: &mut Command, what: &[&str], words: &[&str]) {
    let output = command.stderr(Stdio::piped()).output().expect("it can be started");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{what:?}: {said}");
    assert_eq!(said.lines().count(), 1, "{what:?}: {said}");
    for word in words {
        assert!(said.contains(word), "{what:?}: no {word:?} in {said}");
    }
}

#[test]
fn a_full_disk_is_a_failure() {
    for words in SHORT {
        let full = File::options().write(true).open("/dev/full").expect("there is one");
        let mut command = Command::new(BINARY);
        let told = ["write to standard output", "No space left", "disk"];
        assert_fails(command.args(words).stdout(full), words, &told);
    }
}

#[test]
fn a_closed_standard_output_is_a_failure() {
    let run: &[&str] = &["--json", "--listen", "127.0.0.1:0"];
    let load: &[&str] = &["load", "--requests", "1", "127.0.0.1:1"];
    for words in SHORT.into_iter().chain([run, load]) {
        let mut command = Command::new("sh");
        command.args(["-c", "exec \"$@\" >&-", "sh", BINARY]).args(words);
        assert_fails(&mut command, words, &["write to standard output", "closed"]);
    }
}

#[test]
fn a_file_that_may_not_grow_is_a_failure_and_no_signal() {
    if !has_program("prlimit") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    for words in SHORT {
        let file = File::create(folder.path().join("file")).expect("the folder is writable");
        let mut command = Command::new("prlimit");
        command.args(["--fsize=10:10", "--", BINARY]).args(words).stdout(file);
        assert_fails(&mut command, words, &["File too large", "ulimit -f"]);
    }
}

#[test]
fn a_run_whose_events_find_no_room_serves_and_fails_at_its_end() {
    let full = File::options().write(true).open("/dev/full").expect("there is one");
    let mut child = Command::new(BINARY)
        .args(["--json", "--workers", "1", "--listen", "127.0.0.1:0"])
        .stdout(full)
        .stderr(Stdio::piped())
        .spawn()
        .expect("it can be started");
    let mut errors = BufReader::new(child.stderr.take().expect("a pipe"));
    let mut note = String::new();
    errors.read_line(&mut note).expect("a line");
    assert!(note.contains("lines are lost") && note.contains("No space left"), "{note}");
    assert!(child.try_wait().expect("it is our child").is_none(), "it goes on");
    machine::signal(child.id(), Signal::SIGTERM);
    let status = eventually("the end", || child.try_wait().expect("it is our child"));
    assert_eq!(status.code(), Some(1));
}
