//! Balancers in front of a run: HAProxy's agent-check and its health checks, with the real HAProxy,
//! and the files of examples/deploy.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::common::{
    Client, Cluster, GET_CLOSE, Haproxy, Launch, PATIENCE, eventually, free_ports, get,
    has_program, lacking, machine,
};

fn agent_of(run: &Cluster) -> String {
    run.event("agent-check", 0)["address"].as_str().expect("an address").to_owned()
}

fn line_of(agent: &str) -> String {
    let mut stream = TcpStream::connect(agent).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time");
    let mut line = String::new();
    stream.read_to_string(&mut line).expect("a line");
    line
}

#[test]
fn an_agent_tells_what_is_left_and_what_the_run_does() {
    let arguments = "--workers 1 --max-inflight 4 --agent-check 127.0.0.1:0 --drain-delay 10m \
                     --grace 1s";
    let run = Launch::new(arguments).start();
    let agent = agent_of(&run);
    let words = |line: &str| {
        let mut words = line.split_whitespace().map(str::to_owned);
        (words.next(), words.next(), words.next())
    };
    let (up, _, most) = words(&line_of(&agent));
    assert_eq!((up.as_deref(), most.as_deref()), (Some("up"), Some("maxconn:4")));
    let _open: Vec<Client> = (0..3).map(|_| Client::held(&run.address())).collect();
    // Three of four are taken; a busy CPU takes more.
    let (_, percent, _) = words(&line_of(&agent));
    let percent = percent.and_then(|one| one.strip_suffix('%')?.parse::<u32>().ok());
    assert!(percent.is_some_and(|percent| (1..=25).contains(&percent)), "{percent:?}");
    run.signal(Signal::SIGTERM);
    run.event("stopping", 0);
    assert_eq!(line_of(&agent), "drain\n");
    // Longer than the time in which a second signal counts as an echo of the first.
    std::thread::sleep(Duration::from_millis(100));
    let ended = run.stop(Signal::SIGTERM);
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

#[test]
fn an_agent_says_down_while_no_worker_serves() {
    let run = Launch::new("--workers 1 --agent-check 127.0.0.1:0 --hang-after 50ms");
    let run = run.with_defaults().start();
    let agent = agent_of(&run);
    let worker = run.worker_pids()[0];
    machine::signal(worker, Signal::SIGSTOP);
    let mut stuck = Client::to(&run.address());
    stuck.send(GET_CLOSE);
    eventually("the worker to count as hung", || {
        (line_of(&agent) == "down#no worker serves\n").then_some(())
    });
    machine::signal(worker, Signal::SIGCONT);
    stuck.receive().assert_hello();
    eventually("it to serve", || line_of(&agent).starts_with("up ").then_some(()));
    run.end();
}

#[test]
fn clients_of_the_agent_that_hang_hold_nothing_up() {
    let run = Launch::new("--workers 1 --agent-check 127.0.0.1:0").start();
    let agent = agent_of(&run);
    // The text that HAProxy is configured to send (agent-send) is read and ignored.
    let mut stream = TcpStream::connect(&agent).expect("it listens");
    stream.write_all(b"machine one\n").expect("it reads");
    stream.shutdown(Shutdown::Write).expect("it is open");
    let mut line = String::new();
    stream.read_to_string(&mut line).expect("a line");
    assert!(line.starts_with("up "), "{line}");
    let silent: Vec<TcpStream> =
        (0..200).map(|_| TcpStream::connect(&agent).expect("it listens")).collect();
    assert!(line_of(&agent).starts_with("up "));
    get(&run.address()).expect("it is served").assert_hello();
    drop(silent);
    run.end();
}

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/deploy").join(name)
}

