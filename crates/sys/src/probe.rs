//! Determines by trying what this kernel's io_uring supports, or why it is refused.
//!
//! Owns the trials and the explanations. Does not rely on the kernel's version: distributions
//! backport features, and sandboxes remove them.

mod behaviour;
mod calls;
mod facility;
mod feature;

use std::time::Duration;
use std::{fs, io};

use crate::error::{Error, errno_of};
use io_uring::{IoUring, Probe, opcode};
use nix::errno::Errno;

pub use calls::{MissingCall, missing_calls};
pub use facility::{Facility, counts_locked_memory, may_pin};
pub use feature::{Feature, FeatureLevel};

/// Number of attempts and their interval when memory is exhausted.
const TRIES: u32 = 100;
const TRY: Duration = Duration::from_millis(5);

/// The result of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingSupport {
    /// Why no working ring could be created.
    pub refusal: Option<Errno>,
    /// The working features.
    pub features: Vec<Feature>,
    /// The entries of [`OPERATIONS`] that the kernel lacks.
    pub missing_operations: Vec<&'static str>,
}

/// The operations used by the loops of primary and workers.
pub const OPERATIONS: [(&str, u8); 8] = [
    ("accept", opcode::Accept::CODE),
    ("sendmsg", opcode::SendMsg::CODE),
    ("recvmsg", opcode::RecvMsg::CODE),
    ("send", opcode::Send::CODE),
    ("recv", opcode::Recv::CODE),
    ("close", opcode::Close::CODE),
    ("shutdown", opcode::Shutdown::CODE),
    ("cancel", opcode::AsyncCancel::CODE),
];

/// Tries everything on temporary rings; takes a few milliseconds.
#[must_use]
pub fn probe() -> RingSupport {
    let mut support =
        RingSupport { refusal: None, features: Vec::new(), missing_operations: Vec::new() };
    if let Err(error) = ring_with(&[]) {
        support.refusal = Some(errno_of(&error));
        return support;
    }
    support.features = setup_features();
    // Everything else is tried on a ring configured like those of the loops.
    let Ok(mut ring) = ring_with(&support.features) else {
        return support;
    };
    // Some seccomp filters allow creating a ring but not using it.
    if let Err(error) = behaviour::complete_nothing(&mut ring) {
        support.refusal = Some(errno_of(&error));
        support.features.clear();
        return support;
    }
    support.missing_operations = missing_operations(&ring);
    let behaves = [
        (Feature::Operations, support.missing_operations.is_empty()),
        (Feature::MinWait, ring.params().is_feature_min_timeout()),
    ];
    support.features.extend(behaves.iter().filter(|(_, works)| *works).map(|(name, _)| name));
    // The trials below wait with a timeout, which Linux 5.11 introduced.
    if ring.params().is_feature_ext_arg() {
        support.features.extend(behaviour::try_all(&mut ring));
    }
    support.features.sort_unstable();
    support
}

/// The error for a ring that cannot be created, with the likely cause on this machine.
#[must_use]
pub fn refusal_error(source: Errno) -> Error {
    let (cause, hint) = ring_refusal(source, io_uring_disabled(), seccomp_mode());
    let step = format!("create an io_uring ({cause})");
    Error::Environment { step, source: source.into(), hint: hint.into() }
}

