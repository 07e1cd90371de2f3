//! Roles and settings: how workers are started.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use clusterlb::{Cluster, Ending, Error, Event, ForkOptions, InspectPort, Policy, StreamSetting};

use crate::missing::lacking;
use crate::puppet::{COLOUR, Order};
use crate::stage::{Stage, another_primary};
use crate::trials;

trials!(
    the_role_is_decided_by_the_environment,
    variables_of_a_fork_are_added_and_override,
    settings_are_cumulative_and_for_later_forks,
    every_setup_is_told,
    the_policy_is_frozen_by_the_first_setup_or_fork,
    the_environment_sets_the_policy,
    arguments_of_the_interpreter_come_first,
    workers_run_in_their_own_folder,
    the_output_of_silent_workers_is_read_from_pipes,
    streams_are_placed_under_their_numbers,
    streams_are_written_to_and_inherited,
    workers_run_as_another_user_without_groups,
    debuggers_get_ports_of_their_own,
    a_program_that_is_not_there_is_told,
    impossible_settings_are_refused,
    places_and_numbers_of_workers,
);

fn the_role_is_decided_by_the_environment() {
    assert!(clusterlb::is_primary() && !clusterlb::is_worker());
    assert!(matches!(clusterlb::role(), Ok(clusterlb::Role::Primary(_))));
    let refused = clusterlb::Worker::current().expect_err("this is a primary");
    assert_eq!(refused.kind(), clusterlb::ErrorKind::Usage, "{refused}");
    let mut stage = Stage::new();
    let worker = stage.puppet();
    let facts = stage.facts(&worker);
    assert!(facts.is_worker && facts.cannot_be_primary);
    assert_eq!((facts.id, facts.pid), (1, worker.pid()));
    stage.end();
}

fn variables_of_a_fork_are_added_and_override() {
    let mut stage = Stage::new();
    let (plain, blue) = (stage.puppet(), ForkOptions::default().variable(COLOUR, "blue"));
    let blue = stage.puppet_with(blue);
    assert_eq!(stage.facts(&plain).colour, None);
    assert_eq!(stage.facts(&blue).colour.as_deref(), Some("blue"));
    let override_id = ForkOptions::default().variable("CLUSTERLB_WORKER_ID", "77");
    let third = stage.puppet_with(override_id);
    assert_eq!(stage.facts(&third).id, 3, "what makes a worker cannot be overridden");
    stage.end();
}

fn settings_are_cumulative_and_for_later_forks() {
    let mut stage = Stage::with(|settings| settings.args = vec!["--use".into(), "https".into()]);
    let first = stage.puppet();
    stage
        .cluster
        .setup_primary(|settings| settings.args = vec!["--use".into(), "http".into()])
        .expect("valid settings");
    let second = stage.puppet();
    stage.cluster.setup_primary(|settings| settings.cwd = Some("/".into())).expect("valid");
    let third = stage.puppet();
    assert_eq!(stage.facts(&first).arguments, ["--use", "https"]);
    assert_eq!(stage.facts(&second).arguments, ["--use", "http"]);
    let facts = stage.facts(&third);
    assert_eq!((facts.arguments, facts.folder), (vec!["--use".into(), "http".into()], "/".into()));
    assert_eq!(stage.cluster.settings().args, ["--use", "http"]);
    stage.end();
}

