//! Memory of connections: the bound of each, and of all.
//!
//! A client that never reads, or sends more than it reads, costs at most its own bound. Buffers
//! grow in steps, since doubling them would double the bound.

use clusterlb::protocol::scoreboard::Statistic;
use clusterlb_sys::engine::Key;

use super::Connections;
use crate::command::server::connection::current;
use crate::command::server::deadlines::Class;
use crate::command::server::shared::Shared;

/// Input that waits and unsent output of one connection.
const CONNECTION_BYTES_MAX: usize = 120 * 1024;
/// Output of one step; at the bound the session waits until it is sent. An answer begun below it
/// still fits into 64 KiB.
const OUTPUT_BYTES_MAX: usize = 60 * 1024;
/// Output of one step for a connection whose input fills its bound.
const OUTPUT_BYTES_MIN: usize = 4 * 1024;
/// Capacity of a new output buffer; repeated doubling reaches 64 KiB.
const OUTPUT_BYTES_FIRST: usize = 512;
/// Growth step of kept input.
const INPUT_BYTES_STEP: usize = 16 * 1024;
/// Memory of all connections of a worker. At the bound, the connection whose client has read
/// nothing for the longest time is reset.
const WORKER_BYTES_MAX: usize = 64 * 1024 * 1024;

impl Connections {
    /// Accounts for a connection's memory. Above the bound of all, resets those whose clients have
    /// read nothing for the longest time.
    pub(super) fn account(&mut self, shared: &mut Shared, key: Key) {
        if let Some(connection) = current(&mut self.table, key) {
            let (before, now) = (connection.held_bytes, connection.bytes());
            connection.held_bytes = now;
            self.held_bytes = self.held_bytes + now - before;
        }
        while self.held_bytes > WORKER_BYTES_MAX {
            let Some(index) = self.deadlines.first(Class::Send) else { return };
            let connection = &mut self.table[index as usize];
            let key = Key { index, generation: connection.generation };
            self.held_bytes -= std::mem::take(&mut connection.held_bytes);
            connection.reset_on_close();
            shared.end.add(Statistic::Shed, 1);
            self.close(shared, key);
        }
    }
}

/// Output of one step for a connection with this much kept input.
pub(super) fn output_bytes_max(kept_bytes: usize) -> usize {
    CONNECTION_BYTES_MAX.saturating_sub(kept_bytes).clamp(OUTPUT_BYTES_MIN, OUTPUT_BYTES_MAX)
}

/// An empty output buffer.
pub(super) fn output_buffer() -> Vec<u8> {
    Vec::with_capacity(OUTPUT_BYTES_FIRST)
}

/// Adds kept input.
pub(super) fn keep(input: &mut Vec<u8>, bytes: &[u8]) {
    let needed = input.len() + bytes.len();
    if needed > input.capacity() {
        let step = if needed < INPUT_BYTES_STEP { 4096 } else { INPUT_BYTES_STEP };
        input.reserve_exact(needed.next_multiple_of(step) - input.len());
    }
    input.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_holds_its_bound_however_it_is_filled() {
        for kept in [0, 4_096, 60_000, 64 * 1024, 132 * 1024] {
            let output = output_bytes_max(kept);
            let most = CONNECTION_BYTES_MAX.max(kept + OUTPUT_BYTES_MIN);
            assert!((OUTPUT_BYTES_MIN..=OUTPUT_BYTES_MAX).contains(&output));
            assert!(kept + output <= most, "{kept} and {output}");
        }
    }

    #[test]
    fn buffers_grow_in_steps() {
        let (mut input, chunk) = (Vec::new(), [0; 4096]);
        for count in 1..=33 {
            keep(&mut input, &chunk);
            assert_eq!(input.len(), count * chunk.len());
            assert!(input.capacity() < input.len() + INPUT_BYTES_STEP, "{}", input.capacity());
        }
        let mut output = output_buffer();
        while output.len() < OUTPUT_BYTES_MAX {
            output.extend_from_slice(&[0; 150]);
        }
        assert_eq!(output.capacity(), 64 * 1024);
    }
}
