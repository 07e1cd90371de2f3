//! `--admin` addresses: where a run is inspected and controlled, and the default.
//!
//! Owns the rule for a safe default path. Opens nothing.

use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clusterlb::{Error, FileAccess, ListenAddress, Result};
use nix::unistd::{Uid, geteuid};

/// The socket's name in its folder.
const NAME: &str = "clusterlb.sock";
/// Root's folder.
const ROOT_FOLDER: &str = "/run";
/// Folder of other users: only they can write to it, if a session manager made it.
const FOLDER_VARIABLE: &str = "XDG_RUNTIME_DIR";

/// Where a run is inspected and controlled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum AdminAddress {
    /// This user's default path.
    Default,
    /// An explicit address.
    At(ListenAddress),
}

impl FromStr for AdminAddress {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "default" {
            return Ok(Self::Default);
        }
        let forms = "write unix:/path, unix:@name, HOST:PORT, PORT or default";
        match text.parse() {
            Ok(ListenAddress::Inherited(_)) => {
                Err(Error::usage(format!("--admin {text}: it takes no inherited socket"), forms))
            }
            Ok(address) => Ok(Self::At(address)),
            Err(error) => {
                let what = error.to_string().replace("--listen", "--admin");
                let hint = match text.contains(':') {
                    true => forms.to_owned(),
                    false => format!("{forms}, or `--admin -- {text}` if that is the program"),
                };
                Err(Error::usage(what, hint))
            }
        }
    }
}

impl fmt::Display for AdminAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::At(address) => address.fmt(f),
        }
    }
}

impl AdminAddress {
    /// Whether a run that has this one cannot open the other.
    pub(super) fn rules_out(&self, other: &ListenAddress) -> bool {
        let Self::At(own) = self else { return false };
        match (own, other) {
            (ListenAddress::Tcp(own), ListenAddress::Tcp(other)) => {
                let is_same_port = own.port() != 0 && own.port() == other.port();
                let is_any = own.ip().is_unspecified() || other.ip().is_unspecified();
                let is_same_family = own.is_ipv4() == other.is_ipv4();
                is_same_port && (own.ip() == other.ip() || (is_any && is_same_family))
            }
            (ListenAddress::Tcp(own), ListenAddress::Name(name, port))
            | (ListenAddress::Name(name, port), ListenAddress::Tcp(own)) => {
                name == "*" && *port != 0 && own.port() == *port
            }
            (ListenAddress::Unix(own, _), ListenAddress::Unix(other, _)) => own == other,
            (own, other) => own == other && !own.is_port_zero(),
        }
    }

    /// The address.
    ///
    /// # Errors
    /// [`Error::Usage`]: this user has no safe folder.
    pub(super) fn resolve(&self) -> Result<ListenAddress> {
        match self {
            Self::At(address) => Ok(address.clone()),
            Self::Default => {
                let folder = std::env::var_os(FOLDER_VARIABLE).map(PathBuf::from);
                let path = default_path(geteuid(), folder.as_deref())?;
                Ok(ListenAddress::Unix(path, FileAccess::default()))
            }
        }
    }
}

/// A user's default path. A folder that others can write to could hold another user's socket.
fn default_path(user: Uid, folder: Option<&Path>) -> Result<PathBuf> {
    if user.is_root() {
        return Ok(Path::new(ROOT_FOLDER).join(NAME));
    }
    let none = |why: String| {
        Error::usage(
            format!("there is no default admin socket: {why}"),
            "name one, such as --admin unix:/path, in a folder that no other user can write to",
        )
    };
    let folder = folder.filter(|folder| folder.is_absolute());
    let folder = folder.ok_or_else(|| none(format!("{FOLDER_VARIABLE} names no folder")))?;
    let shown = folder.display();
    let data = std::fs::metadata(folder).map_err(|error| none(format!("{shown}: {error}")))?;
    if !data.is_dir() || data.uid() != user.as_raw() || data.mode() & 0o022 != 0 {
        return Err(none(format!("other users can write to {shown}")));
    }
    Ok(folder.join(NAME))
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn every_form_is_understood_and_printed_back() {
        for text in ["unix:/run/a.sock", "unix:@a", "127.0.0.1:9100", "[::1]:0", "default"] {
            let address: AdminAddress = text.parse().expect("a valid form");
            assert_eq!(address.to_string(), text);
        }
        for text in ["", "fd:3", "host", "unix:"] {
            let error = text.parse::<AdminAddress>().expect_err(text);
            assert!(error.hint().contains("unix:/path"), "{}", error.hint());
            assert!(!error.to_string().contains("--listen"), "{error}");
        }
    }

    #[test]
    fn addresses_that_rule_each_other_out_are_known() {
        for (own, other, rules_out) in [
            ("9100", "127.0.0.1:9100", true),
            ("0.0.0.0:9100", "127.0.0.1:9100", true),
            ("127.0.0.1:9100", "*:9100", true),
            ("unix:/run/a", "unix:/run/a,mode=660", true),
            ("unix:@a", "unix:@a", true),
            ("127.0.0.1:0", "127.0.0.1:0", false),
            ("127.0.0.1:9100", "127.0.0.2:9100", false),
            ("[::1]:9100", "0.0.0.0:9100", false),
            ("127.0.0.1:9100", "*:9101", false),
            ("default", "unix:/run/clusterlb.sock", false),
        ] {
            let own: AdminAddress = own.parse().expect("an address");
            let other = other.parse().expect("an address");
            assert_eq!(own.rules_out(&other), rules_out, "{own} {other}");
        }
    }

    #[test]
    fn the_default_is_in_a_folder_of_the_user_alone() {
        let root = default_path(Uid::from_raw(0), None).expect("root has one");
        assert_eq!(root, Path::new("/run/clusterlb.sock"));
        let folder = tempfile::tempdir().expect("a folder");
        let set = |mode| {
            std::fs::set_permissions(folder.path(), Permissions::from_mode(mode))
                .expect("it is ours");
        };
        let owner = std::fs::metadata(folder.path()).expect("it is there").uid();
        let other = Uid::from_raw(owner + 1);
        set(0o755);
        assert!(default_path(other, Some(folder.path())).is_err());
        assert!(default_path(other, None).is_err());
        assert!(default_path(other, Some(Path::new("run"))).is_err());
        if owner != 0 {
            let user = Uid::from_raw(owner);
            let path = default_path(user, Some(folder.path())).expect("it is safe");
            assert_eq!(path, folder.path().join("clusterlb.sock"));
            set(0o777);
            assert!(default_path(user, Some(folder.path())).is_err());
        }
    }
}
