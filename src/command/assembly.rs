//! Builds a cluster and its supervisor from the settings.

use clusterlb::protocol::control::Serialization;
use clusterlb::topology::CpuPlan;
use clusterlb::{
    COMPANION_VARIABLE, Cluster, ClusterSettings, InspectPort, Restart, Result, Supervisor,
};

use super::settings::{MessageFormat, RestartChoice, Settings, WorkerEnvironment};

/// Exit codes of the built-in worker that a restart cannot mend: wrong usage, and a machine that
/// lacks something.
const FATAL_CODES: [i32; 2] = [2, 3];

/// The restart rule as the library's type.
pub(super) fn restart_of(choice: RestartChoice) -> Restart {
    match choice {
        RestartChoice::Always => Restart::Always,
        RestartChoice::OnFailure => Restart::OnFailure,
        RestartChoice::Never => Restart::Never,
    }
}

/// A supervisor with these settings.
pub(super) fn supervisor(cluster: Cluster, settings: &Settings, plan: &CpuPlan) -> Supervisor {
    let mut supervisor = Supervisor::new(cluster)
        .plan(plan.clone())
        .restart(restart_of(settings.restart))
        .start_limit(settings.start_limit)
        .settle(settings.settle)
        .grace(settings.grace)
        .drain_delay(settings.drain_delay)
        .hang_kill(settings.hang_kill)
        .fatal_exit_codes(&FATAL_CODES)
        .handle_signals();
    if let Some(program) = &settings.program {
        supervisor = supervisor.ready_after(program.ready_after);
    }
    for address in &settings.listen {
        supervisor = supervisor.hold(address.clone());
    }
    let variables = settings.worker_environment.environment.iter();
    for (name, value) in variables.chain(&settings.own_variables) {
        supervisor = supervisor.variable(name, value);
    }
    if settings.has_companion() {
        supervisor = supervisor.variable(COMPANION_VARIABLE, "1");
    }
    supervisor
}

/// A cluster with these settings, without workers.
pub(super) fn cluster(settings: &Settings) -> Result<Cluster> {
    let cluster = Cluster::with_policy(settings.policy)?;
    cluster.setup_primary(|cluster| {
        cluster.dispatch = settings.dispatch;
        cluster.accept = settings.accept;
        cluster.engine = settings.engine;
        cluster.scheduling = settings.scheduling.clone();
        cluster.backlog = settings.backlog;
        cluster.defer_accept = settings.defers_accept();
        cluster.serialization = match settings.message_format {
            MessageFormat::Json => Serialization::Json,
            MessageFormat::Advanced => Serialization::Advanced,
        };
        set_workers(settings, cluster);
        cluster.allow_listen = settings.allow_listen();
        cluster.proxy_protocol.clone_from(&settings.proxy_protocol);
        cluster.orphan_grace = Some(settings.grace);
        if let Some(program) = &settings.program {
            cluster.dialect = program.dialect;
            cluster.readiness = program.readiness;
            cluster.socket_names.clone_from(&program.socket_names);
            // After the last worker crashes, connections wait for its replacement.
            cluster.hold = true;
        }
    })?;
    Ok(cluster)
}

/// Applies the settings that may differ between a worker and its successor.
pub(super) fn set_workers(settings: &Settings, cluster: &mut ClusterSettings) {
    let WorkerEnvironment { directory, user, group, prefix, removed, descriptor_limit, .. } =
        &settings.worker_environment;
    cluster.descriptor_limit = *descriptor_limit;
    cluster.cwd.clone_from(directory);
    cluster.silent = *prefix;
    (cluster.uid, cluster.gid) = (*user, *group);
    cluster.confine = user.is_some_and(|user| user != 0);
    cluster.environment_removed.clone_from(removed);
    match &settings.program {
        Some(program) => {
            cluster.exec.clone_from(&program.path);
            cluster.exec_argv.clone_from(&program.options);
            cluster.args.clone_from(&program.arguments);
            cluster.preload = settings.preload;
            // In Node the primary takes the first port; here the first worker does.
            let before = program.inspect_port.map(|port| port.saturating_sub(1));
            cluster.inspect_port = before.map(InspectPort::From);
        }
        // The built-in worker parses the same line, but not the environment and the file.
        None => cluster.args = settings.line.arguments(),
    }
}
