//! The settings of a cluster: `configs/cluster/NAME.toml`, changed by `--set key=value`.

use crate::error::{Error, Result};
use rust_embed::RustEmbed;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;
use toml::{Table, Value};

/// Names less alike than this are not meant by each other.
const LEAST_SIMILARITY: f64 = 0.5;

/// Seconds between start and warning that a job must have at least; Slurm may warn a minute early.
const LEAST_WORK: u64 = 60;

/// The folder `configs/cluster` as it was when the program was built.
#[derive(RustEmbed)]
#[folder = "../configs/cluster"]
struct Shipped;

/// What starts the ranks in a batch script.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Launcher {
    /// srun, where Slurm has the plug-in for the MPI library.
    Srun,
    /// mpirun inside the allocation.
    Mpirun,
}

/// How jobs are asked for and started on a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cluster {
    /// What it is, for people.
    pub description: String,
    /// Nodes of a job.
    pub nodes: u32,
    /// Ranks on each node.
    pub ranks_per_node: u32,
    /// GPUs on each node, one for each rank; 0 asks for none.
    pub gpus_per_node: u32,
    /// CPUs of each rank.
    pub cpus_per_task: u32,
    /// Time limit in Slurm's forms, "D-HH:MM:SS" or minutes; more than a minute above `signal_lead_secs`.
    pub time: String,
    /// Partition; empty for the site's default.
    pub partition: String,
    /// Account; empty for the user's default.
    pub account: String,
    /// The signal that Slurm warns with: USR1, USR2, HUP or INT.
    pub signal: String,
    /// Seconds before the time limit at which it comes; Slurm may be a minute early.
    pub signal_lead_secs: u32,
    /// Whether a job that saved and stopped, or lost a node, is queued again.
    pub requeue: bool,
    /// What starts the ranks.
    pub launcher: Launcher,
    /// srun's `--mpi`.
    pub mpi: String,
    /// Shell words before the worker, such as `apptainer exec --nv ilm.sif`; empty for none.
    pub container: String,
    /// Shell lines before the ranks are started, such as `module load openmpi`.
    pub setup: Vec<String>,
    /// More options of sbatch.
    pub sbatch: Vec<String>,
    /// File of the job's output in Slurm's pattern.
    pub log: String,
    /// Restarts within the allocation without a new checkpoint between them.
    pub max_restarts: u32,
    /// Seconds before the first of them; each further one doubles it, up to 300.
    pub restart_delay_secs: u32,
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            description: String::new(),
            nodes: 1,
            ranks_per_node: 1,
            gpus_per_node: 0,
            cpus_per_task: 1,
            time: "24:00:00".into(),
            partition: String::new(),
            account: String::new(),
            signal: "USR1".into(),
            signal_lead_secs: 300,
            requeue: true,
            launcher: Launcher::Srun,
            mpi: "pmix".into(),
            container: String::new(),
            setup: Vec::new(),
            sbatch: Vec::new(),
            log: "slurm-%j.out".into(),
            max_restarts: 3,
            restart_delay_secs: 10,
        }
    }
}

impl Cluster {
    /// Reads the settings `name` from `config_dir/cluster`, otherwise the shipped ones, and changes them.
    ///
    /// # Errors
    /// No such file, no such key, or a value that does not fit.
    pub fn load(name: &str, config_dir: Option<&Path>, changes: &[String]) -> Result<Self> {
        let (origin, mut table) = read(name, config_dir)?;
        let known = Table::try_from(Self::default()).map_err(|error| wrong(&origin, &error))?;
        for key in table.keys() {
            check_known(key, &known, &origin)?;
        }
        for change in changes {
            let (key, value) =
                change.split_once('=').ok_or_else(|| Error::NotASetting { text: change.clone() })?;
            check_known(key, &known, "--set")?;
            table.insert(key.to_owned(), value_like(&known[key], value));
            // Checked one by one, so that the one to blame is named.
            table.clone().try_into::<Self>().map_err(|error| wrong(&format!("--set {change}"), &error))?;
        }
        let cluster: Self = table.try_into().map_err(|error| wrong(&origin, &error))?;
        cluster.check()?;
        Ok(cluster)
    }

    /// Ranks of a job.
    pub fn ranks(&self) -> u32 {
        self.nodes.saturating_mul(self.ranks_per_node)
    }

