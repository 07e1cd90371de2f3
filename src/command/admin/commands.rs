//! The commands that inspect and control a run: status, reload, scale, worker, policy, drain,
//! events.

use std::fmt::Write as _;
use std::time::Duration;

use clap::{Args, ValueEnum};
use clusterlb::Result;
use serde_json::{Map, Value};

use super::client::Client;
use super::top;
use super::views::{ListenersView, WorkersView};
use crate::command::admin_address::AdminAddress;
use crate::command::headings::OPERATION;
use crate::command::output;
use crate::command::values::{parse, positive_time, time};

/// Options of the admin interface.
#[derive(Clone, Debug, Args)]
pub(in crate::command) struct AdminArguments {
    /// Serve an interface that shows and controls the run
    ///
    /// Can be repeated. ADDRESS is unix:/path or unix:@name (for the run's user and root),
    /// HOST:PORT or PORT (read only). Without one it is /run/clusterlb.sock for root, otherwise
    /// $XDG_RUNTIME_DIR/clusterlb.sock. It speaks HTTP: GET /metrics, /livez, /readyz, /workers,
    /// /listeners, /config and /events, and POST for actions. The commands status, top, reload,
    /// scale, worker, policy, drain and events use it.
    #[arg(
        id = "admin",
        long = "admin",
        value_name = "ADDRESS",
        num_args = 0..=1,
        default_missing_value = "default",
        value_parser = parse::<AdminAddress>,
        help_heading = OPERATION
    )]
    pub(in crate::command) addresses: Vec<AdminAddress>,

    /// Let every client that can connect to --admin HOST:PORT control the run, too
    #[arg(
        id = "admin_allow_actions",
        long = "admin-allow-actions",
        requires = "admin",
        help_heading = OPERATION,
        hide_short_help = true
    )]
    pub(in crate::command) allow_actions: bool,

    /// Answer HAProxy's agent-check here
    ///
    /// Can be repeated: HOST:PORT, PORT or unix:/path. A client gets one line, such as
    /// `up 73% maxconn:200`, or `drain`, and the connection ends.
    #[arg(
        long = "agent-check",
        value_name = "ADDRESS",
        value_parser = parse::<AdminAddress>,
        help_heading = OPERATION,
        hide_short_help = true
    )]
    pub(in crate::command) agent_check: Vec<AdminAddress>,
}

/// Selects the run.
#[derive(Clone, Debug, Args)]
pub(in crate::command) struct ClientArguments {
    /// Where the run can be reached: unix:/path, unix:@name, HOST:PORT or PORT; by default as a run
    /// with --admin and no address: /run/clusterlb.sock for root, otherwise
    /// $XDG_RUNTIME_DIR/clusterlb.sock
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "default",
        hide_default_value = true,
        value_parser = parse::<AdminAddress>
    )]
    admin: AdminAddress,
}

/// Selects the output.
#[derive(Clone, Debug, Args)]
pub(in crate::command) struct StatusArguments {
    #[command(flatten)]
    client: ClientArguments,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// Print only whether the run is ready, and end with 1 if it is not: for health checks
    #[arg(long, conflicts_with = "json")]
    ready: bool,
}

/// The number of workers.
#[derive(Clone, Debug, Args)]
pub(in crate::command) struct ScaleArguments {
    /// How many workers are wanted, or a step such as +1 or -1
    #[arg(value_name = "N|+N|-N", allow_hyphen_values = true)]
    workers: String,
    #[command(flatten)]
    client: ClientArguments,
}

/// One worker, and what to do with it.
#[derive(Clone, Debug, Args)]
pub(in crate::command) struct WorkerArguments {
    /// What happens to it
    #[arg(value_name = "ACTION", value_enum)]
    action: WorkerAction,
    /// Its number, as `clusterlb status` shows it
    #[arg(value_name = "ID")]
    id: u32,
    #[command(flatten)]
    client: ClientArguments,
}

