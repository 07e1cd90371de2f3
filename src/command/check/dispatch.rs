//! The row about dispatching by the kernel.

use clusterlb_sys::steering::{Form, FormDecision};

use super::Row;

const NAME: &str = "kernel dispatch";

pub(super) fn row(decision: &FormDecision) -> Row {
    match decision.form {
        // What keeps a run from the exact form is in the reason; it is no defect of a machine.
        Form::Exact | Form::Unprivileged => Row::ok(NAME, decision.to_string()),
        Form::Plain => Row::note(
            NAME,
            decision.to_string(),
            "let setsockopt(SO_ATTACH_REUSEPORT_CBPF) through, which needs no capability; until \
             then --dispatch kernel leaves no worker out",
        ),
    }
}
