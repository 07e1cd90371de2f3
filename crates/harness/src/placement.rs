//! Divides the CPUs between the server and the load generator. Pure.
//!
//! A generator that shares a CPU with the server delays both, so they get separate CPUs if there
//! are enough; otherwise the report says so. Or nothing is pinned from outside, as when a server is
//! tried for the first time: the two kinds of placement give figures that differ by a third.

use serde::Serialize;

use crate::error::{Error, Result};
use crate::sys::cpu::{Cpu, format_cpu_list};

/// From this many CPUs on, reserving some for the generator does not change how a server's workers
/// interact.
const APART_FROM: usize = 4;

/// How strictly to separate server and generator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// For latency and cost: each side gets its own CPUs from two CPUs on.
    Apart,
    /// For spread: workers race only on two or more CPUs, so with few CPUs the server may use all
    /// of them.
    TogetherIfFew,
    /// Nothing is pinned: the kernel places server and generator.
    Shared,
}

/// CPUs of the server and of the generator.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Placement {
    /// The CPUs of the server's processes; none if it is not pinned.
    pub server_cpus: Vec<usize>,
    /// CPUs of the generator, one per thread; none if it is not pinned.
    pub load_cpus: Vec<usize>,
    /// Generator threads.
    pub load_threads: usize,
    /// Caveats for the reader of a report, one sentence each.
    pub notes: Vec<String>,
}

/// The requirements.
#[derive(Clone, Debug)]
pub struct PlacementRequest {
    /// Generator threads.
    pub threads: usize,
    /// Server processes or threads that run at the same time.
    pub processes: usize,
    /// How strictly to separate.
    pub sharing: Sharing,
    /// Requested CPUs for the server.
    pub server: Option<Vec<usize>>,
    /// Requested CPUs for the generator.
    pub load: Option<Vec<usize>>,
}

/// Assigns the CPUs.
///
/// # Errors
/// [`Error::Usage`] for CPUs outside the affinity mask, and for fewer CPUs than generator threads.
pub fn place(cpus: &[Cpu], request: &PlacementRequest) -> Result<Placement> {
    let allowed: Vec<usize> = cpus.iter().map(|cpu| cpu.id).collect();
    for named in [&request.server, &request.load].into_iter().flatten() {
        check(&allowed, named)?;
    }
    let threads = request.threads.max(1);
    if threads > allowed.len() {
        let what = format!("{threads} generator threads for {} CPUs", allowed.len());
        return Err(Error::usage(what, "give --load-threads at most one for each CPU"));
    }
    if request.sharing == Sharing::Shared {
        return shared(request, threads);
    }
    let load = request.load.clone().unwrap_or_else(|| {
        let free =
            allowed.iter().filter(|cpu| !request.server.iter().flatten().any(|own| own == *cpu));
        let free: Vec<usize> = free.copied().collect();
        let from = if free.len() >= threads { free } else { allowed.clone() };
        from[from.len() - threads..].to_vec()
    });
    if load.len() < threads {
        let what = format!("{threads} generator threads on CPUs {}", format_cpu_list(&load));
        return Err(Error::usage(what, "name a CPU for each thread with --load-cpus"));
    }
    let load_cpus = load[..threads].to_vec();
    let server_cpus = request.server.clone().unwrap_or_else(|| {
        let rest: Vec<usize> =
            allowed.iter().filter(|cpu| !load_cpus.contains(cpu)).copied().collect();
        let few = request.sharing == Sharing::TogetherIfFew && allowed.len() < APART_FROM;
        if rest.is_empty() || few { allowed.clone() } else { rest }
    });
    let notes = notes(cpus, &server_cpus, &load_cpus, request.processes);
    Ok(Placement { server_cpus, load_cpus, load_threads: threads, notes })
}

fn shared(request: &PlacementRequest, load_threads: usize) -> Result<Placement> {
    if request.server.is_some() || request.load.is_some() {
        let hint = "leave --server-cpus and --load-cpus out, or say --placement split";
        return Err(Error::usage("CPUs for a placement that pins nothing", hint));
    }
    let note = "Nothing is pinned: server and generator share the CPUs as the kernel decides, so \
                what one takes is missing for the other.";
    Ok(Placement {
        server_cpus: Vec::new(),
        load_cpus: Vec::new(),
        load_threads,
        notes: vec![note.to_owned()],
    })
}

fn check(allowed: &[usize], named: &[usize]) -> Result<()> {
    let unknown: Vec<usize> = named.iter().filter(|cpu| !allowed.contains(cpu)).copied().collect();
    if unknown.is_empty() && !named.is_empty() {
        return Ok(());
    }
    let what = format!("CPUs {} may not be used here", format_cpu_list(&unknown));
    let hint = format!("name some of {}", format_cpu_list(allowed));
    Err(Error::usage(what, hint))
}

