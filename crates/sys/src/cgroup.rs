//! The CPU quota and memory limit of the cgroup.
//!
//! Owns finding this process's cgroup files, in both versions of the interface and in any number of
//! mounts. Never fails: a missing file means no limit.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

/// The smallest quota of the cgroups that this process is in.
pub(super) fn quota_milli_cpus(root: &Path) -> Option<u64> {
    least(root, "cpu", |level, unified| match unified {
        true => unified_quota(&fs::read_to_string(level.join("cpu.max")).ok()?),
        false => share(
            read_number(&level.join("cpu.cfs_quota_us"))?,
            read_number(&level.join("cpu.cfs_period_us"))?,
        ),
    })
}

/// The smallest limit of memory of the cgroups that this process is in.
pub(super) fn memory_limit_bytes(root: &Path) -> Option<u64> {
    least(root, "memory", |level, unified| {
        read_number(&level.join(if unified { "memory.max" } else { "memory.limit_in_bytes" }))
    })
}

/// Reads a limit in a cgroup's directory; whether the hierarchy is of the unified version.
type Read = fn(&Path, bool) -> Option<u64>;

/// The smallest limit between this process's cgroup and the root, in every hierarchy and mount that
/// has the controller, since every level applies.
fn least(root: &Path, controller: &str, read: Read) -> Option<u64> {
    let own = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let mounts = fs::read_to_string(root.join("proc/self/mountinfo")).ok()?;
    let hierarchies = own.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let unified = controllers.is_empty();
        let counts = unified || controllers.split(',').any(|name| name == controller);
        counts.then_some((unified, path))
    });
    hierarchies
        .filter_map(|(unified, path)| {
            let mounts = mounts.lines().filter_map(|line| {
                cgroup_mount(line, if unified { None } else { Some(controller) })
            });
            let mounts = mounts.collect::<Vec<_>>();
            directories(root, path, &mounts)
                .into_iter()
                .filter_map(|(top, below)| least_upwards(&top, below, |level| read(level, unified)))
                .min()
        })
        .min()
}

/// A mount point of a cgroup hierarchy, and the directory of the hierarchy mounted there.
struct CgroupMount {
    seen: String,
    at: PathBuf,
}

impl CgroupMount {
    /// The part of a cgroup's path below the directory mounted here.
    fn below<'a>(&self, path: &'a str) -> Option<&'a str> {
        let rest = path.strip_prefix(self.seen.as_str())?;
        let is_inside = (rest.is_empty() || rest.starts_with('/'))
            && !Path::new(rest).components().any(|part| part.as_os_str() == "..");
        is_inside.then(|| rest.trim_start_matches('/'))
    }
}

/// The mount of a line of mountinfo, if it has the controller, or is unified for `None`.
fn cgroup_mount(line: &str, controller: Option<&str>) -> Option<CgroupMount> {
    let (place, kind) = line.split_once(" - ")?;
    let mut kind = kind.split(' ');
    let (filesystem, options) = (kind.next()?, kind.nth(1)?);
    let found = match controller {
        None => filesystem == "cgroup2",
        Some(name) => filesystem == "cgroup" && options.split(',').any(|option| option == name),
    };
    let mut place = place.split(' ').skip(3);
    let (seen, at) = (place.next()?, place.next()?);
    found.then(|| CgroupMount {
        seen: seen.trim_end_matches('/').into(),
        at: unescape(at.trim_start_matches('/')),
    })
}

