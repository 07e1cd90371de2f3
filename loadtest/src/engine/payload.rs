//! The bytes that are sent, laid out once so that every send is one range of them. Pure.

use std::sync::Arc;

use crate::protocol;
use crate::settings::Settings;
use crate::target::Target;

/// The requests of all servers. Targets of one server take turns on its connections, so a send is
/// a run of requests that begins with any of them and may end with one that closes.
#[derive(Clone, Debug)]
pub(super) struct Payload {
    pub(super) bytes: Arc<[u8]>,
    sequences: Vec<Sequence>,
}

/// Where the requests of one server lie.
#[derive(Clone, Debug)]
struct Sequence {
    pipeline: usize,
    /// Where each request of a cycle begins, a pipeline beyond it included, and where it ends.
    plain: Vec<usize>,
    /// The same for each target that a connection may end with: a pipeline that ends with it.
    ending: Vec<Vec<usize>>,
}

impl Payload {
    /// Lays out the requests; `servers` holds the targets of each.
    pub(super) fn new(settings: &Settings, servers: &[Vec<&Target>]) -> Self {
        let mut bytes = Vec::new();
        let sequences =
            servers.iter().map(|targets| Sequence::lay_out(settings, targets, &mut bytes));
        let sequences = sequences.collect();
        Self { bytes: bytes.into(), sequences }
    }

    /// The range that sends `count` requests to a server, at most a pipeline of them, beginning
    /// with its target number `first`.
    pub(super) fn range(
        &self,
        server: usize,
        first: usize,
        count: usize,
        ends_with_last: bool,
    ) -> (usize, usize) {
        let sequence = &self.sequences[server];
        if !ends_with_last {
            return (sequence.plain[first], sequence.plain[first + count]);
        }
        let ending = &sequence.ending[(first + count - 1) % sequence.ending.len()];
        (ending[sequence.pipeline - count], ending[sequence.pipeline])
    }

    /// The number of targets of a server.
    pub(super) fn targets(&self, server: usize) -> usize {
        self.sequences[server].ending.len()
    }
}

impl Sequence {
    fn lay_out(settings: &Settings, targets: &[&Target], bytes: &mut Vec<u8>) -> Self {
        let pipeline = settings.pipeline as usize;
        let count = targets.len();
        let mut plain = vec![bytes.len()];
        for place in 0..count + pipeline - 1 {
            bytes.extend(protocol::message(settings, targets[place % count]));
            plain.push(bytes.len());
        }
        // One of the endings goes on where the cycle ends; the others are laid out after it.
        let shared = (count + pipeline - 1) % count;
        let mut ending = vec![Vec::new(); count];
        for last in (0..count).map(|step| (shared + step) % count) {
            let mut places = match last == shared {
                true => plain[count..].to_vec(),
                false => vec![bytes.len()],
            };
            while places.len() < pipeline {
                let place = last + count * pipeline + places.len() - pipeline;
                bytes.extend(protocol::message(settings, targets[place % count]));
                places.push(bytes.len());
            }
            bytes.extend(protocol::last_message(settings, targets[last]));
            places.push(bytes.len());
            ending[last] = places;
        }
        Self { pipeline, plain, ending }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Load;

    fn settings(pipeline: u32) -> Settings {
        let target = "127.0.0.1:1/".parse().expect("a target");
        Settings { pipeline, ..Settings::new(target, Load::Closed { connections: 1 }) }
    }

    #[test]
    fn a_range_has_this_many_requests_and_says_when_they_are_the_last() {
        let settings = settings(3);
        let payload = Payload::new(&settings, &[vec![&settings.target]]);
        for count in 1..=3 {
            for last in [false, true] {
                let (from, to) = payload.range(0, 0, count, last);
                let text = String::from_utf8_lossy(&payload.bytes[from..to]).into_owned();
                assert_eq!(text.matches("GET / HTTP/1.1").count(), count, "{text}");
                assert_eq!(text.matches("Connection: close").count(), usize::from(last));
                assert!(!last || text.ends_with("Connection: close\r\n\r\n"), "{text}");
            }
        }
    }

    #[test]
    fn targets_of_a_server_take_turns_wherever_a_send_begins() {
        for pipeline in 1..=5 {
            for paths in 1..=4_usize {
                let settings = settings(pipeline);
                let targets: Vec<Target> = (0..paths)
                    .map(|path| format!("127.0.0.1:1/{path}").parse().expect("a target"))
                    .collect();
                let other: Target = "127.0.0.1:2/other".parse().expect("a target");
                let servers = [vec![&other], targets.iter().collect()];
                let payload = Payload::new(&settings, &servers);
                assert_eq!((payload.targets(0), payload.targets(1)), (1, paths));
                for first in 0..paths {
                    for count in 1..=pipeline as usize {
                        for last in [false, true] {
                            let (from, to) = payload.range(1, first, count, last);
                            let text = String::from_utf8_lossy(&payload.bytes[from..to]);
                            let asked: Vec<&str> = text
                                .lines()
                                .filter_map(|line| line.strip_prefix("GET /")?.get(..1))
                                .collect();
                            let expected: Vec<String> = (first..first + count)
                                .map(|place| (place % paths).to_string())
                                .collect();
                            assert_eq!(asked, expected, "{pipeline} {paths} {first} {count}");
                            assert_eq!(text.matches("close").count(), usize::from(last));
                        }
                    }
                }
            }
        }
    }
}
