//! Chooses the engine of a run, as requested or by trying, once, in the primary.
//!
//! Owns the decision and its explanation. Anything that keeps a ring from working is a refusal,
//! whatever the error number, because sandboxes return arbitrary ones. A shortage is not: a machine
//! without memory or descriptors does have io_uring, and falling back would hide the shortage.

use std::fmt;
use std::str::FromStr;

use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::probe::{self, FeatureLevel, RingSupport};

/// Selects the engine if the program does not: `auto`, `io_uring` or `epoll`.
pub const ENGINE_VARIABLE: &str = "CLUSTERLB_ENGINE";

/// The requested engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineChoice {
    /// io_uring if it works, otherwise epoll.
    #[default]
    Auto,
    /// io_uring; otherwise the run fails.
    IoUring,
    /// epoll; io_uring is not tried.
    Epoll,
}

/// The kind of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// io_uring.
    IoUring,
    /// epoll and ordinary system calls.
    Epoll,
}

/// The engine of a run, with the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineDecision {
    /// The engine.
    pub kind: EngineKind,
    /// The level of io_uring support, if it was tried.
    pub level: Option<FeatureLevel>,
    /// Why this engine was chosen.
    pub reason: String,
}

impl EngineChoice {
    /// All choices.
    pub const ALL: [Self; 3] = [Self::Auto, Self::IoUring, Self::Epoll];

    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::IoUring => EngineKind::IoUring.name(),
            Self::Epoll => EngineKind::Epoll.name(),
        }
    }

    /// The choice in the environment variable, or the default if that is empty or unset.
    ///
    /// # Errors
    /// [`Error::Usage`] if [`ENGINE_VARIABLE`] has another value.
    pub fn from_environment() -> Result<Self> {
        let text = std::env::var(ENGINE_VARIABLE).ok().filter(|text| !text.is_empty());
        text.map_or(Ok(Self::Auto), |text| {
            text.parse().map_err(|_| {
                Error::usage(
                    format!("{ENGINE_VARIABLE}={text} is not an engine"),
                    "set it to auto, io_uring or epoll, or unset it",
                )
            })
        })
    }

    /// Decides, by trying io_uring unless epoll is requested. A trial takes a few milliseconds.
    ///
    /// # Errors
    /// [`Error::Environment`] if io_uring is requested and does not work, or memory or descriptors
    /// are exhausted.
    pub fn decide(self) -> Result<EngineDecision> {
        match self {
            Self::Epoll => Ok(EngineDecision {
                kind: EngineKind::Epoll,
                level: None,
                reason: "asked for; io_uring was not tried".into(),
            }),
            _ => self.decide_by(&probe::probe(), probe::io_uring_disabled(), probe::seccomp_mode()),
        }
    }

    /// Decides from a probe; `disabled` and `seccomp` are those of
    /// [`ring_refusal`](probe::ring_refusal).
    ///
    /// # Errors
    /// As [`EngineChoice::decide`].
    pub fn decide_by(
        self,
        support: &RingSupport,
        disabled: Option<u8>,
        seccomp: Option<u8>,
    ) -> Result<EngineDecision> {
        let level = support.level();
        let decided = |kind, reason| Ok(EngineDecision { kind, level: Some(level), reason });
        match (self, unavailable(support, disabled, seccomp)) {
            (Self::Epoll, _) => decided(EngineKind::Epoll, "asked for".into()),
            (Self::IoUring, None) => decided(EngineKind::IoUring, "asked for, and works".into()),
            (Self::Auto, None) => {
                decided(EngineKind::IoUring, "everything that is needed works here".into())
            }
            (Self::Auto, Some(Unavailable { cause, is_shortage: false, .. })) => {
                decided(EngineKind::Epoll, format!("io_uring: {cause}"))
            }
            (_, Some(Unavailable { cause, source, hint, is_shortage })) => {
                // A refusal is an error only if io_uring is requested.
                let way_out = if is_shortage {
                    ""
                } else {
                    "; or let the engine be chosen, which takes epoll"
                };
                let step = format!("create an io_uring ({cause})");
                Err(Error::Environment {
                    step,
                    source: source.into(),
                    hint: format!("{hint}{way_out}"),
                })
            }
        }
    }
}

/// Why a ring is unavailable.
struct Unavailable {
    cause: String,
    source: Errno,
    hint: String,
    /// Because of a temporary shortage.
    is_shortage: bool,
}

