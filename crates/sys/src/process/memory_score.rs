//! Which process the kernel kills when memory runs out: a worker, not its primary.
//!
//! The kernel takes the largest process of the cgroup, or of the machine. Beside small workers that
//! is the primary, and everything would end with it. Owns the score of workers (`oom_score_adj` in
//! `proc(5)`), which counts in thousandths of the memory. Raising it takes no privilege.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::sys::sysinfo::sysinfo;

use crate::cgroup::{memory_limit_bytes, read_number};

/// A worker counts as this much larger than it is, which is more than a primary takes.
const MARGIN_BYTES: u64 = 32 * 1024 * 1024;
/// The score of processes that are never killed.
const NEVER: i32 = -1000;
/// The highest score.
const MOST: i32 = 1000;

/// The score of a worker, as text to write.
#[derive(Debug)]
pub(super) struct MemoryScore(Option<Vec<u8>>);

impl MemoryScore {
    /// That of the next worker. Nothing changes if the own score is unknown, the highest, or that
    /// of processes that are never killed.
    pub(super) fn of_worker() -> Self {
        let own = read_number(Path::new("/proc/self/oom_score_adj"));
        let machine = sysinfo().ok().map(|info| info.ram_total() + info.swap_total());
        let memory_bytes = machine.into_iter().chain(memory_limit_bytes(Path::new("/"))).min();
        let score = own.zip(memory_bytes).and_then(|(own, bytes)| raised(own, bytes));
        Self(score.map(|score| score.to_string().into_bytes()))
    }

    /// Assumes the score. Call it in the new process, before its user changes. Allocates nothing.
    pub(super) fn assume(&self) {
        let Some(text) = &self.0 else { return };
        let opened = open(c"/proc/self/oom_score_adj", OFlag::O_WRONLY, Mode::empty());
        // Without it the process is only less likely to be chosen.
        let _ = opened.map_err(io::Error::from).and_then(|file| File::from(file).write_all(text));
    }
}

fn raised(own: i32, memory_bytes: u64) -> Option<i32> {
    let units = (MARGIN_BYTES * 1000).div_ceil(memory_bytes.max(1));
    let units = i32::try_from(units).unwrap_or(MOST);
    (NEVER < own && own < MOST).then(|| own.saturating_add(units).min(MOST))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn a_worker_counts_as_somewhat_larger_in_whatever_memory_there_is() {
        assert_eq!(raised(0, 24 * 1024 * MIB), Some(2));
        assert_eq!(raised(0, 100 * MIB), Some(320));
        assert_eq!(raised(-500, 64 * MIB), Some(0));
        assert_eq!(raised(900, 64 * MIB), Some(1000));
        assert_eq!(raised(0, MIB), Some(1000));
        assert_eq!(raised(0, 0), Some(1000));
        assert_eq!(raised(1000, 64 * MIB), None, "there is nothing higher");
        assert_eq!(raised(-1000, 64 * MIB), None, "what is never killed stays so");
    }
}