fn every_setup_is_told() {
    let cluster = Cluster::primary().expect("a primary");
    let events = cluster.events().expect("descriptors");
    for count in 0..3 {
        let args = vec!["x".into(); count];
        cluster.setup_primary(|settings| settings.args = args).expect("valid settings");
    }
    drop(cluster);
    let told: Vec<usize> = events
        .map(|event| match event {
            Event::Setup { settings } => settings.args.len(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(told, [0, 1, 2]);
}

fn the_policy_is_frozen_by_the_first_setup_or_fork() {
    let change =
        |cluster: &Cluster, policy| cluster.setup_primary(|settings| settings.policy = policy);
    let cluster = Cluster::primary().expect("a primary");
    assert_eq!(cluster.scheduling_policy(), Policy::Rr);
    change(&cluster, Policy::None).expect("the first setup may");
    assert_eq!(cluster.scheduling_policy(), Policy::None);
    let error = change(&cluster, Policy::Rr).expect_err("it is frozen");
    assert!(matches!(error, Error::Usage { .. }), "{error}");
    assert_eq!(cluster.scheduling_policy(), Policy::None);
    change(&cluster, Policy::None).expect("the same is no change");
    let stage = Stage::new();
    stage.cluster.fork().expect("a worker");
    assert!(change(&stage.cluster, Policy::None).is_err(), "frozen by the fork");
}

fn the_environment_sets_the_policy() {
    for (value, told) in [(Some("none"), "None"), (Some("least"), "Least"), (None, "Rr")] {
        let mut primary = another_primary("policy", Path::new("/proc/self/exe"));
        primary.env_remove("CLUSTERLB_SCHED_POLICY");
        if let Some(value) = value {
            primary.env("CLUSTERLB_SCHED_POLICY", value);
        }
        let output = primary.output().expect("this program runs");
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), told);
    }
    let mut primary = another_primary("policy", Path::new("/proc/self/exe"));
    let output = primary.env("CLUSTERLB_SCHED_POLICY", "fair").output().expect("this program runs");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(told.contains("CLUSTERLB_SCHED_POLICY=fair is not a policy"), "{told}");
}

fn arguments_of_the_interpreter_come_first() {
    let mut stage = Stage::with(|settings| {
        settings.exec_argv = vec!["--inspect".into()];
        settings.args = vec!["own".into()];
    });
    let worker = stage.puppet();
    assert_eq!(stage.facts(&worker).arguments, ["--inspect", "own"]);
    stage.end();
}

fn workers_run_in_their_own_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().canonicalize().expect("it is there");
    let mut stage = Stage::with(|settings| settings.cwd = Some(path.clone()));
    let worker = stage.puppet();
    assert_eq!(stage.facts(&worker).folder, path.display().to_string());
    stage.end();
}

fn the_output_of_silent_workers_is_read_from_pipes() {
    let mut stage = Stage::with(|settings| settings.silent = true);
    let worker = stage.puppet();
    worker.send(&Order::Print { stream: false }).expect("the puppet reads");
    worker.send(&Order::Exit { code: 0 }).expect("the puppet reads");
    let (mut output, mut errors) = (String::new(), String::new());
    worker.take_stdout().expect("a pipe").read_to_string(&mut output).expect("text");
    worker.take_stderr().expect("a pipe").read_to_string(&mut errors).expect("text");
    assert_eq!((output.as_str(), errors.as_str()), ("to standard output\n", "to standard error\n"));
    assert!(worker.take_stdout().is_none() && worker.take_stdin().is_none());
    assert_eq!(stage.exit(&worker).0, Ending::Code(0));
    stage.end();
}

fn streams_are_placed_under_their_numbers() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("errors");
    let file = std::fs::File::create(&path).expect("the folder is ours");
    let file = StreamSetting::Descriptor(Arc::new(file.into()));
    let mut stage = Stage::with(|settings| {
        settings.silent = true;
        settings.stdio = Some(vec![
            StreamSetting::Ignore,
            StreamSetting::Pipe,
            file,
            StreamSetting::Ignore,
            StreamSetting::Pipe,
        ]);
    });
    let worker = stage.puppet();
    worker.send(&Order::Print { stream: true }).expect("the puppet reads");
    let mut stream = worker.take_stream(4).expect("a pipe");
    let mut said = [0; 11];
    stream.read_exact(&mut said).expect("it says something");
    assert_eq!(&said, b"to stream 4");
    stream.write_all(b"ok").expect("it reads");
    worker.send(&Order::Exit { code: 0 }).expect("the puppet reads");
    let mut output = String::new();
    worker.take_stdout().expect("a pipe").read_to_string(&mut output).expect("text");
    assert_eq!(output, "to standard output\n");
    assert!(worker.take_stderr().is_none() && worker.take_stream(3).is_none());
    stage.exit(&worker);
    assert_eq!(std::fs::read_to_string(&path).expect("it is there"), "to standard error\n");
    stage.end();
}