/// A path of mountinfo, in which spaces and similar characters are written as `\040` (`proc(5)`).
fn unescape(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, further)) = rest.split_first() {
        let digits = further.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let code = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code.filter(|_| *first == b'\\') {
            Some(code) => {
                bytes.push(code);
                rest = &further[3..];
            }
            None => {
                bytes.push(*first);
                rest = further;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

/// For each mount, its directory, and the path of this process's cgroup below it.
fn directories<'a>(root: &Path, path: &'a str, mounts: &[CgroupMount]) -> Vec<(PathBuf, &'a str)> {
    let inside = mounts.iter().filter_map(|mount| Some((mount, mount.below(path)?)));
    let mut seen: Vec<(&CgroupMount, &str)> = inside.collect();
    if seen.is_empty() {
        // Without a cgroup namespace, a container reads its path on the host but sees only the last
        // part: then a mount point is its cgroup.
        seen = mounts.iter().map(|mount| (mount, "")).collect();
    }
    seen.into_iter().map(|(mount, below)| (root.join(&mount.at), below)).collect()
}

/// The smallest limit at or above a cgroup, as far as its hierarchy is mounted.
fn least_upwards(top: &Path, below: &str, read: impl Fn(&Path) -> Option<u64>) -> Option<u64> {
    let levels = top.join(below);
    let levels = levels.ancestors().take_while(|level| level.starts_with(top));
    levels.filter_map(read).min()
}

/// The number in a file of one line.
pub(super) fn read_number<N: std::str::FromStr>(path: &Path) -> Option<N> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn unified_quota(text: &str) -> Option<u64> {
    let mut words = text.split_whitespace();
    share(words.next()?.parse().ok()?, words.next()?.parse().ok()?)
}

fn share(quota_us: u64, period_us: u64) -> Option<u64> {
    quota_us.checked_mul(1000)?.checked_div(period_us)
}

#[cfg(test)]
mod tests {
    use super::super::cpu::tests::tree;
    use super::*;

    const UNIFIED: &str = "36 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";

    fn quota(files: &[(&str, &str)]) -> Option<u64> {
        quota_milli_cpus(tree(files).path())
    }

    #[test]
    fn the_least_quota_on_the_way_up_binds() {
        let own = ("proc/self/cgroup", "0::/a/b\n");
        let mounts = ("proc/self/mountinfo", UNIFIED);
        let upper = ("sys/fs/cgroup/a/cpu.max", "250000 100000\n");
        assert_eq!(quota(&[own, mounts, upper]), Some(2500));
        let lower = ("sys/fs/cgroup/a/b/cpu.max", "50000 100000\n");
        assert_eq!(quota(&[own, mounts, upper, lower]), Some(500));
        let free = ("sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
        assert_eq!(quota(&[own, mounts, upper, free]), Some(2500));
        assert_eq!(quota(&[own, mounts, free]), None);
        let zero = ("sys/fs/cgroup/a/b/cpu.max", "1 0\n");
        assert_eq!(quota(&[own, mounts, zero]), None);
        assert_eq!(quota(&[own, upper]), None, "not mounted");
    }

    #[test]
    fn the_older_hierarchy_and_a_container_without_its_own_view_are_read() {
        let mounts = (
            "proc/self/mountinfo",
            "40 31 0:30 /pod/x /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n",
        );
        let cgroups = "4:memory:/m\n3:cpuset:/c\n2:cpu,cpuacct:/pod/x/y\n0::/\n";
        let own = ("proc/self/cgroup", cgroups);
        let period = ("sys/fs/cgroup/cpu,cpuacct/y/cpu.cfs_period_us", "50000\n");
        let set = ("sys/fs/cgroup/cpu,cpuacct/y/cpu.cfs_quota_us", "75000\n");
        assert_eq!(quota(&[own, mounts, period, set]), Some(1500));
        let unset = ("sys/fs/cgroup/cpu,cpuacct/y/cpu.cfs_quota_us", "-1\n");
        assert_eq!(quota(&[own, mounts, period, unset]), None);
        let elsewhere = ("proc/self/cgroup", "2:cpu,cpuacct:/host/z\n");
        let period = ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n");
        let set = ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "100000\n");
        assert_eq!(quota(&[elsewhere, mounts, period, set]), Some(1000));
    }

    #[test]
    fn the_least_limit_of_memory_is_that_of_either_version() {
        let own = ("proc/self/cgroup", "4:memory:/m\n0::/a\n");
        let mounts = (
            "proc/self/mountinfo",
            "40 31 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
             41 31 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
        );
        let limit = |files: &[(&str, &str)]| memory_limit_bytes(tree(files).path());
        assert_eq!(limit(&[own, mounts]), None);
        let older = ("sys/fs/cgroup/memory/m/memory.limit_in_bytes", "104857600\n");
        assert_eq!(limit(&[own, mounts, older]), Some(100 << 20));
        let free = ("sys/fs/cgroup/unified/a/memory.max", "max\n");
        assert_eq!(limit(&[own, mounts, older, free]), Some(100 << 20));
        let newer = ("sys/fs/cgroup/unified/a/memory.max", "52428800\n");
        assert_eq!(limit(&[own, mounts, older, newer]), Some(50 << 20));
    }

    #[test]
    fn every_mount_of_a_hierarchy_counts_and_names_match_whole() {
        let mounts = (
            "proc/self/mountinfo",
            "36 23 0:28 /other /mnt/other rw - cgroup2 cgroup2 rw\n\
             37 23 0:28 /pod /mnt/a\\040b rw - cgroup2 cgroup2 rw\n\
             38 23 0:28 /po /mnt/po rw - cgroup2 cgroup2 rw\n\
             39 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
        );
        let own = ("proc/self/cgroup", "0::/pod/x\n");
        let narrow = ("mnt/a b/x/cpu.max", "50000 100000\n");
        let wide = ("sys/fs/cgroup/pod/cpu.max", "150000 100000\n");
        let foreign = ("mnt/other/cpu.max", "1000 100000\n");
        let similar = ("mnt/po/cpu.max", "2000 100000\n");
        assert_eq!(quota(&[own, mounts, narrow, wide, foreign, similar]), Some(500));
        assert_eq!(quota(&[own, mounts, wide, foreign, similar]), Some(1500));
        let outside = ("proc/self/cgroup", "0::/../x\n");
        assert_eq!(quota(&[outside, mounts, wide]), None, "not read above what is seen");
    }

    #[test]
    fn a_hybrid_takes_the_narrower_of_both_hierarchies() {
        let mounts = (
            "proc/self/mountinfo",
            "40 31 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
             41 31 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
        );
        let own = ("proc/self/cgroup", "2:cpu:/a/b\n0::/a\n");
        let period = ("sys/fs/cgroup/cpu/a/cpu.cfs_period_us", "100000\n");
        let older = ("sys/fs/cgroup/cpu/a/cpu.cfs_quota_us", "300000\n");
        assert_eq!(quota(&[own, mounts, period, older]), Some(3000));
        let newer = ("sys/fs/cgroup/unified/a/cpu.max", "200000 100000\n");
        assert_eq!(quota(&[own, mounts, period, older, newer]), Some(2000));
    }
}
