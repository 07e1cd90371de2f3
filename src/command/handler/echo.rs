//! The two protocols without requests: echo and discard. Pure.

use super::{Context, Next, Progress};

/// Sends back as much as the output has room for.
pub(super) fn on_bytes(input: &[u8], output: &mut Vec<u8>, context: &Context<'_>) -> Progress {
    let room = context.output_max.saturating_sub(output.len());
    let consumed = room.min(input.len());
    output.extend_from_slice(&input[..consumed]);
    let next = if consumed < input.len() { Next::Resume } else { Next::Read };
    Progress { consumed, answered: 0, next }
}

/// Discards all input.
pub(super) fn discard(input: &[u8]) -> Progress {
    Progress { consumed: input.len(), answered: 0, next: Next::Read }
}

#[cfg(test)]
mod tests {
    use super::super::{Context, HttpLimits, Next};
    use super::*;

    #[test]
    fn echo_stops_at_the_output_bound_and_asks_to_resume() {
        let limits = HttpLimits::default();
        let context = Context { date: "", draining: false, limits: &limits, output_max: 4 };
        let mut output = Vec::new();
        let progress = on_bytes(b"abcdef", &mut output, &context);
        assert_eq!(output, b"abcd");
        assert_eq!(progress, Progress { consumed: 4, answered: 0, next: Next::Resume });
    }
}
