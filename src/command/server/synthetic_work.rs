//! Does the work that a request costs (`--work`): computing, or waiting.
//!
//! Owns spending the time. `work` draws it from a seed.

use crate::command::settings::ServeSettings;
use clusterlb_harness::work::{Sampler, WorkKind};
use clusterlb_sys::clock::{self, thread_cpu_ns};

/// A worker's stand-in for a real service.
#[derive(Debug)]
pub(crate) struct SyntheticWork {
    kind: WorkKind,
    sampler: Sampler,
}

impl SyntheticWork {
    /// The work of the settings, drawn differently in each worker. Create it on the thread that
    /// does the work.
    pub(crate) fn new(settings: &ServeSettings, worker: u32) -> Option<Self> {
        let work = settings.work.clone()?;
        // The default timer slack would stretch 1 ms by 6 %.
        clock::sleep_precisely();
        let seed = settings.work_seed.wrapping_add(u64::from(worker).wrapping_mul(0x9e37_79b9));
        Some(Self { kind: work.kind, sampler: Sampler::new(work.time, seed) })
    }

    /// Does the work of one request, blocking the thread on purpose.
    pub(crate) fn perform(&mut self) {
        let time_ns = self.sampler.draw_ns();
        match self.kind {
            WorkKind::Block => clock::sleep(time_ns),
            // CPU time, so that a busy neighbour on the core does not shrink the work.
            WorkKind::Cpu => {
                let until_ns = thread_cpu_ns() + time_ns;
                while thread_cpu_ns() < until_ns {
                    std::hint::spin_loop();
                }
            }
        }
    }
}