fn notes(cpus: &[Cpu], server: &[usize], load: &[usize], processes: usize) -> Vec<String> {
    let mut notes = Vec::new();
    if processes > server.len() {
        let plural = if server.len() == 1 { "" } else { "s" };
        notes.push(format!(
            "Too few CPUs: {processes} processes of the server share {} CPU{plural}, so they take \
             turns. Ratios between targets mean something, absolute figures do not.",
            server.len()
        ));
    }
    let shared: Vec<usize> = load.iter().filter(|cpu| server.contains(cpu)).copied().collect();
    if !shared.is_empty() {
        notes.push(format!(
            "The generator shares CPU {} with the server and delays it.",
            format_cpu_list(&shared)
        ));
    }
    let core_of = |id: &usize| cpus.iter().find(|cpu| cpu.id == *id).map(Cpu::core);
    let twins = load
        .iter()
        .any(|own| server.iter().any(|other| own != other && core_of(own) == core_of(other)));
    if twins {
        notes.push(
            "Generator and server use two threads of one physical core, which slow each other \
             down."
                .into(),
        );
    }
    notes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::ErrorKind;

    fn request(sharing: Sharing) -> PlacementRequest {
        PlacementRequest { threads: 1, processes: 9, sharing, server: None, load: None }
    }

    fn placed(count: usize, request: &PlacementRequest) -> Placement {
        let cpus: Vec<Cpu> = (0..count).map(Cpu::alone).collect();
        place(&cpus, request).expect("there is a way")
    }

    #[test]
    fn generator_and_server_are_kept_apart_where_it_can_be() {
        let two = placed(2, &request(Sharing::Apart));
        assert_eq!((two.server_cpus, two.load_cpus), (vec![0], vec![1]));
        assert!(two.notes[0].contains("9 processes of the server share 1 CPU,"));
        let one = placed(1, &request(Sharing::Apart));
        assert_eq!((one.server_cpus, one.load_cpus), (vec![0], vec![0]));
        assert!(one.notes[1].contains("shares CPU 0"));
        let race = placed(2, &request(Sharing::TogetherIfFew));
        assert_eq!((race.server_cpus, race.load_cpus), (vec![0, 1], vec![1]));
        let many = placed(16, &request(Sharing::TogetherIfFew));
        assert_eq!((many.server_cpus.len(), many.load_cpus), (15, vec![15]));
        assert_eq!(many.notes, Vec::<String>::new());
    }

    #[test]
    fn a_shared_placement_pins_nothing_and_says_so() {
        let shared = PlacementRequest { threads: 2, ..request(Sharing::Shared) };
        let placement = placed(2, &shared);
        assert_eq!((placement.server_cpus, placement.load_cpus), (vec![], vec![]));
        assert_eq!((placement.load_threads, placement.notes.len()), (2, 1));
        let cpus: Vec<Cpu> = (0..2).map(Cpu::alone).collect();
        let named = PlacementRequest { server: Some(vec![0]), ..shared };
        assert_eq!(place(&cpus, &named).expect_err("impossible").kind(), ErrorKind::Usage);
    }

    #[test]
    fn threads_of_one_core_are_told() {
        let twin = |id| Cpu { siblings: vec![0, 1], ..Cpu::alone(id) };
        let placement =
            place(&[twin(0), twin(1)], &request(Sharing::Apart)).expect("there is a way");
        assert!(placement.notes[1].contains("one physical core"));
    }

    #[test]
    fn named_cpus_are_taken_and_checked() {
        let named =
            PlacementRequest { server: Some(vec![3]), threads: 2, ..request(Sharing::Apart) };
        let placement = placed(4, &named);
        assert_eq!((placement.server_cpus, placement.load_cpus), (vec![3], vec![1, 2]));
        for wrong in [
            PlacementRequest { server: Some(vec![7]), ..request(Sharing::Apart) },
            PlacementRequest { load: Some(vec![]), ..request(Sharing::Apart) },
            PlacementRequest { load: Some(vec![1]), threads: 2, ..request(Sharing::Apart) },
            PlacementRequest { threads: 5, ..request(Sharing::Apart) },
        ] {
            let cpus: Vec<Cpu> = (0..4).map(Cpu::alone).collect();
            assert_eq!(place(&cpus, &wrong).expect_err("impossible").kind(), ErrorKind::Usage);
        }
    }

    proptest! {
        #[test]
        fn processes_get_a_cpu(count in 1_usize..64, threads in 1_usize..8, few in any::<bool>()) {
            prop_assume!(threads <= count);
            let sharing = if few { Sharing::TogetherIfFew } else { Sharing::Apart };
            let placement = placed(count, &PlacementRequest { threads, ..request(sharing) });
            prop_assert_eq!(placement.load_cpus.len(), threads);
            prop_assert!(!placement.server_cpus.is_empty());
            let shared = placement.load_cpus.iter().any(|cpu| placement.server_cpus.contains(cpu));
            prop_assert!(!shared || count == threads || few && count < APART_FROM);
        }
    }
}