#[test]
fn haproxy_follows_readiness_and_the_agent_by_the_example() {
    if !has_program("haproxy") {
        return;
    }
    let hosts = ["127.0.0.2", "127.0.0.3"];
    let ports = free_ports(&["127.0.0.1", hosts[0], hosts[1]], 4);
    let (web, admin, agent, front) = (ports[0], ports[1], ports[2], ports[3]);
    let start = |host: &str| {
        let arguments = format!(
            "--workers 1 --max-inflight 10 --drain-delay 3s --grace 1s --admin {host}:{admin} \
             --agent-check {host}:{agent}"
        );
        Launch::new(&arguments).listen(format!("{host}:{web}")).start()
    };
    let (one, two) = (start(hosts[0]), start(hosts[1]));
    let configuration = fs::read_to_string(example("haproxy.cfg")).expect("the example");
    assert!(configuration.lines().filter(|line| !line.starts_with('#')).count() <= 20);
    let configuration = configuration
        .replace("192.0.2.11:8000", &format!("{}:{web}", hosts[0]))
        .replace("192.0.2.12:8000", &format!("{}:{web}", hosts[1]))
        .replace("port 9100", &format!("port {admin}"))
        .replace("agent-port 9101", &format!("agent-port {agent}"))
        .replace("0.0.0.0:8080", &format!("127.0.0.1:{front}"))
        .replace("inter 1s", "inter 100ms")
        // A busy machine may take longer than the interval to answer a check.
        .replace("timeout connect 2s", "timeout connect 30s\n    timeout check 30s");
    let haproxy = Haproxy::start(&configuration);
    let is_up = |name: &str| haproxy.server(name).0.starts_with("UP").then_some(());
    eventually("both to be up", || is_up("one").and_then(|()| is_up("two")));
    let front = format!("127.0.0.1:{front}");
    (0..4).for_each(|_| get(&front).expect("an answer").assert_hello());
    // Half of its limit is in use: half of its weight is left, or less if its CPU is busy.
    let open: Vec<Client> = (0..5).map(|_| Client::held(&one.address())).collect();
    eventually("the weight to follow", || {
        (1..=50).contains(&haproxy.server("one").1).then_some(())
    });
    drop(open);
    // One gets SIGTERM: it is drained, and requests go to the other one.
    one.signal(Signal::SIGTERM);
    one.event("stopping", 0);
    eventually("it to be drained, or down", || {
        let status = haproxy.server("one").0;
        (status.contains("DRAIN") || status.starts_with("DOWN")).then_some(())
    });
    let before = two.count("exit");
    (0..6).for_each(|_| get(&front).expect("an answer").assert_hello());
    assert_eq!(two.count("exit"), before);
    assert_eq!(one.wait().code, Some(0));
    // Its successor is up again, although it was drained.
    let again = start(hosts[0]);
    eventually("it to be up again", || is_up("one"));
    drop(haproxy);
    for run in [two, again] {
        assert_eq!(run.stop(Signal::SIGTERM).code, Some(0));
    }
}

#[test]
fn the_examples_for_kubernetes_and_envoy_are_yaml_that_says_what_the_documents_say() {
    let knows = Command::new("python3").args(["-c", "import yaml"]).output();
    if !knows.is_ok_and(|output| output.status.success()) {
        return lacking("python3-yaml");
    }
    let script = r#"
import sys, yaml
kinds = {one["kind"]: one for one in yaml.safe_load_all(open(sys.argv[1]))}
assert set(kinds) == {"Deployment", "Service", "HorizontalPodAutoscaler"}, kinds.keys()
spec = kinds["Deployment"]["spec"]["template"]["spec"]
box = spec["containers"][0]
ports = {port["name"] for port in box["ports"]}
for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
    check = box[probe]["httpGet"]
    assert check["port"] in ports and check["path"] in ("/livez", "/readyz"), check
def seconds(option):
    return int(box["args"][box["args"].index(option) + 1].rstrip("s"))
assert seconds("--drain-delay") + seconds("--grace") < spec["terminationGracePeriodSeconds"]
service, labels = kinds["Service"]["spec"], kinds["Deployment"]["spec"]["selector"]["matchLabels"]
assert service["ports"][0]["targetPort"] in ports and service["selector"] == labels
target = kinds["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
assert target["name"] == kinds["Deployment"]["metadata"]["name"]
envoy = yaml.safe_load(open(sys.argv[2]))["static_resources"]
cluster = envoy["clusters"][0]
assert cluster["health_checks"][0]["http_health_check"]["path"] == "/readyz"
chain = envoy["listeners"][0]["filter_chains"][0]
assert cluster["name"] == chain["filters"][0]["typed_config"]["cluster"]
"#;
    let files = [example("kubernetes.yaml"), example("envoy.yaml")];
    let output = Command::new("python3").args(["-c", script]).args(&files).output();
    let output = output.expect("python3 is there");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
