//! A training run on text whose disk can be made to hang or to be slow.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;
use test_support::{data_dir, stand_in::build_slow_disk};

use crate::program::{ranks, run, worker};

/// The rank whose reads hang.
pub const HANGING_RANK: &str = "1";

/// The run, its data, and the library before its programs.
pub struct SlowDisk {
    folder: TempDir,
    library: PathBuf,
}

impl SlowDisk {
    /// Writes the data: token ids in row groups so small that reading never ends.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let library = build_slow_disk(folder.path());
        let disk = Self { folder, library };
        let mut prepare = worker();
        prepare.args(["prepare", "--experiment", "lm1b_ilm", "--split", "train", "--row-group-rows", "4"]);
        prepare.arg(format!("data.train={}", data_dir().join("lm1b-mini/train-*.parquet").display()));
        prepare.args([disk.tokenizer()]).arg("--output").arg(disk.path("tokens"));
        run(&mut prepare).expect(0);
        disk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn tokenizer(&self) -> String {
        format!("data.tokenizer={}", data_dir().join("tokenizers/bert-base-uncased/tokenizer.json").display())
    }

    pub fn run_dir(&self) -> PathBuf {
        self.path("run")
    }

    /// A training run that reads ahead as little as possible.
    pub fn training(&self, world_size: usize) -> Command {
        let mut command = ranks(world_size);
        command.args(["--experiment", "lm1b_ilm", "model=rotary_tiny", "trainer.threads=1", "block_size=32"]);
        command.args(["per_device_batch_size=4", "global_batch_size=8"]);
        command.args(["data.canonical_lanes=2", "data.window_groups=1", "data.threads=1"]);
        command.args(["data.prefetch_steps=1", "data.read_ahead_steps=0", "trainer.log_every_n_steps=1"]);
        command.arg(format!("data.train={}", self.path("tokens/train-*.parquet").display()));
        command.arg(self.tokenizer()).arg("--run-dir").arg(self.run_dir());
        command.env("LD_PRELOAD", &self.library).env("ILM_HANG_RANK", HANGING_RANK);
        command.env("ILM_HANG_READS", self.path("hang")).env("ILM_SLOW_SYNCS", self.path("slow"));
        command.env("ILM_SYNC_MS", "1500");
        command
    }

    /// From now on reads of the data hang, until the object is dropped.
    pub fn hang_reads(&self) {
        fs::write(self.path("hang"), "").expect("a writable folder");
    }

    /// From now on reads go on.
    pub fn resume_reads(&self) {
        fs::remove_file(self.path("hang")).expect("reads hang");
    }

    /// From now on every sync takes a second and a half.
    pub fn slow_syncs(&self) {
        fs::write(self.path("slow"), "").expect("a writable folder");
    }
}
