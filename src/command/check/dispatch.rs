//! The row about dispatching by the kernel.

use clusterlb_sys::steering::{Form, FormDecision};

use super::Row;

const NAME: &str = "kernel dispatch";

pub(super) fn row(decision: &FormDecision) -> Row {
    match decision.form {
        Form::Exact => Row::ok(NAME, decision.to_string()),
        Form::Unprivileged => Row::note(
            NAME,
            decision.to_string(),
            "with CAP_BPF (AmbientCapabilities=CAP_BPF in a unit) --dispatch kernel picks by \
             counters; does without",
        ),
        Form::Plain => Row::note(
            NAME,
            decision.to_string(),
            "let setsockopt(SO_ATTACH_REUSEPORT_CBPF) through, which needs no capability; until \
             then --dispatch kernel leaves no worker out",
        ),
    }
}