    fn check(&self) -> Result<()> {
        let fail = |reason: String| Err(Error::BadCluster { reason });
        for (key, value) in [
            ("nodes", self.nodes),
            ("ranks_per_node", self.ranks_per_node),
            ("cpus_per_task", self.cpus_per_task),
        ] {
            if value == 0 {
                return fail(format!("{key} = 0 starts nothing; set it to 1 or more"));
            }
        }
        if self.gpus_per_node > 0 && self.gpus_per_node != self.ranks_per_node {
            return fail(format!(
                "gpus_per_node = {} and ranks_per_node = {} differ, but each rank drives one GPU; make them equal",
                self.gpus_per_node, self.ranks_per_node
            ));
        }
        if !["USR1", "USR2", "HUP", "INT"].contains(&self.signal.as_str()) {
            return fail(format!("signal = \"{}\" is none of USR1, USR2, HUP and INT", self.signal));
        }
        for (key, value) in [("time", &self.time), ("mpi", &self.mpi), ("log", &self.log)] {
            if value.is_empty() || value.contains(char::is_whitespace) {
                return fail(format!("{key} = \"{value}\" is not one word"));
            }
        }
        let lead = u64::from(self.signal_lead_secs);
        if seconds(&self.time).is_some_and(|time| time <= lead + LEAST_WORK) {
            return fail(format!(
                "time = \"{}\" leaves less than a minute of work before signal_lead_secs = {lead}, so the job would be queued \
                 again for ever; give it more time or a shorter lead",
                self.time
            ));
        }
        for (key, value) in [("partition", &self.partition), ("account", &self.account)] {
            if value.contains(char::is_whitespace) {
                return fail(format!("{key} = \"{value}\" is not one word"));
            }
        }
        match self.sbatch.iter().chain([&self.container]).find(|line| line.contains(['\n', '\r'])) {
            Some(line) => fail(format!("{line:?} in sbatch or container is more than one line")),
            None => Ok(()),
        }
    }
}

/// Seconds of a time limit: MIN, MIN:SEC, HOURS:MIN:SEC, DAYS-HOURS, DAYS-HOURS:MIN or DAYS-HOURS:MIN:SEC. `None` of what is
/// something else, or no limit: 0 and words.
fn seconds(time: &str) -> Option<u64> {
    let (days, rest) = match time.split_once('-') {
        Some((days, rest)) => (Some(days.parse::<u64>().ok()?), rest),
        None => (None, time),
    };
    let parts = rest.split(':').map(|part| part.parse().ok()).collect::<Option<Vec<u64>>>()?;
    let (hours, minutes, seconds) = match (days, &parts[..]) {
        (Some(_), &[hours]) => (hours, 0, 0),
        (Some(_), &[hours, minutes]) => (hours, minutes, 0),
        (None, &[minutes]) => (0, minutes, 0),
        (None, &[minutes, seconds]) => (0, minutes, seconds),
        (_, &[hours, minutes, seconds]) => (hours, minutes, seconds),
        _ => return None,
    };
    let units = [(days.unwrap_or(0), 86_400), (hours, 3600), (minutes, 60), (seconds, 1)];
    let sum = units.iter().try_fold(0_u64, |sum, (count, unit)| sum.checked_add(count.checked_mul(*unit)?));
    sum.filter(|&sum| sum > 0)
}

/// The file of these settings and what it holds.
fn read(name: &str, config_dir: Option<&Path>) -> Result<(String, Table)> {
    let own = config_dir.map(|dir| dir.join("cluster").join(format!("{name}.toml")));
    let (origin, text) = if let Some(path) = own.filter(|path| path.exists()) {
        let text = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
        (path.display().to_string(), text)
    } else if let Some(file) = Shipped::get(&format!("{name}.toml")) {
        (format!("configs/cluster/{name}.toml"), String::from_utf8_lossy(&file.data).into_owned())
    } else {
        let shipped = Shipped::iter().map(|file| file.trim_end_matches(".toml").to_owned());
        let mut names: Vec<String> = shipped.chain(config_dir.map(own_names).unwrap_or_default()).collect();
        names.sort();
        names.dedup();
        return Err(Error::NoCluster { name: name.to_owned(), known: names.join(", ") });
    };
    let table = text.parse().map_err(|error| wrong(&origin, &error))?;
    Ok((origin, table))
}

fn own_names(config_dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(config_dir.join("cluster")).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".toml")?.to_owned())).collect()
}

fn check_known(key: &str, known: &Table, origin: &str) -> Result<()> {
    if known.contains_key(key) {
        return Ok(());
    }
    let similarity = |name: &&String| (strsim::normalized_damerau_levenshtein(key, name), (*name).clone());
    let nearest = known.keys().map(|name| similarity(&name)).max_by(|a, b| a.0.total_cmp(&b.0));
    let hint = match nearest.filter(|(score, _)| *score >= LEAST_SIMILARITY) {
        Some((_, name)) => format!("did you mean '{name}'?"),
        None => format!("there are {}", known.keys().cloned().collect::<Vec<_>>().join(", ")),
    };
    Err(Error::NoSuchKey { key: key.to_owned(), origin: origin.to_owned(), hint })
}

