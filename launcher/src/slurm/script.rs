//! The batch script: a template, filled with the settings of a cluster and the arguments of the worker.

use super::cluster::Cluster;
use crate::error::{Error, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, UndefinedBehavior, context};

const TEMPLATE: &str = include_str!("../../templates/batch.sh.j2");

/// What a script is for.
pub struct Script<'a> {
    /// The job's name.
    pub name: &'a str,
    /// The command that makes the script again.
    pub made_by: &'a str,
    /// The worker's arguments of each job; more than one make an array.
    pub jobs: &'a [Vec<String>],
    /// The job after whose end this one may start.
    pub after: Option<&'a str>,
}

impl Script<'_> {
    /// The script's text.
    ///
    /// # Errors
    /// A word cannot be written in a script.
    pub fn render(&self, cluster: &Cluster) -> Result<String> {
        for word in [Some(self.name), self.after].into_iter().flatten() {
            // These stand where no shell takes quotes away.
            if word.is_empty() || !word.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:,".contains(c)) {
                return Err(Error::NotAWord { word: word.to_owned() });
            }
        }
        let jobs = self.jobs.iter().map(|job| quote(job)).collect::<Result<Vec<String>>>()?;
        let mut environment = Environment::new();
        let mut syntax = SyntaxConfig::builder();
        syntax.trim_blocks(true).lstrip_blocks(true).keep_trailing_newline(true);
        environment.set_syntax(syntax.build().map_err(template_error)?);
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        let filled = environment.render_str(
            TEMPLATE,
            context! {
                c => Serde(cluster),
                ranks => cluster.ranks(),
                name => self.name,
                made_by => self.made_by,
                jobs => jobs,
                after => self.after,
            },
        );
        filled.map_err(template_error)
    }
}

fn template_error(error: minijinja::Error) -> Error {
    Error::Template { reason: error.to_string() }
}

/// Words as a shell reads them.
///
/// # Errors
/// A word holds a zero byte, or a line feed, which a comment cannot hold.
pub fn quote(words: &[String]) -> Result<String> {
    match words.iter().find(|word| word.contains(['\0', '\n', '\r'])) {
        Some(word) => Err(Error::NotAWord { word: word.clone() }),
        None => shlex::try_join(words.iter().map(String::as_str))
            .map_err(|error| Error::Template { reason: error.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(cluster: &Cluster, jobs: &[&[&str]], after: Option<&str>) -> String {
        let jobs: Vec<Vec<String>> =
            jobs.iter().map(|job| job.iter().map(|word| (*word).to_owned()).collect()).collect();
        Script { name: "run", made_by: "a test", jobs: &jobs, after }.render(cluster).unwrap()
    }

    #[test]
    fn only_what_is_set_is_asked_for() {
        let mut cluster = Cluster::default();
        let plain = render(&cluster, &[&["--run-dir", "a b", "x=$HOME"]], None);
        assert!(plain.contains("\nset -- --run-dir 'a b' 'x=$HOME'\n"), "{plain}");
        for option in [
            "--partition",
            "--account",
            "--gpus-per-node",
            "--array",
            "--dependency",
            "container",
            "set +u",
            "GPUs",
        ] {
            assert!(!plain.contains(option), "{option}");
        }
        cluster.partition = "big".into();
        cluster.account = "ours".into();
        (cluster.gpus_per_node, cluster.ranks_per_node) = (4, 4);
        cluster.requeue = false;
        cluster.setup = ["module load openmpi", "module load cuda"].map(Into::into).into();
        cluster.container = "apptainer exec \"$IMAGE\"".into();
        let full = render(&cluster, &[&["a"], &["b"]], Some("17"));
        for line in [
            "#SBATCH --partition=big",
            "#SBATCH --account=ours",
            "#SBATCH --gpus-per-node=4",
            "#SBATCH --array=0-1",
            "#SBATCH --dependency=afterany:17",
            "#SBATCH --no-requeue",
            "may_requeue=false",
            "((${SLURM_GPUS_ON_NODE:-0} >= 4)) || differ \"GPUs per node\" 4 \"${SLURM_GPUS_ON_NODE:-}\"",
            "[[ \" $(srun --mpi=list 2>&1) \" =~ [[:space:],]pmix[[:space:],] ]] ||",
            "    1) set -- b ;;",
            "job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID",
            "container=(apptainer exec \"$IMAGE\")",
            "    --worker \"$(command -v \"${container[0]}\")\" -- \"${container[@]:1}\" ilm-worker \"$@\" &",
            "ilm-launch run -n 4 --srun pmix --max-restarts 3 --restart-delay 10 \\",
        ] {
            assert!(full.lines().any(|found| found == line), "{line} is missing in {full}");
        }
        assert!(full.contains("\nset +u\nmodule load openmpi\nmodule load cuda\nset -u\n"), "{full}");
    }

    #[test]
    fn what_a_directive_cannot_hold_is_refused() {
        let script = |name, after, word: &str| {
            let jobs = [vec![word.to_owned()]];
            Script { name, made_by: "", jobs: &jobs, after }.render(&Cluster::default())
        };
        assert!(script("a b", None, "x").is_err());
        assert!(script("", None, "x").is_err());
        assert!(script("a", Some("1\nrm"), "x").is_err());
        assert!(script("a", None, "x\ny").is_err());
        assert!(script("a", Some("1_2"), "x y").is_ok());
    }
}
