//! The lines between a companion and the primary: JSON, one object a line. Pure.
//!
//! Owns the format of the lines in both directions, and the first line: the present workers and
//! their states.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{AddressKind, Ending, ListeningAddress, Signal, WorkerId};

/// The character for the byte 0. None of them needs an escape in JSON, and each has two bytes.
const FIRST_CHARACTER: u32 = 0x100;

/// A line to the companion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "act", rename_all = "lowercase")]
pub(super) enum ToCompanion {
    /// A worker was started.
    Fork { id: u32, pid: u32 },
    /// It runs.
    Online { id: u32 },
    /// It serves an address.
    Listening { id: u32, address: NodeAddress },
    /// It has announced that it leaves.
    Leaving { id: u32 },
    /// Its channel has ended.
    Disconnect { id: u32, voluntary: bool },
    /// Its process has ended.
    Exit { id: u32, code: Option<i32>, signal: Option<String>, voluntary: bool },
    /// The number of slots.
    Slots { count: usize },
    /// Its request is refused.
    Refused { reason: String },
    /// The run has ended.
    End,
}

/// An address as in Node's event `listening`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct NodeAddress {
    address: Option<String>,
    port: Option<u16>,
    #[serde(rename = "addressType")]
    kind: Value,
}

/// A request of the companion.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(tag = "act", rename_all = "lowercase")]
pub(super) enum FromCompanion {
    /// Send a message to a worker.
    Send { id: u32, message: Value },
    /// Send a message in V8's format.
    SendV8 { id: u32, payload: String },
    /// Signal a worker.
    Kill { id: u32, signal: String },
    /// Let a worker leave.
    Disconnect { id: u32 },
    /// Add a slot.
    Fork,
    /// End the run in order.
    Stop,
}

/// The present workers.
#[derive(Debug, Default)]
pub(super) struct PresentWorkers {
    workers: BTreeMap<u32, ListedWorker>,
}

/// The state of a worker.
#[derive(Clone, Debug, Serialize)]
struct ListedWorker {
    id: u32,
    pid: u32,
    online: bool,
    listening: Vec<NodeAddress>,
}

/// The first line.
#[derive(Debug, Serialize)]
struct Begin<'a> {
    slots: usize,
    script: Option<&'a str>,
    /// Messages are in V8's format.
    advanced: bool,
    workers: Vec<&'a ListedWorker>,
}

impl ToCompanion {
    /// As a line.
    pub(super) fn line(&self) -> Vec<u8> {
        line(self)
    }

    /// The end of a worker.
    pub(super) fn exit(id: WorkerId, ending: Ending, voluntary: bool) -> Self {
        let (code, signal) = match ending {
            Ending::Code(code) => (Some(code), None),
            Ending::Signal(number) => {
                let name = Signal::from_raw(number).map(|signal| signal.to_string());
                (None, Some(name.unwrap_or_else(|| number.to_string())))
            }
        };
        Self::Exit { id: id.get(), code, signal, voluntary }
    }
}

/// A worker's message as a line; `message` is JSON.
pub(super) fn message_line(id: WorkerId, message: &[u8]) -> Vec<u8> {
    let mut line = format!("{{\"act\":\"message\",\"id\":{id},\"message\":").into_bytes();
    line.extend_from_slice(message);
    line.extend_from_slice(b"}\n");
    line
}

/// A worker's message in V8's format as a line. Each byte is one character of a string.
pub(super) fn v8_line(id: WorkerId, payload: &[u8]) -> Vec<u8> {
    let text: String = payload.iter().filter_map(|byte| character_of(*byte)).collect();
    let mut line = format!("{{\"act\":\"message\",\"id\":{id},\"v8\":").into_bytes();
    serde_json::to_writer(&mut line, &text).expect("a string can be written as JSON");
    line.extend_from_slice(b"}\n");
    line
}

/// The bytes of a payload whose characters are bytes; `None` if one is not.
pub(super) fn payload_of(text: &str) -> Option<Vec<u8>> {
    let byte_of = |one| u8::try_from(u32::from(one).checked_sub(FIRST_CHARACTER)?).ok();
    text.chars().map(byte_of).collect()
}

fn character_of(byte: u8) -> Option<char> {
    char::from_u32(FIRST_CHARACTER + u32::from(byte))
}

fn line(value: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).expect("it has no keys but names");
    line.push(b'\n');
    line
}

impl PresentWorkers {
    /// Updates the workers.
    pub(super) fn update(&mut self, message: &ToCompanion) {
        match message {
            ToCompanion::Fork { id, pid } => {
                let known =
                    ListedWorker { id: *id, pid: *pid, online: false, listening: Vec::new() };
                self.workers.insert(*id, known);
            }
            ToCompanion::Online { id } => {
                if let Some(known) = self.workers.get_mut(id) {
                    known.online = true;
                }
            }
            ToCompanion::Listening { id, address } => {
                if let Some(known) = self.workers.get_mut(id) {
                    known.listening.push(address.clone());
                }
            }
            // A companion that starts later sees it as one that is gone.
            ToCompanion::Leaving { id }
            | ToCompanion::Disconnect { id, .. }
            | ToCompanion::Exit { id, .. } => {
                self.workers.remove(id);
            }
            ToCompanion::Slots { .. } | ToCompanion::Refused { .. } | ToCompanion::End => {}
        }
    }