/// A value from the command line: text where the key holds text, otherwise as TOML has it.
fn value_like(default: &Value, text: &str) -> Value {
    let as_text = || Value::String(text.to_owned());
    if default.is_str() { as_text() } else { text.parse().unwrap_or_else(|_| as_text()) }
}

/// TOML's own message in one line, without the excerpt that it draws.
fn wrong(origin: &str, error: &dyn std::fmt::Display) -> Error {
    let text = error.to_string();
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.contains('|'));
    let message = lines.collect::<Vec<_>>().join(", ");
    Error::BadCluster { reason: format!("{origin}: {message}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(changes: &[&str]) -> Result<Cluster> {
        let changes: Vec<String> = changes.iter().map(|change| (*change).to_owned()).collect();
        Cluster::load("generic", None, &changes)
    }

    #[test]
    fn changes_have_the_type_of_their_key() {
        let cluster =
            load(&["nodes=3", "time=30", "requeue=false", "launcher=mpirun", r#"setup=["a", "b"]"#]).unwrap();
        assert_eq!((cluster.nodes, cluster.time.as_str(), cluster.requeue), (3, "30", false));
        assert_eq!((cluster.launcher, cluster.setup.len(), cluster.ranks()), (Launcher::Mpirun, 2, 24));
        assert_eq!(cluster.sbatch, ["--exclusive", "--mem=0"]);
    }

    #[test]
    fn mistakes_name_key_place_and_cure() {
        let message = |changes: &[&str]| load(changes).unwrap_err().to_string();
        assert_eq!(message(&["node=3"]), "--set has no key 'node'; did you mean 'nodes'?");
        assert!(message(&["xyzzy=3"]).starts_with("--set has no key 'xyzzy'; there are account, "));
        assert_eq!(message(&["nodes"]), "--set nodes is not of the form key=value");
        assert!(
            message(&["nodes=many"]).starts_with("cluster settings: --set nodes=many: invalid type: string")
        );
        assert!(message(&["launcher=ssh"]).contains("unknown variant `ssh`, expected `srun` or `mpirun`"));
        assert!(message(&["nodes=0"]).contains("nodes = 0 starts nothing"));
        assert!(message(&["ranks_per_node=4"]).contains("gpus_per_node = 8 and ranks_per_node = 4 differ"));
        assert!(message(&["signal=KILL"]).contains("none of USR1"));
        assert!(message(&["time="]).contains("time = \"\" is not one word"));
        assert!(message(&["partition=a b"]).contains("partition"));
        assert!(message(&["sbatch=[\"a\\nb\"]"]).contains("more than one line"));
    }

    #[test]
    fn times_are_read_in_all_of_slurms_forms() {
        let forms = ["90", "2:30", "1:00:05", "2-3", "2-3:10", "2-3:10:07", "24:00:00"];
        let read = forms.map(|form| seconds(form).unwrap());
        assert_eq!(read, [5400, 150, 3605, 183_600, 184_200, 184_207, 86_400]);
        for other in
            ["UNLIMITED", "INFINITE", "0", "1:2:3:4", "2-", "-3", "", "99999999999999999999", "1-2:3:4:5"]
        {
            assert_eq!(seconds(other), None, "{other}");
        }
    }

    #[test]
    fn a_job_that_would_be_warned_as_it_starts_is_refused() {
        for time in ["5", "6", "5:00", "0-0:6", "0:06:00"] {
            let message = load(&[&format!("time={time}")]).unwrap_err().to_string();
            let expected = format!(
                "cluster settings: time = \"{time}\" leaves less than a minute of work before signal_lead_secs = 300"
            );
            assert!(message.starts_with(&expected), "{message}");
        }
        for changes in
            [&["time=6:01"][..], &["time=UNLIMITED"], &["time=2", "signal_lead_secs=30"], &["time=0-1"]]
        {
            assert!(load(changes).is_ok(), "{changes:?}");
        }
    }

    #[test]
    fn a_file_of_ones_own_wins_and_a_missing_one_lists_those_there_are() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("cluster")).unwrap();
        let put = |name: &str, text: &str| fs::write(folder.path().join("cluster").join(name), text).unwrap();
        put("generic.toml", "nodes = 7");
        put("ours.toml", "nods = 7");
        put("broken.toml", "nodes = 7\ntime = \n");
        let load = |name| Cluster::load(name, Some(folder.path()), &[]);
        assert_eq!(load("generic").unwrap().nodes, 7);
        let message = load("ours").unwrap_err().to_string();
        assert!(message.ends_with("ours.toml has no key 'nods'; did you mean 'nodes'?"), "{message}");
        let message = load("broken").unwrap_err().to_string();
        assert!(message.contains("broken.toml: TOML parse error at line 2, column 8, "), "{message}");
        assert_eq!(
            load("theirs").unwrap_err().to_string(),
            "there is no cluster 'theirs'; there are broken, generic, one_machine, ours"
        );
    }
}