/// Why a ring is refused, and the remedy. `disabled` is the value of `kernel.io_uring_disabled`,
/// `seccomp` the mode of this process (2 is a filter); each is `None` if unknown.
#[must_use]
pub fn ring_refusal(
    errno: Errno,
    disabled: Option<u8>,
    seccomp: Option<u8>,
) -> (&'static str, &'static str) {
    let filtered = seccomp == Some(2);
    match (errno, disabled) {
        (Errno::EPERM, Some(2)) => (
            "kernel.io_uring_disabled is 2: creating a ring is disabled",
            "on the host, `sysctl kernel.io_uring_disabled=0`; no container setting lifts it",
        ),
        (Errno::EPERM, Some(1)) if !filtered => (
            "kernel.io_uring_disabled is 1: only CAP_SYS_ADMIN and kernel.io_uring_group may \
             create a ring",
            "put this account into the group that kernel.io_uring_group names, or on the host \
             `sysctl kernel.io_uring_disabled=0`",
        ),
        (Errno::EPERM, Some(1)) => (
            "kernel.io_uring_disabled is 1 and there is a seccomp filter: either may refuse \
             io_uring",
            "on the host, `sysctl kernel.io_uring_disabled=0`; then allow io_uring_setup, \
             io_uring_enter and io_uring_register in the container's seccomp profile",
        ),
        (Errno::EPERM | Errno::EACCES, _) if filtered => (
            "a seccomp filter refuses io_uring (container runtimes do so by default)",
            "allow io_uring_setup, io_uring_enter and io_uring_register in the container's \
             seccomp profile, leaving the rest of it as it is",
        ),
        (Errno::EPERM | Errno::EACCES, _) => (
            "a security policy refuses io_uring",
            "look for the refusal in the audit log (SELinux, AppArmor or another such module) \
             and allow io_uring there",
        ),
        (Errno::ENOSYS, _) if filtered => (
            "the kernel has no io_uring, or a seccomp filter hides it",
            "allow io_uring_setup, io_uring_enter and io_uring_register in the container's \
             seccomp profile; the kernel must be Linux 6.1 or newer",
        ),
        (Errno::ENOSYS, _) => (
            "the kernel is too old for io_uring or was built without it",
            "run on Linux 6.1 or newer with CONFIG_IO_URING",
        ),
        (Errno::ENOMEM, _) => (
            "too little memory for a ring",
            "raise `ulimit -l` (LimitMEMLOCK=), which rings are charged to on some kernels (before \
             Linux 5.12, and again on recent ones), or the cgroup's memory limit; or go without \
             io_uring: CLUSTERLB_ENGINE=epoll",
        ),
        (Errno::EMFILE | Errno::ENFILE, _) => {
            ("no file descriptor is left for a ring", "raise `ulimit -n` or fs.file-max")
        }
        _ => (
            "the kernel refuses io_uring for an unknown reason",
            "check the security policy of this machine",
        ),
    }
}

/// The value of `kernel.io_uring_disabled`; `None` before Linux 6.6.
#[must_use]
pub fn io_uring_disabled() -> Option<u8> {
    let text = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?;
    text.trim().parse().ok()
}

/// The seccomp mode of this process: 0 none, 1 strict, 2 a filter.
#[must_use]
pub fn seccomp_mode() -> Option<u8> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let mode = status.lines().find_map(|line| line.strip_prefix("Seccomp:"));
    mode?.trim().parse().ok()
}

impl RingSupport {
    /// Whether a feature works.
    #[must_use]
    pub fn has(&self, feature: Feature) -> bool {
        self.features.contains(&feature)
    }

    /// Names of the required features that do not work.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        let needed = |feature: &Feature| {
            feature.needed_for().is_some_and(|level| level <= FeatureLevel::NEEDED)
        };
        let missing = Feature::ALL.into_iter().filter(|feature| !self.has(*feature));
        missing.filter(needed).map(Feature::name).collect()
    }

    /// The highest level whose features all work.
    #[must_use]
    pub fn level(&self) -> FeatureLevel {
        let missing = Feature::ALL.iter().filter(|feature| !self.has(**feature));
        match missing.filter_map(|feature| feature.needed_for()).min() {
            Some(FeatureLevel::L0 | FeatureLevel::L1) => FeatureLevel::L0,
            Some(FeatureLevel::L2) => FeatureLevel::L1,
            Some(FeatureLevel::L3) => FeatureLevel::L2,
            None => FeatureLevel::L3,
        }
    }
}

/// The features that are flags of the ring's creation.
fn setup_features() -> Vec<Feature> {
    use Feature::{CoopTaskrun, DeferTaskrun, NoSqarray, SingleIssuer, SubmitAll, TaskrunFlag};
    let all = [SubmitAll, CoopTaskrun, TaskrunFlag, SingleIssuer, DeferTaskrun, NoSqarray];
    if ring_with(&all).is_ok() {
        return all.to_vec();
    }
    // Some flags require others, so each is tried together with those.
    let trials: [&[Feature]; 6] = [
        &[SubmitAll],
        &[CoopTaskrun],
        &[TaskrunFlag, CoopTaskrun],
        &[SingleIssuer],
        &[DeferTaskrun, SingleIssuer],
        &[NoSqarray],
    ];
    let working = trials.into_iter().filter(|trial| ring_with(trial).is_ok());
    working.map(|trial| trial[0]).collect()
}

/// A small ring. Where rings count as locked memory, the previous trials' rings are still counted
/// for a moment.
fn ring_with(features: &[Feature]) -> io::Result<IoUring> {
    without_hurry(|| ring_at_once(features))
}

