//! What the programs are started with, and how their counters are read.

use super::*;

fn setup(work: &str) -> Setup {
    let work = Some(work.parse().expect("work"));
    Setup { workers: 8, cpus: vec![0], work, seed: 7, accept_at_once: false }
}

#[test]
fn own_targets_are_started_as_they_are_named() {
    let setup = setup("block:1ms");
    let words = |target: &str| own_arguments(target.parse().expect("a target"), &setup).join(" ");
    let text = words("none:epoll-drain");
    assert!(text.contains("--workers 8 --policy none --accept epoll-drain"), "{text}");
    assert!(text.ends_with("--work block:1ms --work-seed 7"));
    assert!(!words("rr").contains("accept"));
    let at_once = Setup { accept_at_once: true, ..setup.clone() };
    let text = own_arguments("rr".parse().expect("a target"), &at_once).join(" ");
    assert!(text.contains("--defer-accept off"), "{text}");
    let text = words("rr --credits 8");
    assert!(text.contains("--policy rr ") && text.ends_with(" --credits 8"), "{text}");
    // The listening and working program is the script.
    let text = words("none:reuseport+node --grace 3s");
    let expected = "--workers 8 --policy none --accept reuseport --grace 3s";
    assert!(text.ends_with(expected), "{text}");
    assert!(!text.contains("--listen") && !text.contains("--work "), "{text}");
}

#[test]
fn books_are_read_from_either_kind_of_summary() {
    let own = r#"{"event":"summary","accepted":9,"workers":[
        {"id":1,"pid":5,"assigned":7,"returned":1},{"id":2,"pid":6,"assigned":3}]}"#;
    let own = vec!["noise".into(), r#"{"event":"respawn","id":1}"#.into(), own.replace('\n', "")];
    let read = books(&own, 3);
    assert_eq!(read, Books { connections: Some(vec![6, 3, 0]), restarted: 1 });
    let node = r#"{"event":"summary","restarted":2,"workers":[
        {"id":1,"connections":4},{"id":2,"connections":null}]}"#;
    let read = books(&[node.replace('\n', "")], 2);
    assert_eq!(read, Books { connections: Some(vec![4, 0]), restarted: 2 });
    assert_eq!(books(&[], 2), Books::default());
    let message = |id: u32, count: u32| {
        format!(r#"{{"event":"message","id":{id},"pid":5,"message":{{"connections":{count}}}}}"#)
    };
    let mut lines = vec![message(2, 11), message(1, 8)];
    lines.push(
        r#"{"event":"summary","workers":[{"id":1,"assigned":0},{"id":2,"assigned":0},
        {"id":3,"assigned":4,"returned":1}]}"#
            .replace('\n', ""),
    );
    assert_eq!(books(&lines, 3).connections, Some(vec![8, 11, 3]));
}

#[test]
fn folders_go_with_their_owner() {
    let temp_dir = TempDir::new().expect("a folder");
    let file = temp_dir.write("a", "text").expect("a file");
    assert!(file.exists());
    drop(temp_dir);
    assert!(!file.exists());
}

#[test]
fn programs_are_found_on_the_path() {
    assert!(find_program("sh").is_some());
    assert_eq!(find_program("no-such-program-anywhere"), None);
}

#[test]
fn work_that_blocks_is_not_stretched_by_the_kernel_and_other_processes_are_left_alone() {
    let mut interrupt = Interrupt::new().expect("an interrupt");
    let mut slack_of = |setup: &Setup| {
        let mut command = Command::new("cat");
        let mut child = start_on(setup, "cat", command.arg("/proc/self/timerslack_ns"));
        let child = child.as_mut().expect("there is a cat");
        child.next_line(START_WITHIN, &mut interrupt).ok().flatten().expect("a line")
    };
    let setups = ["block:1ms", "cpu:1ms"].map(setup);
    let nowhere = Setup { cpus: Vec::new(), ..setups[0].clone() };
    assert_eq!([&setups[0], &nowhere].map(&mut slack_of), ["1", "1"]);
    let own = nix::sys::prctl::get_timerslack().expect("a number");
    assert_eq!(slack_of(&setups[1]), own.to_string());
}
