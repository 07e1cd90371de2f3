//! The CPUs: which are allowed, what they share, and the cgroup's quota.
//!
//! Owns reading sysfs, and pinning. Does not choose CPUs: `topology` does. A missing file reduces
//! the information and is never an error.

use std::fs;
use std::path::Path;

use nix::errno::Errno;
use serde::Serialize;

use super::cgroup::{self, read_number};
use crate::error::{Error, Result};

/// First CPU number that does not fit the fixed mask of the kernel interface.
pub const CPU_COUNT_MAX: usize = 1024;

/// A CPU (hardware thread) that this process may run on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cpu {
    /// Number of the CPU.
    pub id: usize,
    /// The CPUs of its physical core in ascending order, including itself and those not allowed.
    pub siblings: Vec<usize>,
    /// Its package (socket).
    pub package: usize,
    /// The lowest CPU that shares its last-level cache, if known.
    pub cache: Option<usize>,
    /// Its NUMA node.
    pub node: usize,
}

impl Cpu {
    /// A CPU of which only the number is known: treated as a separate core.
    #[must_use]
    pub fn alone(id: usize) -> Self {
        Self { id, siblings: vec![id], package: 0, cache: None, node: 0 }
    }

    /// Identifies the physical core by its lowest CPU.
    #[must_use]
    pub fn core(&self) -> usize {
        self.siblings.first().copied().unwrap_or(self.id)
    }
}

/// The CPU resources of this process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CpuFacts {
    /// The CPUs in the affinity mask, in ascending order.
    pub cpus: Vec<Cpu>,
    /// CPU quota of the cgroup in thousandths of a CPU; `None` without a quota.
    pub quota_milli_cpus: Option<u64>,
}

impl CpuFacts {
    /// Reads the facts of this process. Call it before pinning, because a pinned thread sees a
    /// single CPU.
    ///
    /// # Errors
    /// The affinity mask cannot be read.
    pub fn gather() -> Result<Self> {
        Ok(Self::read(Path::new("/"), &allowed()?))
    }

    /// Reads the facts about the `allowed` CPUs from files under `root`.
    #[must_use]
    pub fn read(root: &Path, allowed: &[usize]) -> Self {
        let nodes = numa_nodes(root);
        let cpus = allowed.iter().map(|id| cpu(root, *id, &nodes)).collect();
        Self { cpus, quota_milli_cpus: cgroup::quota_milli_cpus(root) }
    }

    /// Numbers of the allowed CPUs.
    #[must_use]
    pub fn ids(&self) -> Vec<usize> {
        self.cpus.iter().map(|cpu| cpu.id).collect()
    }
}

/// The CPUs in the calling thread's affinity mask, in ascending order.
///
/// # Errors
/// The affinity mask cannot be read.
pub fn allowed() -> Result<Vec<usize>> {
    let cores = core_affinity::get_core_ids()
        .ok_or_else(|| Error::system("read the CPU affinity mask", Errno::last()))?;
    Ok(cores.into_iter().map(|core| core.id).collect())
}

/// Pins the calling thread, and the threads and processes it starts later, to one CPU.
///
/// # Errors
/// [`Error::Environment`]: this process may not use the CPU.
pub fn pin_to(cpu: usize) -> Result<()> {
    let failed = |source: Errno| Error::Environment {
        step: format!("pin to CPU {cpu}"),
        source: source.into(),
        hint: "that CPU is off, or the cpuset of this process has lost it: name others, or leave \
               the choice to the kernel"
            .into(),
    };
    // Checked here because nix indexes the mask without a check.
    if cpu >= CPU_COUNT_MAX {
        return Err(failed(Errno::EINVAL));
    }
    if core_affinity::set_for_current(core_affinity::CoreId { id: cpu }) {
        return Ok(());
    }
    // nix drops the error number, but no call has been made since.
    Err(failed(Errno::last()))
}

/// Parses a CPU list in the syntax of `taskset` and sysfs (`0-3,6,8-14:2`) and keeps its order.
///
/// # Errors
/// What is wrong with the text: it is no list, a range is empty, or a CPU is named twice or is too
/// high.
pub fn parse_cpu_list(text: &str) -> std::result::Result<Vec<usize>, String> {
    let mut cpus = Vec::new();
    for part in text.trim().split(',') {
        let (range, stride) = part.split_once(':').unwrap_or((part, "1"));
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let number = |digits: &str| {
            let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            let number = plain.then(|| digits.parse::<usize>().ok()).flatten();
            number.ok_or_else(|| format!("`{part}` is neither a CPU number nor a range"))
        };
        let (first, last, stride) = (number(first)?, number(last)?, number(stride)?);
        if first > last || stride == 0 {
            return Err(format!("the range `{part}` is empty"));
        }
        if last >= CPU_COUNT_MAX {
            return Err(format!("CPU {last} is beyond the highest, {}", CPU_COUNT_MAX - 1));
        }
        for cpu in (first..=last).step_by(stride) {
            if cpus.contains(&cpu) {
                return Err(format!("CPU {cpu} is named twice"));
            }
            cpus.push(cpu);
        }
    }
    Ok(cpus)
}

