//! Messages in both directions: queued, large, in both formats, bounded, and with garbage among
//! them.

use clusterlb::{Ending, Error, Event, ForkOptions, Serialization};
use nix::errno::Errno;
use serde_json::{Value, json};

use crate::puppet::{Order, Reply, SLEEPY};
use crate::stage::{Stage, ask};
use crate::trials;
use crate::tricks::{Exotic, Trick};

trials!(
    messages_are_echoed,
    messages_are_kept_until_they_are_read,
    advanced_messages_hold_what_json_does_not,
    large_messages_pass_each_other_without_deadlock,
    a_worker_that_does_not_read_is_noticed,
    a_message_that_is_too_long_is_refused,
    words_about_nothing_are_ignored,
    garbage_ends_one_channel_and_nothing_else,
    a_header_of_garbage_is_no_reason_to_wait,
);

fn messages_are_echoed() {
    let mut stage = Stage::new();
    let worker = stage.puppet();
    for value in [json!("hi there"), json!(null), json!({"cmd": "notifyRequest", "n": [1, 2.5]})] {
        assert_eq!(stage.ask(&worker, &Order::Echo(value.clone())), Reply::Echo(value));
    }
    stage.end();
}

fn messages_are_kept_until_they_are_read() {
    let mut stage = Stage::new();
    let sleepy = ForkOptions::default().variable(SLEEPY, "200");
    let worker = stage.cluster.fork_with(sleepy).expect("a worker");
    // Sent before the worker runs and before it reads messages.
    for number in 0..100 {
        worker.send(&Order::Echo(number.into())).expect("the channel has room");
    }
    for number in 0..100 {
        assert_eq!(stage.reply(&worker), Reply::Echo(number.into()));
    }
    stage.end();
}

fn advanced_messages_hold_what_json_does_not() {
    let mut stage = Stage::with(|settings| settings.serialization = Serialization::Advanced);
    let worker = stage.puppet();
    let value = json!({"text": "ß", "numbers": [1, -1, 0.5, u64::MAX]});
    assert_eq!(stage.ask(&worker, &Order::Echo(value.clone())), Reply::Echo(value));
    worker.send(&Order::Echo(1.into())).expect("the puppet reads");
    let message = stage.message(&worker);
    assert_eq!(message.serialization(), Serialization::Advanced);
    assert!(serde_json::from_slice::<Value>(message.bytes()).is_err(), "it is no JSON");
    let by_place = [((1, -2), "here".to_owned()), ((-1, 0), "there".to_owned())].into();
    let exotic = Exotic { infinite: f64::NEG_INFINITY, by_place };
    let order = Order::Trick(Trick::Echo(exotic.clone()));
    assert_eq!(stage.ask(&worker, &order), Reply::Exotic(exotic));
    stage.end();
    let mut stage = Stage::new();
    let worker = stage.puppet();
    let refused = worker.send(&order).expect_err("JSON has no such keys");
    assert!(matches!(refused, Error::Usage { .. }), "{refused}");
    assert_eq!(stage.ask(&worker, &Order::Echo(1.into())), Reply::Echo(1.into()));
    stage.end();
}

fn large_messages_pass_each_other_without_deadlock() {
    const COUNT: usize = 12;
    for serialization in [Serialization::Json, Serialization::Advanced] {
        let mut stage = Stage::with(|settings| settings.serialization = serialization);
        let workers = [stage.puppet(), stage.puppet()];
        let value = Value::from("x".repeat(1_000_000));
        for _ in 0..COUNT {
            for worker in &workers {
                // The echoes of the first messages come back while the next ones are in flight.
                worker.send(&Order::Echo(value.clone())).expect("below the bound");
            }
        }
        for worker in &workers {
            for _ in 0..COUNT {
                assert!(stage.reply(worker) == Reply::Echo(value.clone()));
            }
        }
        stage.end();
    }
}

fn errno(result: clusterlb::Result<()>) -> Option<Errno> {
    match result {
        Err(Error::System { source, .. }) => Some(source.into()),
        _ => None,
    }
}

