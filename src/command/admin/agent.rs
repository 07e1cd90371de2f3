//! HAProxy's agent-check: a balancer connects and gets one line with the spare capacity of this
//! run.
//!
//! Owns the line's words and arithmetic. A client may stay silent; one that does not read is
//! dropped after a time limit.

use std::sync::Arc;
use std::time::{Duration, Instant};

use clusterlb::{Snapshot, SupervisorStage, WorkerState};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::Run;
use super::door::{Entrance, REST};
use super::observed;
use crate::command::usage::usage_of;

/// How long a client may take to read its line and close.
const CLIENT_LIMIT: Duration = Duration::from_secs(1);
/// Clients served at once. Others get their line, and the connection ends.
const CLIENTS_MAX: usize = 64;
/// Input of a client is discarded, up to this many bytes.
const WORDS_MAX: u64 = 1024;
/// Interval between two readings of CPU use.
const CPU_EVERY: Duration = Duration::from_millis(200);
/// For this long after the start, `ready` ends the drain of an earlier run at this address. Later
/// it would override an operator's command to the balancer.
const READY_FOR: Duration = Duration::from_secs(60);

/// State kept between two checks.
#[derive(Debug)]
pub(super) struct CpuUse {
    looked: Option<(Instant, f64)>,
    /// Used share of the CPUs that workers may use, from 0 to 1.
    part: f64,
}

impl Default for CpuUse {
    fn default() -> Self {
        Self { looked: None, part: 0.0 }
    }
}

impl CpuUse {
    /// Updates the share from the CPU time used so far.
    fn observe(&mut self, now: Instant, seconds: f64, cpus: f64) {
        let Some((before, used)) = self.looked else {
            self.looked = Some((now, seconds));
            return;
        };
        let time = now.saturating_duration_since(before);
        if time >= CPU_EVERY {
            // The sum shrinks when a worker ends.
            self.part = ((seconds - used).max(0.0) / time.as_secs_f64() / cpus).clamp(0.0, 1.0);
            self.looked = Some((now, seconds));
        }
    }
}

/// The inputs of the line.
#[derive(Clone, Copy, Debug)]
struct AgentInputs {
    serving: u32,
    wanted: u32,
    in_flight: u64,
    /// Limit of one worker.
    in_flight_max: Option<u32>,
    cpu: f64,
    is_new: bool,
}

/// Serves each client.
pub(super) async fn serve(entrance: Entrance, run: Arc<Run>) {
    let room = Arc::new(Semaphore::new(CLIENTS_MAX));
    loop {
        let line = |run: &Run| line(run, Instant::now());
        let accepted = match &entrance {
            Entrance::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                tokio::spawn(answer(stream, line(&run), Arc::clone(&room)));
            }),
            Entrance::Unix(listener) => listener.accept().await.map(|(stream, _)| {
                tokio::spawn(answer(stream, line(&run), Arc::clone(&room)));
            }),
        };
        if accepted.is_err() {
            sleep(REST).await;
        }
    }
}

async fn answer<T: AsyncRead + AsyncWrite + Unpin>(
    mut stream: T,
    line: String,
    room: Arc<Semaphore>,
) {
    // The socket's buffer is empty, so the line fits.
    if timeout(CLIENT_LIMIT, stream.write_all(line.as_bytes())).await.is_err() {
        return;
    }
    let _ = timeout(CLIENT_LIMIT, stream.shutdown()).await;
    let Ok(_permit) = room.try_acquire() else { return };
    // Closing with unread input would reset the connection, and the client could lose the line.
    let mut words = Vec::new();
    let _ = timeout(CLIENT_LIMIT, stream.take(WORDS_MAX).read_to_end(&mut words)).await;
}