/// Formats ascending CPU numbers as a list of ranges.
#[must_use]
pub fn format_cpu_list(cpus: &[usize]) -> String {
    let runs = cpus.chunk_by(|low, high| low + 1 == *high);
    let parts: Vec<String> = runs
        .map(|run| match run {
            [first, .., last] => format!("{first}-{last}"),
            _ => run.iter().map(usize::to_string).collect(),
        })
        .collect();
    parts.join(",")
}

fn cpu(root: &Path, id: usize, nodes: &[(usize, Vec<usize>)]) -> Cpu {
    let place = root.join(format!("sys/devices/system/cpu/cpu{id}"));
    let siblings = ["core_cpus_list", "thread_siblings_list"]
        .iter()
        .find_map(|file| read_list(&place.join("topology").join(file)))
        .filter(|siblings| siblings.contains(&id));
    let package = read_number(&place.join("topology/physical_package_id"));
    let cache = read_list(&place.join("cache/index3/shared_cpu_list"));
    let node = nodes.iter().find(|(_, cpus)| cpus.contains(&id));
    Cpu {
        id,
        siblings: siblings.unwrap_or_else(|| vec![id]),
        package: package.unwrap_or(0),
        cache: cache.and_then(|cpus| cpus.first().copied()),
        node: node.map_or(0, |(node, _)| *node),
    }
}

fn numa_nodes(root: &Path) -> Vec<(usize, Vec<usize>)> {
    let Ok(entries) = fs::read_dir(root.join("sys/devices/system/node")) else {
        return Vec::new();
    };
    let node = |entry: fs::DirEntry| {
        let name = entry.file_name();
        let number = name.to_str()?.strip_prefix("node")?.parse().ok()?;
        Some((number, read_list(&entry.path().join("cpulist"))?))
    };
    entries.filter_map(|entry| node(entry.ok()?)).collect()
}

fn read_list(path: &Path) -> Option<Vec<usize>> {
    parse_cpu_list(&fs::read_to_string(path).ok()?).ok()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A fake root directory with the given files.
    pub(crate) fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a temporary directory");
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("files lie in directories"))
                .and_then(|()| fs::write(&path, text))
                .expect("a temporary directory can be written");
        }
        root
    }

    #[test]
    fn lists_are_read_and_written_as_taskset_does() {
        assert_eq!(parse_cpu_list("0-3,6,8-11\n"), Ok(vec![0, 1, 2, 3, 6, 8, 9, 10, 11]));
        assert_eq!(parse_cpu_list("8-12:2,1"), Ok(vec![8, 10, 12, 1]));
        for wrong in ["", "a", "1,", "3-1", "-1", "1-", "0-1:0", "1024", "0-9999999999", "+1"] {
            assert!(parse_cpu_list(wrong).is_err(), "{wrong}");
        }
        assert!(parse_cpu_list("1,0-2").unwrap_err().contains("named twice"));
        assert_eq!(format_cpu_list(&[0, 1, 2, 3, 6, 8, 9]), "0-3,6,8-9");
        assert_eq!(format_cpu_list(&[]), "");
    }

    #[test]
    fn shared_cores_caches_and_nodes_are_read() {
        let root = tree(&[
            ("sys/devices/system/cpu/cpu1/topology/core_cpus_list", "1,5\n"),
            ("sys/devices/system/cpu/cpu1/topology/physical_package_id", "2\n"),
            ("sys/devices/system/cpu/cpu1/cache/index3/shared_cpu_list", "0-7\n"),
            ("sys/devices/system/cpu/cpu5/topology/thread_siblings_list", "1,5\n"),
            ("sys/devices/system/cpu/cpu6/topology/core_cpus_list", "2\n"),
            ("sys/devices/system/node/node3/cpulist", "1,5\n"),
            ("sys/devices/system/node/online", "0,3\n"),
        ]);
        let facts = CpuFacts::read(root.path(), &[1, 5, 6]);
        let full = Cpu { id: 1, siblings: vec![1, 5], package: 2, cache: Some(0), node: 3 };
        assert_eq!(facts.cpus[0], full);
        assert_eq!((facts.cpus[1].core(), facts.cpus[1].node), (1, 3));
        assert_eq!(facts.cpus[2], Cpu::alone(6), "a core without itself is no core");
        assert_eq!(facts.ids(), [1, 5, 6]);
    }

    #[test]
    fn nothing_readable_means_separate_cores_and_no_quota() {
        let facts = CpuFacts::read(tree(&[]).path(), &[0, 9]);
        assert_eq!(facts.cpus, [Cpu::alone(0), Cpu::alone(9)]);
        assert_eq!(facts.quota_milli_cpus, None);
    }

    #[test]
    fn a_thread_pins_itself_to_an_allowed_cpu_only() {
        // On a separate thread, so that other tests keep their CPUs.
        let pinned = std::thread::spawn(|| {
            let last = *allowed()?.last().expect("a running thread has a CPU");
            pin_to(last).map(|()| (last, allowed()))
        });
        let (last, now) = pinned.join().expect("no panic").expect("an allowed CPU");
        assert_eq!(now.expect("the mask can be read"), [last]);
        for cpu in [CPU_COUNT_MAX - 1, CPU_COUNT_MAX, usize::MAX] {
            let error = pin_to(cpu).expect_err("no such CPU here");
            assert_eq!(error.to_string(), format!("pin to CPU {cpu}: Invalid argument"));
        }
    }
}
