//! Processes with their own streams, directories and identities.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::*;

fn shell<'a>(script: &str) -> Launch<'a> {
    Launch {
        program: PathBuf::from("/bin/sh"),
        name: "a shell".into(),
        arguments: vec!["-c".into(), script.into()],
        environment: vec![("COLOUR".into(), "blue".into())],
        removed: vec![],
        id_variable: None,
        directory: None,
        user: None,
        group: None,
        confined: false,
        streams: [Stream::Nothing, Stream::Pipe, Stream::Inherit],
        own_group: false,
        blocked_signals: None,
        descriptor_limit: DescriptorLimit::Inherited,
        ends_with_parent: false,
        inherited: vec![],
        placed: vec![],
    }
}

/// Its standard output, and how it ended.
fn run(launch: Launch<'_>) -> (String, Ending) {
    let mut started = launch.start().expect("there is a shell");
    let mut text = String::new();
    let mut output = started.output.take().expect("a pipe");
    output.read_to_string(&mut text).expect("text");
    let status = started.process.child.wait().expect("it is our child");
    (text, Ending::from(status))
}

#[test]
fn a_process_gets_its_variables_folder_and_name() {
    let launch = Launch { directory: Some("/".into()), ..shell("echo $COLOUR; pwd; echo $0") };
    assert_eq!(run(launch), ("blue\n/\na shell\n".into(), Ending::Code(0)));
}

#[test]
fn a_process_is_told_its_own_id_before_it_runs() {
    let launch = Launch { id_variable: Some("OWN_ID"), ..shell("echo $OWN_ID; echo $$") };
    let (text, _) = run(launch);
    let (told, real) = text.trim_end().split_once('\n').expect("two lines");
    assert_eq!(told, real);
}

#[test]
fn a_process_in_its_own_group_has_no_signals_blocked() {
    let blocked = |own_group| {
        // Not through a shell, which might change the environment.
        let program = "/bin/grep".into();
        let arguments = vec!["SigBlk".into(), "/proc/self/status".into()];
        let (text, _) = run(Launch { own_group, program, arguments, ..shell("") });
        let mask = text.trim_start_matches("SigBlk:").trim();
        u64::from_str_radix(mask, 16).expect("a mask")
    };
    crate::signal::block(&[Signal::SIGTERM]).expect("a valid signal");
    let bit = 1 << (Signal::SIGTERM as u64 - 1);
    assert_eq!(blocked(false) & bit, bit);
    assert_eq!(blocked(true), 0);
}

#[test]
fn a_process_ends_with_the_thread_that_started_it_if_that_is_wished() {
    let launch = Launch { ends_with_parent: true, ..shell("exec sleep 100") };
    let thread = std::thread::spawn(move || launch.start().expect("there is a shell"));
    let mut started = thread.join().expect("it has started a shell");
    let status = started.process.child.wait().expect("it is our child");
    assert_eq!(Ending::from(status), Ending::Signal(15));
}

#[test]
fn descriptors_are_placed_under_the_numbers_that_were_asked_for() {
    let (first, mut ours) = UnixStream::pair().expect("a pair");
    let (second, mut other) = UnixStream::pair().expect("a pair");
    ours.write_all(b"one").expect("room");
    other.write_all(b"two").expect("room");
    drop((ours.shutdown(std::net::Shutdown::Write), other.shutdown(std::net::Shutdown::Write)));
    let placed = vec![(7, OwnedFd::from(first)), (4, OwnedFd::from(second))];
    let launch = Launch { placed, ..shell("cat <&4; cat <&7") };
    assert_eq!(run(launch).0, "twoone");
    let placed = vec![(2, OwnedFd::from(UnixStream::pair().expect("a pair").0))];
    assert!(Launch { placed, ..shell("true") }.start().is_err(), "2 is a standard stream");
}

#[test]
fn a_program_that_is_not_there_is_told_even_with_placed_descriptors() {
    let placed = vec![(5, OwnedFd::from(UnixStream::pair().expect("a pair").0))];
    let launch = Launch { program: "/nowhere/at/all".into(), placed, ..shell("true") };
    let error = launch.start().expect_err("there is no such program");
    assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
}