/// The present line.
fn line(run: &Run, now: Instant) -> String {
    let snapshot = run.handle.snapshot();
    if let Err(why) = observed::readiness(&snapshot) {
        return match snapshot.stage {
            SupervisorStage::Stopping | SupervisorStage::Draining => "drain\n".into(),
            SupervisorStage::Killing | SupervisorStage::Ended => format!("stopped#{why}\n"),
            _ => format!("down#{why}\n"),
        };
    }
    let serving = count(snapshot.workers.iter().filter(|one| one.state == WorkerState::Serving));
    let settings = run.cluster.settings();
    let load = AgentInputs {
        serving,
        wanted: count(snapshot.slots.iter()),
        in_flight: snapshot.workers.iter().map(|one| one.counts.in_flight()).sum(),
        in_flight_max: settings.scheduling.limits.inflight_max_under(settings.policy),
        cpu: cpu_part(run, &snapshot, serving, now),
        is_new: run.began.elapsed() < READY_FOR,
    };
    in_words(load)
}

fn count<T>(items: impl Iterator<Item = T>) -> u32 {
    u32::try_from(items.count()).unwrap_or(u32::MAX)
}

fn cpu_part(run: &Run, snapshot: &Snapshot, serving: u32, now: Instant) -> f64 {
    let used = snapshot.workers.iter().filter_map(|one| usage_of(one.pid));
    let seconds = used.map(|usage| usage.cpu_seconds).sum();
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let cpus = u32::try_from(cpus).unwrap_or(u32::MAX).min(serving);
    let mut cpu_use = run.cpu_use();
    cpu_use.observe(now, seconds, f64::from(cpus.max(1)));
    cpu_use.part
}

/// Spare capacity of all workers in percent, at least 1: 0 would drain this run.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a percentage"
)]
fn in_words(load: AgentInputs) -> String {
    let AgentInputs { serving, wanted, in_flight, in_flight_max, cpu, is_new } = load;
    let most = in_flight_max.map(|most| u64::from(most) * u64::from(serving));
    let taken = most.map_or(0.0, |most| in_flight as f64 / most.max(1) as f64);
    let there = f64::from(serving) / f64::from(wanted.max(1));
    let left = there.min(1.0) * (1.0 - taken.max(cpu)).clamp(0.0, 1.0);
    let percent = ((100.0 * left).round() as u32).max(1);
    let most = most.map_or_else(String::new, |most| format!(" maxconn:{most}"));
    let ready = if is_new { " ready" } else { "" };
    format!("up {percent}%{most}{ready}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: AgentInputs = AgentInputs {
        serving: 4,
        wanted: 4,
        in_flight: 0,
        in_flight_max: None,
        cpu: 0.0,
        is_new: false,
    };

    #[test]
    fn what_is_left_is_told_in_percent() {
        assert_eq!(in_words(IDLE), "up 100%\n");
        assert_eq!(in_words(AgentInputs { in_flight: 1_000_000, ..IDLE }), "up 100%\n");
        let limited = AgentInputs { in_flight: 27, in_flight_max: Some(25), ..IDLE };
        assert_eq!(in_words(limited), "up 73% maxconn:100\n");
        assert_eq!(in_words(AgentInputs { cpu: 0.5, ..limited }), "up 50% maxconn:100\n");
        assert_eq!(in_words(AgentInputs { serving: 2, cpu: 0.5, ..IDLE }), "up 25%\n");
        assert_eq!(in_words(AgentInputs { in_flight: 1000, ..limited }), "up 1% maxconn:100\n");
        assert_eq!(in_words(AgentInputs { is_new: true, ..IDLE }), "up 100% ready\n");
    }

    #[test]
    fn cpu_use_is_that_of_the_time_between_two_looks() {
        let (mut cpu, begin) = (CpuUse::default(), Instant::now());
        let at = |ms| begin + Duration::from_millis(ms);
        cpu.observe(at(0), 10.0, 2.0);
        assert_eq!(cpu.part, 0.0);
        cpu.observe(at(1000), 11.0, 2.0);
        assert_eq!(cpu.part, 0.5);
        cpu.observe(at(1100), 13.0, 2.0);
        assert_eq!(cpu.part, 0.5, "too soon");
        cpu.observe(at(2000), 3.0, 2.0);
        assert_eq!(cpu.part, 0.0, "a worker has ended");
    }
}