    /// A worker no longer serves an address.
    pub(super) fn on_closed(&mut self, id: WorkerId, address: &NodeAddress) {
        if let Some(known) = self.workers.get_mut(&id.get())
            && let Some(place) = known.listening.iter().position(|one| one == address)
        {
            known.listening.remove(place);
        }
    }

    /// The first line for a companion; `script` is the workers' script, if known, and `advanced`
    /// whether messages are in V8's format.
    pub(super) fn begin(&self, slots: usize, script: Option<&str>, advanced: bool) -> Vec<u8> {
        line(&Begin { slots, script, advanced, workers: self.workers.values().collect() })
    }
}

impl From<&ListeningAddress> for NodeAddress {
    fn from(address: &ListeningAddress) -> Self {
        let kind = match address.kind {
            AddressKind::V4 => 4.into(),
            AddressKind::V6 => 6.into(),
            AddressKind::Unix => (-1).into(),
            AddressKind::Udp4 => "udp4".into(),
            AddressKind::Udp6 => "udp6".into(),
        };
        Self { address: Some(address.address.clone()), port: address.port, kind }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn address(port: u16) -> NodeAddress {
        NodeAddress { address: Some("::1".into()), port: Some(port), kind: 6.into() }
    }

    fn value(line: &[u8]) -> Value {
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        serde_json::from_slice(line).expect("JSON")
    }

    #[test]
    fn what_is_told_is_a_line_each() {
        let voluntary = false;
        for (message, expected) in [
            (ToCompanion::Fork { id: 1, pid: 2 }, json!({ "act": "fork", "id": 1, "pid": 2 })),
            (
                ToCompanion::Listening { id: 1, address: address(80) },
                json!({ "act": "listening", "id": 1,
                        "address": { "address": "::1", "port": 80, "addressType": 6 } }),
            ),
            (
                ToCompanion::exit(WorkerId::new(3), Ending::Signal(9), voluntary),
                json!({ "act": "exit", "id": 3, "code": null, "signal": "SIGKILL",
                        "voluntary": false }),
            ),
            (
                ToCompanion::exit(WorkerId::new(3), Ending::Code(7), true),
                json!({ "act": "exit", "id": 3, "code": 7, "signal": null, "voluntary": true }),
            ),
            (ToCompanion::End, json!({ "act": "end" })),
        ] {
            assert_eq!(value(&message.line()), expected);
        }
        let payload: Vec<u8> = (0..=255).collect();
        let told = value(&v8_line(WorkerId::new(4), &payload));
        assert_eq!(told["v8"].as_str().and_then(payload_of), Some(payload));
        assert_eq!(payload_of("\u{200}"), None);
        assert_eq!(payload_of("a"), None);
        let message = message_line(WorkerId::new(4), br#"{"a":[1,"\n"]}"#);
        let expected = json!({ "act": "message", "id": 4, "message": { "a": [1, "\n"] } });
        assert_eq!(value(&message), expected);
    }

    #[test]
    fn what_is_asked_for_is_understood_and_nothing_else() {
        for (line, expected) in [
            (
                r#"{"act":"send","id":3,"message":[null]}"#,
                FromCompanion::Send { id: 3, message: json!([null]) },
            ),
            (
                r#"{"act":"kill","id":3,"signal":"SIGHUP"}"#,
                FromCompanion::Kill { id: 3, signal: "SIGHUP".into() },
            ),
            (r#"{"act":"disconnect","id":3}"#, FromCompanion::Disconnect { id: 3 }),
            (
                r#"{"act":"sendv8","id":3,"payload":"\u00ff"}"#,
                FromCompanion::SendV8 { id: 3, payload: "ÿ".into() },
            ),
            (r#"{"act":"fork"}"#, FromCompanion::Fork),
            (r#"{"act":"stop"}"#, FromCompanion::Stop),
        ] {
            let request: FromCompanion = serde_json::from_str(line).expect(line);
            assert_eq!(request, expected);
        }
        for line in ["", "{}", r#"{"act":"dance"}"#, r#"{"act":"kill","id":-1}"#] {
            assert!(serde_json::from_str::<FromCompanion>(line).is_err(), "{line}");
        }
    }

    #[test]
    fn a_companion_that_starts_later_learns_of_those_that_live() {
        let mut present = PresentWorkers::default();
        for message in [
            ToCompanion::Fork { id: 1, pid: 11 },
            ToCompanion::Fork { id: 2, pid: 12 },
            ToCompanion::Fork { id: 3, pid: 13 },
            ToCompanion::Online { id: 1 },
            ToCompanion::Listening { id: 1, address: address(80) },
            ToCompanion::Listening { id: 1, address: address(81) },
            ToCompanion::Online { id: 2 },
            ToCompanion::Disconnect { id: 2, voluntary: true },
            ToCompanion::Exit { id: 2, code: Some(0), signal: None, voluntary: true },
        ] {
            present.update(&message);
        }
        present.on_closed(WorkerId::new(1), &address(80));
        let begin = value(&present.begin(2, Some("server.js"), false));
        let workers = json!([
            { "id": 1, "pid": 11, "online": true,
              "listening": [{ "address": "::1", "port": 81, "addressType": 6 }] },
            { "id": 3, "pid": 13, "online": false, "listening": [] },
        ]);
        assert_eq!(
            begin,
            json!({ "slots": 2, "script": "server.js", "advanced": false, "workers": workers })
        );
    }
}