fn a_worker_that_does_not_read_is_noticed() {
    let mut stage = Stage::new();
    let worker = stage.puppet();
    worker.send(&Order::Deafen).expect("the puppet reads");
    // The kernel's buffers take some; the rest is queued here. Both are bounded.
    let value = Value::from("x".repeat(1_000_000));
    let failed = (0..200).find_map(|_| errno(worker.send(&Order::Echo(value.clone()))));
    assert_eq!(failed, Some(Errno::EAGAIN));
    // Other workers are not affected.
    let other = stage.puppet();
    assert_eq!(stage.ask(&other, &Order::Echo(1.into())), Reply::Echo(1.into()));
    worker.kill(clusterlb::Signal::SIGKILL).expect("it is ours");
    stage.exit(&worker);
    stage.end();
}

fn a_message_that_is_too_long_is_refused() {
    let mut stage = Stage::new();
    let worker = stage.puppet();
    let sent = worker.send(&"x".repeat(17 * 1024 * 1024));
    assert_eq!(errno(sent), Some(Errno::EMSGSIZE));
    assert_eq!(stage.ask(&worker, &Order::Echo(1.into())), Reply::Echo(1.into()));
    stage.end();
}

/// Starts a shell as a worker that writes `bytes` to its channel and waits for the end of it.
fn says(stage: &mut Stage, bytes: &str) -> clusterlb::WorkerHandle {
    let script = format!(
        "eval \"printf '{bytes}' >&$CLUSTERLB_CONTROL_FD\"; \
         until eval \"cat <&$CLUSTERLB_CONTROL_FD\"; do sleep 0.01; done >/dev/null 2>&1; exit 5"
    );
    stage
        .cluster
        .setup_primary(|settings| {
            settings.exec = "/bin/bash".into();
            settings.args = vec!["-c".into(), script.into()];
        })
        .expect("valid settings");
    stage.cluster.fork().expect("there is a shell")
}

fn ends_alone(bytes: &str) {
    let mut stage = Stage::new();
    let good = stage.puppet();
    let address = stage.listen(&good, "127.0.0.1:0");
    let bad = says(&mut stage, bytes);
    let error = stage.until("an error", |event| match event {
        Event::Error { worker, error } => Some((worker.clone(), error.to_string())),
        _ => None,
    });
    assert_eq!(error.0.as_ref(), Some(&bad));
    assert!(error.1.contains("garbage"), "{}", error.1);
    stage.disconnected(&bad);
    assert_eq!(stage.exit(&bad).0, Ending::Code(5), "it sees the end and exits");
    assert_eq!(bad.exited_after_disconnect(), Some(false));
    // Every other worker keeps serving.
    assert_eq!(ask(&address).expect("it serves"), "worker 1\n");
    assert_eq!(stage.ask(&good, &Order::Echo(1.into())), Reply::Echo(1.into()));
    stage.end();
}

/// A control frame for the primary, in the syntax of `printf`.
fn word(json: &str) -> String {
    let length = u32::try_from(json.len()).expect("it is short").to_le_bytes();
    let head: String = length.iter().map(|byte| format!("\\x{byte:02x}")).collect();
    format!("{head}\\x00\\x00\\x00\\x00{}", json.replace('"', "\\x22"))
}

/// Valid messages about listeners that do not exist: served, closed, sent back.
fn words_about_nothing_are_ignored() {
    let mut stage = Stage::new();
    let good = stage.puppet();
    let address = stage.listen(&good, "127.0.0.1:0");
    let words = [
        r#"{"act":"serving","listener":0}"#,
        r#"{"act":"close","listener":0}"#,
        r#"{"act":"close","listener":77}"#,
        r#"{"act":"return","listener":0,"accepted_ns":1}"#,
        r#"{"act":"online","pid":1}"#,
    ];
    let bytes: String = words.into_iter().map(word).collect();
    let odd = says(&mut stage, &bytes);
    stage.online(&odd);
    // All of it has been read and has not affected the worker that does serve.
    let of_interest = |event: &Event| {
        matches!(event, Event::Error { .. } | Event::Disconnect { .. } | Event::Listening { .. })
    };
    assert!(!stage.has_heard(of_interest));
    assert!(odd.is_connected());
    assert!((0..4).all(|_| ask(&address).expect("it serves") == "worker 1\n"));
    odd.kill(clusterlb::Signal::SIGKILL).expect("it is ours");
    stage.exit(&odd);
    stage.end();
}

fn garbage_ends_one_channel_and_nothing_else() {
    ends_alone("\\x03\\x00\\x00\\x00\\x00\\x00\\x00\\x00{]}");
}

fn a_header_of_garbage_is_no_reason_to_wait() {
    ends_alone("GET / HTTP/1.1\\r\\n");
}