fn unavailable(
    support: &RingSupport,
    disabled: Option<u8>,
    seccomp: Option<u8>,
) -> Option<Unavailable> {
    if let Some(source) = support.refusal {
        let (cause, hint) = probe::ring_refusal(source, disabled, seccomp);
        let is_shortage = matches!(source, Errno::ENOMEM | Errno::EMFILE | Errno::ENFILE);
        return Some(Unavailable { cause: cause.into(), source, hint: hint.into(), is_shortage });
    }
    if support.level() >= FeatureLevel::NEEDED {
        return None;
    }
    let missing = support.missing();
    Some(Unavailable {
        cause: format!("it lacks {}", missing.join(", ")),
        source: Errno::EOPNOTSUPP,
        hint: "run on Linux 6.1 or newer, which has all of it, or allow it in the security policy"
            .into(),
        is_shortage: false,
    })
}

impl EngineKind {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::IoUring => "io_uring",
            Self::Epoll => "epoll",
        }
    }

    /// The kind with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::IoUring, Self::Epoll].into_iter().find(|kind| kind.name() == name)
    }
}

impl From<EngineKind> for EngineChoice {
    /// Requests exactly this kind.
    fn from(kind: EngineKind) -> Self {
        match kind {
            EngineKind::IoUring => Self::IoUring,
            EngineKind::Epoll => Self::Epoll,
        }
    }
}

impl FromStr for EngineChoice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let found = Self::ALL.into_iter().find(|choice| choice.name() == text);
        found.ok_or_else(|| "an engine is auto, io_uring or epoll".into())
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for EngineDecision {
    /// Formats one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.kind, self.level) {
            (EngineKind::IoUring, Some(level)) => write!(f, "io_uring {level} ({})", self.reason),
            (kind, _) => write!(f, "{kind} ({})", self.reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::probe::Feature;

    fn support(refusal: Option<Errno>, features: &[Feature]) -> RingSupport {
        RingSupport { refusal, features: features.to_vec(), missing_operations: Vec::new() }
    }

    #[test]
    fn auto_takes_io_uring_where_it_works_and_epoll_whatever_refuses_it() {
        let decide = |support: &RingSupport| EngineChoice::Auto.decide_by(support, None, Some(2));
        let found = decide(&support(None, &Feature::ALL)).expect("it works");
        assert_eq!((found.kind, found.level), (EngineKind::IoUring, Some(FeatureLevel::L3)));
        assert!(found.to_string().starts_with("io_uring L3 ("), "{found}");
        for errno in [Errno::EPERM, Errno::ENOSYS, Errno::EOPNOTSUPP, Errno::EINVAL, Errno::EIO] {
            let found = decide(&support(Some(errno), &[])).expect("there is epoll");
            assert_eq!(found.kind, EngineKind::Epoll, "{errno}");
            assert!(found.to_string().starts_with("epoll (io_uring: "), "{found}");
        }
        let found = decide(&support(None, &Feature::ALL[..9])).expect("there is epoll");
        assert!(found.reason.contains("deferred task work"), "{found}");
    }

    #[test]
    fn a_shortage_is_an_error_and_no_refusal() {
        for errno in [Errno::ENOMEM, Errno::EMFILE, Errno::ENFILE] {
            let error = EngineChoice::Auto.decide_by(&support(Some(errno), &[]), None, None);
            let error = error.expect_err("the machine has io_uring");
            assert_eq!(error.kind(), ErrorKind::Environment);
            assert!(error.hint().contains("raise `ulimit"), "{}", error.hint());
        }
    }

    #[test]
    fn what_is_asked_for_is_strict() {
        let refused = support(Some(Errno::EPERM), &[]);
        let error =
            EngineChoice::IoUring.decide_by(&refused, None, None).expect_err("there is none");
        assert_eq!(error.kind(), ErrorKind::Environment);
        assert!(error.hint().contains("takes epoll"), "{}", error.hint());
        let old = support(None, &Feature::ALL[..5]);
        let error = EngineChoice::IoUring.decide_by(&old, None, None).expect_err("too old");
        assert!(error.to_string().contains("it lacks"), "{error}");
        let found = EngineChoice::Epoll
            .decide_by(&support(None, &Feature::ALL), None, None)
            .expect("epoll");
        assert_eq!(found.kind, EngineKind::Epoll);
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for choice in EngineChoice::ALL {
            assert_eq!(choice.name().parse(), Ok(choice));
        }
        assert!("select".parse::<EngineChoice>().is_err());
        for kind in [EngineKind::IoUring, EngineKind::Epoll] {
            assert_eq!(EngineKind::from_name(kind.name()), Some(kind));
            assert_eq!(EngineChoice::from(kind).name(), kind.to_string());
        }
    }
}