#[test]
fn another_user_has_none_of_our_groups() {
    if !geteuid().is_root() {
        return crate::missing::lacking("root, who alone can start workers as another user");
    }
    let ids = "id -u; id -g; id -G";
    let launch = Launch { user: Some(65_534), group: Some(65_533), ..shell(ids) };
    assert_eq!(run(launch).0, "65534\n65533\n65533\n");
    let launch = Launch { group: Some(65_533), ..shell(ids) };
    assert_eq!(run(launch).0, "0\n65533\n65533\n");
}

#[test]
fn what_is_confined_keeps_no_right_and_gets_none() {
    if !geteuid().is_root() {
        eprintln!("not tested: only root can change its user");
        return;
    }
    let program: PathBuf = "/bin/grep".into();
    let arguments: Vec<OsString> =
        ["-E", "Cap|NoNewPrivs|Groups", "/proc/self/status"].map(Into::into).into();
    let confined = Launch {
        program,
        arguments,
        user: Some(65_534),
        group: Some(65_533),
        confined: true,
        ..shell("")
    };
    let (text, _) = run(confined);
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("a line of it");
        line.trim().to_owned()
    };
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(value(set), "0".repeat(16), "{set}");
    }
    assert_eq!((value("NoNewPrivs:").as_str(), value("Groups:").as_str()), ("1", ""));
}

#[test]
fn a_process_gets_no_descriptor_that_is_not_its_own() {
    let leak = std::fs::File::open("/dev/null").expect("it is there");
    // As inherited from a parent or opened by a library: not marked close-on-exec.
    fcntl(&leak, FcntlArg::F_SETFD(FdFlag::empty())).expect("it is open");
    let own = UnixStream::pair().expect("a pair").0;
    let number = own.as_raw_fd();
    let script = format!(
        "test -e /proc/self/fd/{} && echo leak; exec 2>&1; \
        test -e /proc/self/fd/{number} && echo own",
        leak.as_raw_fd()
    );
    let launch = Launch { inherited: vec![own.as_fd()], ..shell(&script) };
    assert_eq!(run(launch).0, "own\n");
}

#[test]
fn a_signal_from_afar_ends_it_and_comes_too_late_afterwards() {
    let mut started = shell("sleep 100 & wait").start().expect("there is a shell");
    let remote = started.process.remote();
    remote.signal(Signal::SIGKILL).expect("it is our child");
    let status = started.process.child.wait().expect("it is our child");
    assert_eq!(Ending::from(status), Ending::Signal(9));
    remote.signal(Signal::SIGKILL).expect("signalling an ended process succeeds");
}

#[test]
fn a_leading_process_has_a_session_too() {
    let session = |own_group| {
        let script = "echo $$ $(cut -d' ' -f6 /proc/$$/stat)";
        let (text, _) = run(Launch { own_group, ..shell(script) });
        let (own, session) = text.trim_end().split_once(' ').expect("two numbers");
        own == session
    };
    assert!(session(true) && !session(false));
}

#[test]
fn a_pipe_belongs_to_the_user_who_prints_into_it() {
    if !geteuid().is_root() {
        eprintln!("not tested: only root may start processes as another user");
        return;
    }
    let another = Launch { user: Some(54_321), group: Some(54_321), ..shell("echo > /dev/stdout") };
    assert_eq!(run(another), ("\n".into(), Ending::Code(0)));
}

#[test]
fn a_process_gets_the_descriptor_limit_that_is_wished() {
    let limit = |descriptor_limit| {
        let (text, _) = run(Launch { descriptor_limit, ..shell("ulimit -Sn; ulimit -Hn") });
        let (soft, hard) = text.trim_end().split_once('\n').expect("two lines");
        (soft.to_owned(), hard.to_owned())
    };
    let (_, hard) = limit(DescriptorLimit::Inherited);
    assert_eq!(limit(DescriptorLimit::Number(77)), ("77".into(), hard.clone()));
    let most = limit(DescriptorLimit::Hard);
    assert_eq!(most, (hard.clone(), hard));
}

#[test]
fn this_program_is_found_by_the_path_that_it_was_started_by() {
    let by_path = family::started_by().expect("the kernel has said so");
    let link = std::fs::read_link("/proc/self/exe").expect("there is /proc");
    assert_eq!(by_path.canonicalize().expect("it is there"), link);
}
