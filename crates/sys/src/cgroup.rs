//! The CPU quota of the cgroup.
//!
//! Owns finding this process's cgroup files, in both versions of the interface. Never fails: a
//! missing file means no quota.

use std::fs;
use std::path::{Path, PathBuf};

use super::cpu::read_number;

/// The smallest quota between this process's cgroup and the root, since every level applies.
pub(super) fn quota_milli_cpus(root: &Path) -> Option<u64> {
    let own = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let mounts = fs::read_to_string(root.join("proc/self/mountinfo")).ok()?;
    let hierarchies = own.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let unified = controllers.is_empty();
        if !unified && !controllers.split(',').any(|name| name == "cpu") {
            return None;
        }
        let mount = mounts.lines().find_map(|line| cgroup_mount(line, unified))?;
        Some((unified, path, mount))
    });
    hierarchies.filter_map(|(unified, path, mount)| least_quota(root, unified, path, &mount)).min()
}

/// A mount point of a cgroup hierarchy, and the directory of the hierarchy mounted there.
struct CgroupMount {
    seen: String,
    at: PathBuf,
}

fn cgroup_mount(line: &str, unified: bool) -> Option<CgroupMount> {
    let (place, kind) = line.split_once(" - ")?;
    let mut kind = kind.split(' ');
    let (filesystem, options) = (kind.next()?, kind.nth(1)?);
    let found = match unified {
        true => filesystem == "cgroup2",
        false => filesystem == "cgroup" && options.split(',').any(|name| name == "cpu"),
    };
    let mut place = place.split(' ').skip(3);
    let (seen, at) = (place.next()?, place.next()?);
    found.then(|| CgroupMount {
        seen: seen.trim_end_matches('/').into(),
        at: at.trim_start_matches('/').into(),
    })
}

fn least_quota(root: &Path, unified: bool, path: &str, mount: &CgroupMount) -> Option<u64> {
    // Without a cgroup namespace, a container reads its path on the host but sees only the last
    // part: then the mount point is its cgroup.
    let below = path.strip_prefix(mount.seen.as_str()).unwrap_or("");
    let top = root.join(&mount.at);
    let own = top.join(below.trim_start_matches('/'));
    own.ancestors()
        .take_while(|level| level.starts_with(&top))
        .filter_map(|level| match unified {
            true => unified_quota(&fs::read_to_string(level.join("cpu.max")).ok()?),
            false => share(
                read_number(&level.join("cpu.cfs_quota_us"))?,
                read_number(&level.join("cpu.cfs_period_us"))?,
            ),
        })
        .min()
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
}
