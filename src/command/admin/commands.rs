//! The commands that inspect and control a run: status, reload, scale, drain, events.

use std::fmt::Write as _;
use std::time::Duration;

use clap::Args;
use clusterlb::Result;

use super::client::Client;
use super::top;
use super::views::{ListenersView, WorkersView};
use crate::command::admin_address::AdminAddress;
use crate::command::headings::OPERATION;
use crate::command::output;
use crate::command::values::{parse, positive_time};

/// Options of the admin interface.
#[derive(Clone, Debug, Args)]
pub(in crate::command) struct AdminArguments {
    /// Serve an interface that shows and controls the run
    ///
    /// Can be repeated. ADDRESS is unix:/path or unix:@name (for the run's user and root),
    /// HOST:PORT or PORT (read only). Without one it is /run/clusterlb.sock for root, otherwise
    /// $XDG_RUNTIME_DIR/clusterlb.sock. It speaks HTTP: GET /metrics, /livez, /readyz, /workers,
    /// /listeners, /config and /events, and POST for actions. The commands status, top, reload,
    /// scale, drain and events use it.
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

    /// `clusterlb drain`.
    ///
    /// # Errors
    /// No run answers.
    pub(in crate::command) fn drain(&self) -> Result<u8> {
        self.act("/drain")
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

impl StatusArguments {
    /// `clusterlb status`.
    ///
    /// # Errors
    /// No run answers.
    pub(in crate::command) fn run(&self) -> Result<u8> {
        let client = Client::new(&self.client.admin)?;
        if self.json {
            output::print(&client.look_as_text("/workers")?)?;
            return Ok(0);
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
