//! `/config`: the settings of a run, without secrets.

use std::time::Duration;

use clusterlb::EngineDecision;
use clusterlb::topology::CpuPlan;
use serde_json::{Value, json};

use crate::command::settings::{Program, Settings};

/// The settings, without the rules that [`policy`](super::policy) shows, which can change. Of the
/// workers' variables it shows only the names: values may be secrets.
pub(in crate::command) fn config(
    settings: &Settings,
    plan: &CpuPlan,
    engine: &EngineDecision,
) -> Value {
    let listen: Vec<String> = settings.listen.iter().map(ToString::to_string).collect();
    let proxied: Vec<String> = settings.proxy_protocol.iter().map(ToString::to_string).collect();
    let admin: Vec<String> = settings.admin.iter().map(ToString::to_string).collect();
    let environment = settings.worker_environment.environment.iter();
    let environment: Vec<String> =
        environment.map(|(name, _)| name.to_string_lossy().into_owned()).collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "engine": engine.kind.name(),
        "workers": plan.workers.len(),
        "cpus": { "primary": plan.primary, "workers": plan.workers, "reason": plan.reason },
        "listen": listen,
        "dispatch": settings.dispatch,
        "accept": settings.accept,
        "backlog": settings.backlog,
        "defer_accept": settings.defers_accept(),
        "proxy_protocol": proxied,
        "hang_kill_ms": settings.hang_kill.map(milliseconds),
        "restart": settings.restart,
        "start_limit_ms": milliseconds(settings.start_limit),
        "settle_ms": milliseconds(settings.settle),
        "grace_ms": milliseconds(settings.grace),
        "drain_delay_ms": milliseconds(settings.drain_delay),
        "admin": admin,
        "admin_allow_actions": settings.admin_allows_actions,
        "environment": environment,
        "program": settings.program.as_ref().map(program),
    })
}

fn program(program: &Program) -> Value {
    json!({
        "path": program.path.to_string_lossy(),
        "dialect": format!("{:?}", program.dialect).to_lowercase(),
    })
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
