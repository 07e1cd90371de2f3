//! When each option of a run can change: at once, for new workers, or not before the next start.
//!
//! The one list of this. Reloads follow it, and tests compare it with the options that there are,
//! with what `/policy` takes, and with the table in `docs/OPERATIONS.md`. The program is not an
//! option, but is here.

/// When an option can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    /// At once, and also by `/policy`: how connections are distributed.
    Rules,
    /// At once, by a reload: what the supervisor does.
    Supervision,
    /// By a reload, in workers that start after it.
    NewWorkers,
    /// When the run starts.
    NextStart,
}

use When::{NewWorkers, NextStart, Rules, Supervision};

/// Every option, by its name.
const OPTIONS: &[(&str, When)] = &[
    ("policy", Rules),
    ("max-inflight", Rules),
    ("overload-factor", Rules),
    ("credits", Rules),
    ("slow-start", Rules),
    ("coalesce", Rules),
    ("take-back-after", Rules),
    ("hang-after", Rules),
    ("unserved-limit", Rules),
    ("eject-outliers", Rules),
    ("workers", Supervision),
    ("restart", Supervision),
    ("start-limit", Supervision),
    ("settle", Supervision),
    ("grace", Supervision),
    ("drain-delay", Supervision),
    ("hang-kill", Supervision),
    ("program", NewWorkers),
    ("env", NewWorkers),
    ("keep-env", NewWorkers),
    ("chdir", NewWorkers),
    ("worker-open-files", NewWorkers),
    ("prefix", NewWorkers),
    ("preload", NewWorkers),
    ("serve", NewWorkers),
    ("work", NewWorkers),
    ("work-seed", NewWorkers),
    ("header-timeout", NewWorkers),
    ("idle-timeout", NewWorkers),
    ("accept", NextStart),
    ("admin", NextStart),
    ("admin-allow-actions", NextStart),
    ("agent-check", NextStart),
    ("allow-listen", NextStart),
    ("backlog", NextStart),
    ("companion", NextStart),
    ("config", NextStart),
    ("defer-accept", NextStart),
    ("dialect", NextStart),
    ("dispatch", NextStart),
    ("engine", NextStart),
    ("fdname", NextStart),
    ("group", NextStart),
    ("json", NextStart),
    ("lifetime", NextStart),
    ("listen", NextStart),
    ("log-file", NextStart),
    ("log-format", NextStart),
    ("max-requests", NextStart),
    ("max-rss", NextStart),
    ("pin", NextStart),
    ("primary-user", NextStart),
    ("proxy-protocol", NextStart),
    ("quiet", NextStart),
    ("ready-after", NextStart),
    ("runtime", NextStart),
    ("seccomp", NextStart),
    ("serialization", NextStart),
    ("user", NextStart),
];

/// When an option can change.
pub(super) fn when(key: &str) -> When {
    let found = OPTIONS.iter().find(|(name, _)| *name == key);
    found.map_or(NextStart, |(_, when)| *when)
}

/// Whether a reload can change an option.
pub(super) fn with_a_reload(key: &str) -> bool {
    when(key) != NextStart
}

/// The options that change at such a time.
#[cfg(test)]
pub(super) fn all(wanted: When) -> impl Iterator<Item = &'static str> {
    OPTIONS.iter().filter(move |(_, when)| *when == wanted).map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::command::arguments::RunArguments;

    #[test]
    fn every_option_has_its_time() {
        let command = RunArguments::command();
        let options = command.get_arguments().filter_map(|one| one.get_long());
        let options: BTreeSet<String> = options.map(str::to_owned).collect();
        let listed: BTreeSet<String> = OPTIONS
            .iter()
            .map(|(name, _)| (*name).to_owned())
            .filter(|name| name != "program")
            .collect();
        assert_eq!(listed, options, "an option is missing here, or is not there any more");
        assert_eq!(OPTIONS.len(), listed.len() + 1, "one is here twice");
    }

    #[test]
    fn the_document_says_the_same() {
        let text = include_str!("../../docs/OPERATIONS.md");
        let table = text.split("| changes with a reload | options |").nth(1).expect("the table");
        let row = |first: &str| {
            let line = table.lines().find(|line| line.starts_with(first)).expect("the row");
            let names = line.split('`').skip(1).step_by(2).filter(|name| *name != "none");
            names.map(str::to_owned).collect::<Vec<String>>()
        };
        let names = |when: When| all(when).map(str::to_owned);
        assert_eq!(row("| at once"), names(Rules).chain(names(Supervision)).collect::<Vec<_>>());
        assert_eq!(row("| for new workers"), names(NewWorkers).collect::<Vec<_>>());
    }
}
