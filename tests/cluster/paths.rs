//! Unix sockets: how paths are resolved, the permissions, and when the file is removed.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use clusterlb::Signal;
use clusterlb::{AddressKind, ListenOptions, Policy};

use crate::puppet::Service;
use crate::stage::{Stage, another_primary, ask, eventually, greeter};
use crate::trials;

trials!(
    unix_sockets_have_a_mode_and_are_unlinked,
    a_relative_path_is_meant_as_the_worker_sees_it,
    a_path_that_is_too_long_is_meant_as_well,
);

fn unix_sockets_have_a_mode_and_are_unlinked() {
    for policy in [Policy::Rr, Policy::None] {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("socket");
        let address = format!("unix:{}", path.display());
        let mut stage = Stage::with(|settings| settings.policy = policy);
        let workers = [stage.puppet(), stage.puppet()];
        // First open to all users, which no umask leaves; later open to the owner only.
        let options = ListenOptions::default().mode(0o777);
        for worker in &workers {
            let bound = stage.try_listen(worker, &address, options, Service::Greet);
            assert_eq!(bound.expect("the folder is empty"), address);
            let told = stage.listening(worker);
            assert_eq!((told.kind, told.port), (AddressKind::Unix, None));
            assert_eq!(told.address, path.display().to_string());
        }
        let mode = || std::fs::metadata(&path).expect("it is there").permissions().mode() & 0o7777;
        assert_eq!(mode(), 0o777);
        assert!((0..4).all(|_| [1, 2].contains(&greeter(&address))));
        for worker in &workers {
            assert!(path.exists(), "while a worker serves");
            stage.close(worker, &address);
        }
        eventually("the file to be removed", || (!path.exists()).then_some(()));
        let options = ListenOptions::default().mode(0o600);
        let bound = stage.try_listen(&workers[0], &address, options, Service::Greet);
        assert_eq!((bound.expect("the folder is empty"), mode()), (address, 0o600));
        // However its workers end.
        for worker in &workers {
            worker.kill(Signal::SIGKILL).expect("it is ours");
            stage.exit(worker);
        }
        eventually("the file to be removed", || (!path.exists()).then_some(()));
        stage.end();
    }
}

fn a_relative_path_is_meant_as_the_worker_sees_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let cwd = folder.path().to_owned();
    let mut stage = Stage::with(|settings| settings.cwd = Some(cwd));
    let worker = stage.puppet();
    let bound = stage.listen(&worker, "unix:socket");
    assert_eq!(bound, format!("unix:{}", folder.path().join("socket").display()));
    assert_eq!(greeter(&bound), 1);
    stage.end();
}

/// The kernel accepts 107 bytes, and the directory alone is longer. The primary gets the full path
/// and uses the part relative to its own directory.
fn a_path_that_is_too_long_is_meant_as_well() {
    let folder = tempfile::tempdir().expect("a folder");
    let deep = folder.path().join("d".repeat(120));
    std::fs::create_dir(&deep).expect("the folder is ours");
    let path = deep.join("socket");
    let elsewhere = folder.path().join("e".repeat(120));
    std::fs::create_dir(&elsewhere).expect("the folder is ours");
    let mut primary = another_primary("deep", Path::new("/proc/self/exe"))
        .arg(&elsewhere)
        .current_dir(&deep)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("this program runs");
    let mut told = String::new();
    let output = primary.stdout.take().expect("a pipe");
    BufReader::new(output).read_line(&mut told).expect("it tells what is served");
    assert_eq!(told, "unix:socket, and elsewhere ENAMETOOLONG\n");
    assert!(path.exists());
    // Clients have the same limit and the same workaround.
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&deep, &link).expect("the folder is ours");
    let short = format!("unix:{}", link.join("socket").display());
    assert_eq!(ask(&short).expect("it serves"), "worker 1\n");
    drop(primary.stdin.take());
    assert!(primary.wait().expect("it is ours").success());
    assert!(!path.exists(), "it is removed at the end");
}