/// An action on one worker.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum WorkerAction {
    /// A successor is started first, then it leaves
    Replace,
    /// It leaves, and another one is started for its slot
    Drain,
    /// It is killed, and replaced like any that ends
    Kill,
}

/// Rules to change.
#[derive(Clone, Debug, Args)]
pub(in crate::command) struct PolicyArguments {
    /// Rules to change, named as options: policy=least, max-inflight=100, hang-after=off; without
    /// any, the present rules are shown
    #[arg(value_name = "NAME=VALUE")]
    changes: Vec<String>,
    #[command(flatten)]
    client: ClientArguments,
}

/// The end of a run.
#[derive(Clone, Debug, Args)]
pub(in crate::command) struct DrainArguments {
    /// How long open requests may take, instead of the run's --grace
    #[arg(long, value_name = "TIME", value_parser = time)]
    grace: Option<Duration>,
    #[command(flatten)]
    client: ClientArguments,
}

/// Options of the display.
#[derive(Clone, Debug, Args)]
pub(in crate::command) struct TopArguments {
    #[command(flatten)]
    client: ClientArguments,
    /// How often to look
    #[arg(short, long, value_name = "TIME", default_value = "1s", value_parser = positive_time)]
    interval: Duration,
    /// End after this many tables [default: go on]
    #[arg(short = 'n', long, value_name = "N")]
    count: Option<u32>,
}

impl ClientArguments {
    /// `clusterlb reload`.
    ///
    /// # Errors
    /// No run answers, or the reload stopped.
    pub(in crate::command) fn reload(&self) -> Result<u8> {
        self.act("/reload")
    }

    /// `clusterlb events`.
    ///
    /// # Errors
    /// No run answers, or it has too many readers.
    pub(in crate::command) fn events(&self) -> Result<u8> {
        output::ensure_open()?;
        Client::new(&self.admin)?.follow("/events", output::pass_on)?;
        Ok(0)
    }

    fn act(&self, path: &str) -> Result<u8> {
        let done = Client::new(&self.admin)?.act(path)?;
        output::print(&format!("{done}\n"))?;
        Ok(0)
    }
}

impl ScaleArguments {
    /// `clusterlb scale`.
    ///
    /// # Errors
    /// No run answers, or the number is out of range.
    pub(in crate::command) fn run(&self) -> Result<u8> {
        let signs = |letter: char| letter.is_ascii_digit() || "+-".contains(letter);
        if !self.workers.chars().all(signs) {
            return Err(clusterlb::Error::usage(
                format!("{} is no number of workers", self.workers),
                "write N, +N or -N",
            ));
        }
        self.client.act(&format!("/scale?workers={}", self.workers))
    }
}

impl WorkerArguments {
    /// `clusterlb worker`.
    ///
    /// # Errors
    /// No run answers, it has no such worker, or the action failed.
    pub(in crate::command) fn run(&self) -> Result<u8> {
        let action = match self.action {
            WorkerAction::Replace => "replace",
            WorkerAction::Drain => "drain",
            WorkerAction::Kill => "kill",
        };
        self.client.act(&format!("/workers/{}/{action}", self.id))
    }
}

impl PolicyArguments {
    /// `clusterlb policy`.
    ///
    /// # Errors
    /// No run answers, or a rule cannot change to this value.
    pub(in crate::command) fn run(&self) -> Result<u8> {
        if self.changes.is_empty() {
            let client = Client::new(&self.client.admin)?;
            let rules: Map<String, Value> = client.look("/policy")?;
            output::print(&rules.iter().map(rule).collect::<String>())?;
            return Ok(0);
        }
        let named = |change: &String| change.split_once('=').is_some();
        if let Some(change) = self.changes.iter().find(|change| !named(change)) {
            return Err(clusterlb::Error::usage(
                format!("{change} names no value"),
                "write NAME=VALUE, such as policy=least",
            ));
        }
        let changes: Vec<String> = self.changes.iter().map(|change| in_query(change)).collect();
        self.client.act(&format!("/policy?{}", changes.join("&")))
    }
}

