//! The environment of workers: variables, folder, user, group, and the destination of their output.
//!
//! Owns the options, and checks that what they name exists.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;

use clap::Args;
use nix::errno::Errno;

use super::addresses::PATIENCE;
use super::headings::ENVIRONMENT;
use super::settings::WorkerEnvironment;
use super::values::parse;
use clusterlb::protocol::environment;
use clusterlb::{DescriptorLimit, Error, ListenRule, Result};
use clusterlb_sys::account::{self, Account};
use clusterlb_sys::{privileges, resolve};

/// Variables of the session in which the primary was started. They lead to agents, buses, folders
/// and credentials that are not for other users.
const SESSION: [&str; 21] = [
    "CREDENTIALS_DIRECTORY",
    "DBUS_SESSION_BUS_ADDRESS",
    "DISPLAY",
    "GNUPGHOME",
    "GPG_AGENT_INFO",
    "KRB5CCNAME",
    "MAIL",
    "OLDPWD",
    "SSH_AGENT_PID",
    "SSH_AUTH_SOCK",
    "SSH_CLIENT",
    "SSH_CONNECTION",
    "SSH_TTY",
    "SUDO_COMMAND",
    "SUDO_GID",
    "SUDO_UID",
    "SUDO_USER",
    "WAYLAND_DISPLAY",
    "XAUTHORITY",
    "XDG_RUNTIME_DIR",
    "XDG_SESSION_ID",
];

/// Options of the workers' environment.
#[derive(Clone, Debug, Args)]
pub(super) struct WorkerEnvironmentArguments {
    /// Run workers as this user, in this user's group; a name or number
    #[arg(long, value_name = "USER", help_heading = ENVIRONMENT, hide_short_help = true)]
    user: Option<String>,

    /// Run workers in this group, by name or number; supplementary groups are dropped
    #[arg(long, value_name = "GROUP", help_heading = ENVIRONMENT, hide_short_help = true)]
    group: Option<String>,

    /// Run the primary as this user from the start, with the few rights that it needs
    ///
    /// It becomes this user before it opens anything, so sockets and files are this user's. It
    /// keeps CAP_NET_BIND_SERVICE for ports below 1024, and with --user and --group the rights to
    /// start and end workers of another user: CAP_SETUID, CAP_SETGID, CAP_SETPCAP, CAP_KILL.
    #[arg(long, value_name = "USER", help_heading = ENVIRONMENT, hide_short_help = true)]
    primary_user: Option<String>,

    /// What workers may listen on; can be repeated
    ///
    /// An address, PORT or FROM-TO (0 stands for a port that the kernel chooses), HOST:FROM-TO,
    /// unix:/folder/ for sockets in it, or all. With --user the default is the addresses of
    /// --listen, and for programs the ports from 1024 on; otherwise it is everything that the
    /// primary can open.
    #[arg(
        long,
        value_name = "RULE",
        value_parser = parse::<ListenRule>,
        help_heading = ENVIRONMENT,
        hide_short_help = true
    )]
    allow_listen: Vec<ListenRule>,

    /// With --user, keep the primary's environment for workers
    ///
    /// By default HOME, USER and LOGNAME are those of the user, and variables of the session in
    /// which the primary was started are removed.
    #[arg(long, help_heading = ENVIRONMENT, hide_short_help = true)]
    keep_env: bool,

    /// Run workers in this folder
    #[arg(long, value_name = "FOLDER", help_heading = ENVIRONMENT, hide_short_help = true)]
    chdir: Option<PathBuf>,

    /// Set a variable in the workers' environment; can be repeated
    #[arg(
        long,
        value_name = "NAME=VALUE",
        value_parser = variable,
        help_heading = ENVIRONMENT, hide_short_help = true     )]
    env: Vec<Variable>,

    /// How many descriptors a worker may open: inherited, hard or a number
    ///
    /// It is the soft limit: inherited, what clusterlb was started with; hard, the hard limit. Node
    /// raises its own to the hard limit.
    #[arg(
        long,
        value_name = "inherited|hard|N",
        default_value = "inherited",
        value_parser = descriptor_limit,
        help_heading = ENVIRONMENT,
        hide_short_help = true
    )]
    worker_open_files: DescriptorLimit,

    /// Put the worker's number in front of each line that it prints
    ///
    /// By default workers print where the primary does, and lines may mix. With this option they
    /// print into pipes, so some programs print later, in blocks, and without colours.
    #[arg(long, help_heading = ENVIRONMENT, hide_short_help = true)]
    prefix: bool,
}

