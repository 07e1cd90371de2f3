//! The row about kernel dispatch.

use clusterlb_sys::steering::{Form, FormDecision};

use super::Row;

const NAME: &str = "kernel dispatch";

pub(super) fn row(decision: &FormDecision) -> Row {
    match decision.form {
        // The reason says why the exact form is unavailable; it is not a defect of the machine.
        Form::Exact | Form::Unprivileged => Row::ok(NAME, decision.to_string()),
        Form::Plain => Row::note(
            NAME,
            decision.to_string(),
            "let setsockopt(SO_ATTACH_REUSEPORT_CBPF) through, which needs no capability; until \
             then --dispatch kernel leaves no worker out",
        ),
    }
}
