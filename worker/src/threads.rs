//! How many threads a rank may use, from the processors it is bound to and the ranks it shares them with.
//!
//! Left alone, libtorch takes every core when ranks are not bound, and one thread under mpirun whatever the binding.

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

use crate::comm::{Collectives, CommError};
use crate::host;

/// Threads for this rank: `requested`, or its processors divided by the ranks of this host that share any of them.
///
/// # Errors
/// If the ranks cannot exchange their bindings.
pub fn threads_per_rank(comm: &mut dyn Collectives, requested: Option<usize>) -> Result<usize, CommError> {
    let mine = Binding::of_this_process();
    let all = comm.all_gather("thread binding", mine.encode().as_bytes())?;
    let sharing = all.iter().filter(|other| mine.overlaps(&String::from_utf8_lossy(other))).count();
    Ok(requested.unwrap_or_else(|| (mine.processors.len() / sharing.max(1)).max(1)))
}

/// Sets the sizes of libtorch's and rayon's pools; to be called once, before either is used.
pub fn set_threads(threads: usize) {
    tch::set_num_threads(threads as i32);
    tch::set_num_interop_threads(1);
    // Fails only if the pool exists already, and then it has been sized by an earlier call.
    let _ = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("ilm-compute-{index}"))
        .build_global();
}

/// Processors that this process may run on.
pub fn processors() -> usize {
    Binding::of_this_process().processors.len().max(1)
}

/// The host and the processors that a process may run on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Binding {
    host: String,
    processors: Vec<usize>,
}

impl Binding {
    fn of_this_process() -> Self {
        let host = host::name();
        let processors = match sched_getaffinity(Pid::from_raw(0)) {
            Ok(set) => (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false)).collect(),
            Err(_) => (0..std::thread::available_parallelism().map_or(1, usize::from)).collect(),
        };
        Self { host, processors }
    }

    fn encode(&self) -> String {
        let processors: Vec<String> = self.processors.iter().map(usize::to_string).collect();
        format!("{}\n{}", self.host, processors.join(","))
    }

    fn overlaps(&self, encoded: &str) -> bool {
        let Some((host, processors)) = encoded.split_once('\n') else { return false };
        host == self.host
            && processors
                .split(',')
                .filter_map(|cpu| cpu.parse().ok())
                .any(|cpu| self.processors.contains(&cpu))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::Solo;

    fn binding(host: &str, processors: &[usize]) -> Binding {
        Binding { host: host.into(), processors: processors.to_vec() }
    }

    #[test]
    fn ranks_share_processors_only_on_one_host() {
        let mine = binding("a", &[0, 1]);
        assert!(mine.overlaps(&binding("a", &[1, 2]).encode()));
        assert!(!mine.overlaps(&binding("a", &[2, 3]).encode()));
        assert!(!mine.overlaps(&binding("b", &[0, 1]).encode()));
    }

    #[test]
    fn a_single_rank_takes_what_it_is_bound_to_unless_told() {
        let available = Binding::of_this_process().processors.len();
        assert_eq!(threads_per_rank(&mut Solo, None).unwrap(), available);
        assert_eq!(threads_per_rank(&mut Solo, Some(3)).unwrap(), 3);
    }
}