type Variable = (OsString, OsString);

impl WorkerEnvironmentArguments {
    /// The environment on this machine.
    ///
    /// # Errors
    /// [`Error::Usage`] for a user, a group or a folder that does not exist; [`Error::Environment`]
    /// when this process may not start others as another user.
    pub(super) fn resolve(&self) -> Result<WorkerEnvironment> {
        let (account, group) = self.identity()?;
        let cleaned = account.as_ref().filter(|_| !self.keep_env);
        let user = account.as_ref().map(|account| account.user);
        if let Some(folder) = self.chdir.as_ref().filter(|folder| !folder.is_dir()) {
            return Err(Error::usage(
                format!("--chdir {}: there is no such folder", folder.display()),
                "name one that is there",
            ));
        }
        Ok(WorkerEnvironment {
            environment: cleaned
                .map(own_variables)
                .into_iter()
                .flatten()
                .chain(self.env.clone())
                .collect(),
            removed: cleaned.map(|_| SESSION.map(OsString::from)).into_iter().flatten().collect(),
            allow_listen: self.allow_listen.clone(),
            directory: self.chdir.clone(),
            user,
            group,
            descriptor_limit: self.worker_open_files,
            prefix: self.prefix,
        })
    }

    /// Becomes the user of --primary-user, if named.
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve).
    pub(super) fn become_primary_user(&self) -> Result<()> {
        let Some(name) = &self.primary_user else { return Ok(()) };
        let account = find_account("--primary-user", name)?;
        if !account::may_become(Some(account.user), account.group) {
            return Err(Error::Environment {
                step: "run the primary as another user".into(),
                source: Errno::EPERM.into(),
                hint: "start clusterlb as root, or leave --primary-user out".into(),
            });
        }
        let starts_others = self.user.is_some() || self.group.is_some();
        privileges::become_user(&account, starts_others)
    }

    /// The value of a variable in a program's environment.
    pub(super) fn variable(&self, name: &str) -> Option<OsString> {
        let own = self.env.iter().rev().find(|(own, _)| own == name);
        own.map(|(_, value)| value.clone()).or_else(|| std::env::var_os(name))
    }

    fn identity(&self) -> Result<(Option<Account>, Option<u32>)> {
        if environment::is_worker() {
            // The primary was started as that user, so the account needs no lookup.
            return Ok((None, None));
        }
        let account = self.user.as_ref().map(|name| find_account("--user", name)).transpose()?;
        let group = match (&self.group, &account) {
            (Some(name), _) => {
                let question = name.clone();
                let found =
                    resolve::within(PATIENCE, &format!("look --group {name} up"), move || {
                        account::find_group(&question)
                    });
                Some(found?.ok_or_else(|| missing("--group", name))?)
            }
            (None, Some(account)) => Some(account.group.ok_or_else(|| {
                Error::usage(
                    format!("--user {}: the group of that user is unknown", account.user),
                    "name it with --group",
                )
            })?),
            (None, None) => None,
        };
        let user = account.as_ref().map(|account| account.user);
        if !account::may_become(user, group) {
            return Err(Error::Environment {
                step: "start workers as another user or group".into(),
                source: Errno::EPERM.into(),
                hint: "start clusterlb as root, or leave --user and --group out".into(),
            });
        }
        Ok((account, group))
    }
}