/// Retries for up to half a second while memory is exhausted: dropped rings count as locked until
/// the kernel has torn them down.
pub(crate) fn without_hurry<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let mut tries = 0;
    loop {
        match attempt() {
            Err(error) if errno_of(&error) == Errno::ENOMEM && tries < TRIES => {
                tries += 1;
                std::thread::sleep(TRY);
            }
            result => return result,
        }
    }
}

fn ring_at_once(features: &[Feature]) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    for feature in features {
        match feature {
            Feature::SubmitAll => builder.setup_submit_all(),
            Feature::CoopTaskrun => builder.setup_coop_taskrun(),
            Feature::TaskrunFlag => builder.setup_taskrun_flag(),
            Feature::SingleIssuer => builder.setup_single_issuer(),
            Feature::DeferTaskrun => builder.setup_defer_taskrun(),
            Feature::NoSqarray => builder.setup_no_sqarray(),
            _ => &mut builder,
        };
    }
    builder.build(8)
}

fn missing_operations(ring: &IoUring) -> Vec<&'static str> {
    let mut probe = Probe::new();
    // A kernel without this query (before 5.6) lacks some of them.
    let asked = ring.submitter().register_probe(&mut probe).is_ok();
    let missing = OPERATIONS.iter().filter(|(_, code)| !(asked && probe.is_supported(*code)));
    missing.map(|(name, _)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn a_level_is_reached_when_nothing_of_it_is_missing() {
        let with = |features: &[Feature]| RingSupport {
            refusal: None,
            features: features.to_vec(),
            missing_operations: Vec::new(),
        };
        assert_eq!(with(&[]).level(), FeatureLevel::L0);
        // In the order of kernel versions, so each level is a prefix.
        assert_eq!(with(&Feature::ALL[..5]).level(), FeatureLevel::L0);
        assert_eq!(with(&Feature::ALL[..6]).level(), FeatureLevel::L1);
        assert_eq!(with(&Feature::ALL[..9]).level(), FeatureLevel::L1);
        assert_eq!(with(&Feature::ALL[..10]).level(), FeatureLevel::L2);
        assert_eq!(with(&Feature::ALL[1..]).level(), FeatureLevel::L0);
        assert_eq!(with(&Feature::ALL).level(), FeatureLevel::L3);
        assert_eq!(FeatureLevel::L3.to_string(), "L3");
    }

    #[test]
    fn a_refusal_names_its_source() {
        for (errno, disabled, seccomp, cause, hint) in [
            (Errno::EPERM, Some(2), Some(2), "io_uring_disabled is 2", "sysctl"),
            (Errno::EPERM, Some(1), Some(0), "io_uring_disabled is 1", "io_uring_group"),
            (Errno::EPERM, Some(1), Some(2), "either may refuse", "seccomp profile"),
            (Errno::EPERM, Some(0), Some(2), "a seccomp filter refuses", "io_uring_setup"),
            (Errno::EPERM, None, Some(2), "a seccomp filter refuses", "io_uring_setup"),
            (Errno::EPERM, Some(0), Some(0), "a security policy", "audit log"),
            (Errno::EACCES, None, None, "a security policy", "audit log"),
            (Errno::ENOSYS, None, Some(0), "too old", "6.1"),
            (Errno::ENOSYS, None, Some(2), "hides it", "seccomp profile"),
            (Errno::ENOMEM, None, None, "memory", "ulimit -l"),
            (Errno::EMFILE, None, None, "descriptor", "ulimit -n"),
            (Errno::EIO, None, None, "unknown reason", "check"),
        ] {
            let (found_cause, found_hint) = ring_refusal(errno, disabled, seccomp);
            assert!(found_cause.contains(cause), "{errno}: {found_cause}");
            assert!(found_hint.contains(hint), "{errno}: {found_hint}");
        }
        let error = refusal_error(Errno::ENOSYS);
        assert_eq!(error.kind(), ErrorKind::Environment);
        assert!(error.to_string().starts_with("create an io_uring ("), "{error}");
    }

    #[test]
    fn this_machine_reaches_the_needed_level_or_says_why_not() {
        let support = probe();
        if let Some(errno) = support.refusal {
            println!("skipped: {}", refusal_error(errno));
            return;
        }
        assert!(support.level() >= FeatureLevel::NEEDED, "{support:?}");
        assert_eq!(support.missing_operations, [""; 0]);
        // A second probe is not affected by the first.
        assert_eq!(probe(), support);
    }
}