impl DrainArguments {
    /// `clusterlb drain`.
    ///
    /// # Errors
    /// No run answers.
    pub(in crate::command) fn run(&self) -> Result<u8> {
        let grace = self.grace.map(|grace| format!("?grace={}ms", grace.as_millis()));
        self.client.act(&format!("/drain{}", grace.unwrap_or_default()))
    }
}

impl StatusArguments {
    /// `clusterlb status`.
    ///
    /// # Errors
    /// No run answers.
    pub(in crate::command) fn run(&self) -> Result<u8> {
        let client = Client::new(&self.client.admin)?;
        if self.json {
            let mut view: Map<String, Value> = client.look("/workers")?;
            view.extend(client.look::<Map<String, Value>>("/listeners")?);
            output::print(&format!("{}\n", Value::Object(view)))?;
            return Ok(0);
        }
        if self.ready {
            let why = client.unreadiness()?;
            let not = why.as_ref().map(|why| format!("not ready: {why}"));
            output::print(not.as_deref().unwrap_or("ready\n"))?;
            return Ok(u8::from(why.is_some()));
        }
        let workers: WorkersView = client.look("/workers")?;
        let listeners: ListenersView = client.look("/listeners")?;
        output::print(&status(&workers, &listeners))?;
        Ok(0)
    }
}

impl TopArguments {
    /// `clusterlb top`.
    ///
    /// # Errors
    /// No run answers, or it has ended.
    pub(in crate::command) fn run(&self) -> Result<u8> {
        let client = Client::new(&self.client.admin)?;
        top::run(&client, self.interval, self.count)?;
        Ok(0)
    }
}

/// A rule of the answer as a line in the form in which it is changed.
fn rule((name, value): (&String, &Value)) -> String {
    let units = ["ms", "us"].into_iter();
    let mut timed =
        units.filter_map(|unit| Some((name.strip_suffix(unit)?.strip_suffix('_')?, unit)));
    let (name, unit) = timed.next().unwrap_or((name.as_str(), ""));
    let value = match (value, value.as_f64()) {
        (Value::String(word), _) => word.clone(),
        (_, Some(number)) => format!("{number}{unit}"),
        _ => "off".to_owned(),
    };
    format!("{}={value}\n", name.replace('_', "-"))
}

/// `NAME=VALUE` as a part of a query: other characters than these have a meaning there.
fn in_query(change: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"=-._".contains(&byte);
    let part = |byte: u8| match is_plain(byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    change.bytes().map(part).collect()
}

/// A run as text.
fn status(run: &WorkersView, listeners: &ListenersView) -> String {
    let mut text = top::heading(run, None).join("\n");
    text.push('\n');
    for one in &listeners.listeners {
        let waiting = one.backlog.map_or_else(|| "-".into(), |waiting| waiting.to_string());
        let _ = writeln!(
            text,
            "listener {}: {}, backlog {waiting} of {}, {} workers",
            one.listener, one.address, one.backlog_max, one.workers
        );
    }
    text + &top::table(run, None, top::TEXT_COLUMNS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_shown_in_the_form_in_which_they_are_changed() {
        for (name, value, line) in [
            ("policy", "least".into(), "policy=least\n"),
            ("max_inflight", Value::Null, "max-inflight=off\n"),
            ("hang_after_ms", 100.0.into(), "hang-after=100ms\n"),
            ("coalesce_us", 75.into(), "coalesce=75us\n"),
            ("overload_factor", 1.5.into(), "overload-factor=1.5\n"),
        ] {
            assert_eq!(rule((&name.to_owned(), &value)), line);
        }
    }

    #[test]
    fn changes_are_quoted_as_parts_of_a_query() {
        for (change, part) in [
            ("policy=least", "policy=least"),
            ("overload-factor=1.5", "overload-factor=1.5"),
            ("coalesce=75µs&x", "coalesce=75%C2%B5s%26x"),
        ] {
            assert_eq!(in_query(change), part);
        }
    }
}