fn find_account(option: &str, name: &str) -> Result<Account> {
    let question = name.to_owned();
    let found = resolve::within(PATIENCE, &format!("look {option} {name} up"), move || {
        account::find_user(&question)
    });
    found?.ok_or_else(|| missing(option, name))
}

fn missing(option: &str, name: &str) -> Error {
    Error::usage(format!("{option} {name}: there is none on this machine"), "see `getent`")
}

/// Variables that programs of another user expect.
fn own_variables(account: &Account) -> Vec<Variable> {
    let named = |name: &str, value: OsString| (OsString::from(name), value);
    match &account.entry {
        Some(entry) => vec![
            named("HOME", entry.home.clone().into_os_string()),
            named("USER", entry.name.clone().into()),
            named("LOGNAME", entry.name.clone().into()),
        ],
        None => {
            let number = account.user.to_string();
            vec![
                named("HOME", "/".into()),
                named("USER", number.clone().into()),
                named("LOGNAME", number.into()),
            ]
        }
    }
}

fn descriptor_limit(text: &str) -> std::result::Result<DescriptorLimit, String> {
    match (text, text.parse()) {
        ("inherited", _) => Ok(DescriptorLimit::Inherited),
        ("hard", _) => Ok(DescriptorLimit::Hard),
        (_, Ok(number @ 1..)) => Ok(DescriptorLimit::Number(number)),
        _ => Err("write inherited, hard or a number from 1".into()),
    }
}

fn variable(text: &str) -> std::result::Result<Variable, String> {
    let mut parts = text.as_bytes().splitn(2, |byte| *byte == b'=');
    let mut part = || parts.next().map(|part| OsString::from_vec(part.to_vec()));
    match (part(), part()) {
        (Some(name), Some(value)) if !OsStr::as_bytes(&name).is_empty() => Ok((name, value)),
        _ => Err("write NAME=VALUE, or NAME= for an empty one".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clusterlb::ErrorKind;

    fn none() -> WorkerEnvironmentArguments {
        WorkerEnvironmentArguments {
            user: None,
            primary_user: None,
            group: None,
            allow_listen: vec![],
            keep_env: false,
            chdir: None,
            env: vec![],
            worker_open_files: DescriptorLimit::Inherited,
            prefix: false,
        }
    }

    #[test]
    fn a_user_brings_a_group_along() {
        let root = WorkerEnvironmentArguments { user: Some("root".into()), ..none() };
        let found = root.identity().ok();
        assert_eq!(
            found.map(|(account, group)| (account.map(|account| account.user), group)),
            account::may_become(Some(0), Some(0)).then_some((Some(0), Some(0)))
        );
        let stranger = WorkerEnvironmentArguments { user: Some("4000000000".into()), ..none() };
        assert!(stranger.identity().expect_err("no group").hint().contains("--group"));
        let unknown = WorkerEnvironmentArguments { user: Some("no such user".into()), ..none() };
        assert_eq!(unknown.resolve().expect_err("there is none").kind(), ErrorKind::Usage);
        let nowhere =
            WorkerEnvironmentArguments { chdir: Some("/nowhere/at/all".into()), ..none() };
        assert_eq!(nowhere.resolve().expect_err("there is none").kind(), ErrorKind::Usage);
        assert_eq!(none().resolve().expect("nothing can be wrong"), WorkerEnvironment::default());
    }

    #[test]
    fn variables_have_a_name_and_a_value() {
        let pair = |name: &str, value: &str| Ok((name.into(), value.into()));
        assert_eq!(variable("A=b=c"), pair("A", "b=c"));
        assert_eq!(variable("A="), pair("A", ""));
        assert!(variable("A").is_err() && variable("=b").is_err() && variable("").is_err());
        let given = WorkerEnvironmentArguments {
            env: vec![("A".into(), "1".into()), ("A".into(), "2".into())],
            ..none()
        };
        assert_eq!(given.variable("A"), Some("2".into()), "the last one is valid");
        assert!(given.variable("PATH").is_some(), "others are inherited");
    }
}