/// Data written to a worker's input comes out of it; inherited streams are those of this process.
fn streams_are_written_to_and_inherited() {
    let (mut inherited, theirs) = std::io::pipe().expect("a pipe");
    let number = theirs.as_raw_fd();
    let mut stage = Stage::with(|settings| {
        settings.exec = "/bin/bash".into();
        settings.args = vec!["-c".into(), format!("cat; echo inherited >&{number}").into()];
        let mut streams = vec![StreamSetting::Ignore; usize::try_from(number).expect("small")];
        streams[..3].fill(StreamSetting::Pipe);
        streams.push(StreamSetting::Inherit);
        settings.stdio = Some(streams);
    });
    let worker = stage.cluster.fork().expect("there is a shell");
    drop(theirs);
    let mut input = worker.take_stdin().expect("a pipe");
    input.write_all(b"there and back").expect("it reads");
    drop(input);
    let mut output = String::new();
    worker.take_stdout().expect("a pipe").read_to_string(&mut output).expect("text");
    assert_eq!(output, "there and back");
    assert_eq!(stage.exit(&worker).0, Ending::Code(0));
    let mut said = String::new();
    inherited.read_to_string(&mut said).expect("text");
    assert_eq!(said, "inherited\n");
    stage.end();
}

fn workers_run_as_another_user_without_groups() {
    if !nix::unistd::geteuid().is_root() {
        return lacking("root, who alone can start workers as another user");
    }
    let mut stage =
        Stage::with(|settings| (settings.uid, settings.gid) = (Some(65_534), Some(65_533)));
    let worker = stage.puppet();
    let facts = stage.facts(&worker);
    let groups: Vec<u32> = facts.groups.into_iter().filter(|group| *group != 65_533).collect();
    assert_eq!((facts.user, facts.group, groups), (65_534, 65_533, vec![]));
    // It serves like any other worker: the sockets belong to the primary.
    let address = stage.listen(&worker, "127.0.0.1:0");
    assert_eq!(crate::stage::ask(&address).expect("it serves"), "worker 1\n");
    worker.kill(clusterlb::Signal::SIGTERM).expect("root may");
    assert_eq!(stage.exit(&worker).0, Ending::Signal(15));
    stage.end();
}

fn debuggers_get_ports_of_their_own() {
    let mut stage = Stage::with(|settings| settings.inspect_port = Some(InspectPort::From(9229)));
    for port in [9230, 9231] {
        let worker = stage.puppet();
        assert_eq!(stage.facts(&worker).inspect_port, Some(port));
    }
    let same = Some(InspectPort::Same(6000));
    stage.cluster.setup_primary(|settings| settings.inspect_port = same).expect("valid");
    for _ in 0..2 {
        let worker = stage.puppet();
        assert_eq!(stage.facts(&worker).inspect_port, Some(6000));
    }
    let asked = AtomicU16::new(5000);
    let cluster = stage.cluster.clone();
    let function = move || {
        // The function may query the cluster.
        assert!(!cluster.workers().is_empty() && cluster.settings().inspect_port.is_some());
        asked.fetch_add(10, Ordering::Relaxed)
    };
    let ports = InspectPort::Function(Arc::new(function));
    stage.cluster.setup_primary(|settings| settings.inspect_port = Some(ports)).expect("valid");
    for port in [5000, 5010] {
        let worker = stage.puppet();
        assert_eq!(stage.facts(&worker).inspect_port, Some(port));
    }
    stage.cluster.setup_primary(|settings| settings.inspect_port = None).expect("valid");
    let worker = stage.puppet();
    assert_eq!(stage.facts(&worker).inspect_port, None);
    stage.end();
}

fn a_program_that_is_not_there_is_told() {
    let stage = Stage::with(|settings| settings.exec = "/nowhere/at/all".into());
    let error = stage.cluster.fork().expect_err("there is no such program");
    assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
    assert!(stage.cluster.workers().is_empty());
    stage.end();
}

fn impossible_settings_are_refused() {
    let cluster = Cluster::primary().expect("a primary");
    for backlog in [0, 65_536] {
        let refused = cluster.setup_primary(|settings| settings.backlog = backlog);
        assert!(matches!(refused, Err(Error::Usage { .. })), "{backlog}");
    }
    assert_eq!(cluster.settings().backlog, 4096, "nothing was changed");
}

fn places_and_numbers_of_workers() {
    let mut stage = Stage::new();
    let first = stage.puppet_with(ForkOptions::default().place(3));
    let taken = stage.cluster.fork_with(ForkOptions::default().place(3));
    assert!(taken.expect_err("it is taken").to_string().contains("place 3 is taken"));
    assert!(stage.cluster.fork_with(ForkOptions::default().place(1024)).is_err());
    first.kill(clusterlb::Signal::SIGKILL).expect("it is ours");
    stage.exit(&first);
    let second = stage.puppet_with(ForkOptions::default().place(3));
    assert_eq!(second.id().get(), 2, "the place is used again, the number is not");
    stage.end();
}
