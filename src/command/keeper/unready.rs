//! Why workers do not come to serve, in words that say what to do.

use super::Keeper;
use crate::command::settings::Program;
use clusterlb::Error;
use clusterlb::{Dialect, Readiness};

impl Keeper<'_> {
    /// The workers do not serve in time.
    pub(super) fn unready(&self) -> Error {
        let limit = humantime::format_duration(self.settings.start_limit);
        let online = self.online;
        let (what, hint) = match &self.settings.program {
            None => (
                format!("the workers were not ready after {limit}"),
                "a machine this busy cannot run them; try fewer with --workers".to_owned(),
            ),
            Some(program) if program.dialect == Dialect::ListenFds => {
                taking_over(program, &limit.to_string())
            }
            Some(Program { path, .. }) if online => (
                format!("not every worker listens on something after {limit}"),
                format!(
                    "{} has to listen in every worker; if it needs more time, see --start-limit",
                    path.display()
                ),
            ),
            Some(program) => {
                (format!("no worker has called home after {limit}"), other_dialects(program))
            }
        };
        Error::Workers { what, hint }
    }
}

fn taking_over(program: &Program, limit: &str) -> (String, String) {
    match program.readiness {
        Readiness::Notified => (
            format!("not every worker has said READY=1 after {limit}"),
            format!(
                "if {} does not know sd_notify, leave --ready-after notify out; if it needs more \
                 time, see --start-limit",
                program.path.display()
            ),
        ),
        Readiness::After(_) => (
            format!("not every worker has run for long enough after {limit}"),
            "let --start-limit be longer than --ready-after".to_owned(),
        ),
    }
}

/// What a program may speak that does not speak as was supposed.
pub(super) fn other_dialects(Program { path, dialect, .. }: &Program) -> String {
    let path = path.display();
    match dialect {
        Dialect::Native => format!(
            "{path} does not seem to be built for clusterlb; if it runs Node, say --dialect node; \
             if it takes listening sockets as from systemd (LISTEN_FDS), say --dialect listen-fds"
        ),
        Dialect::Node => format!(
            "{path} does not seem to run Node; --dialect native is for programs built for \
             clusterlb, --dialect listen-fds for those that take listening sockets as from systemd"
        ),
        Dialect::ListenFds => format!("see whether {path} takes the sockets in LISTEN_FDS"),
    }
}
