//! What the environment says about the ranks before any of them has spoken to another.

/// Rank and world size as the launcher (mpirun, srun) announces them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchEnv {
    /// This process.
    pub rank: usize,
    /// Processes of the run.
    pub world_size: usize,
    /// The variable that gave the world size.
    pub source: &'static str,
}

/// (world size, rank) by launcher, the most specific first: mpirun inside a Slurm allocation sets its own beside Slurm's.
/// `SLURM_STEP_NUM_TASKS` is set by srun only, not in a batch script, where one process started plainly is one rank.
const VARIABLES: [(&str, &str); 3] = [
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("PMI_SIZE", "PMI_RANK"),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
];

impl LaunchEnv {
    /// Reads the process's environment; none if it was started plainly.
    pub fn detect() -> Option<Self> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    fn from_variables(get: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let number = |name: &str| get(name)?.trim().parse::<usize>().ok();
        VARIABLES.iter().find_map(|&(size, rank)| {
            let (world_size, rank) = (number(size)?, number(rank)?);
            (rank < world_size).then_some(Self { rank, world_size, source: size })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detect(variables: &[(&str, &str)]) -> Option<LaunchEnv> {
        LaunchEnv::from_variables(|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string())
        })
    }

    #[test]
    fn mpirun_inside_slurm_wins_over_slurm() {
        let found = detect(&[
            ("SLURM_STEP_NUM_TASKS", "2"),
            ("SLURM_PROCID", "1"),
            ("OMPI_COMM_WORLD_SIZE", "8"),
            ("OMPI_COMM_WORLD_RANK", "5"),
        ]);
        assert_eq!(found, Some(LaunchEnv { rank: 5, world_size: 8, source: "OMPI_COMM_WORLD_SIZE" }));
    }

    #[test]
    fn a_batch_script_is_not_a_rank() {
        assert_eq!(detect(&[("SLURM_NTASKS", "8"), ("SLURM_PROCID", "0")]), None);
        assert_eq!(detect(&[]), None);
    }

    #[test]
    fn nonsense_is_ignored() {
        assert_eq!(detect(&[("PMI_SIZE", "two"), ("PMI_RANK", "0")]), None);
        assert_eq!(detect(&[("PMI_SIZE", "2"), ("PMI_RANK", "2")]), None);
    }
}
