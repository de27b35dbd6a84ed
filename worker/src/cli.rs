//! The command line of `ilm-worker`.

mod bench;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

pub use self::bench::{BenchArgs, BenchGroupArg, PrecisionArg};

use crate::scale::ASSUMED_MEDIAN;

/// GPUs that a plan can be asked for; with far more its sums would overflow.
const MOST_GPUS: u64 = 1_000_000;

/// Trains and evaluates insertion language models.
#[derive(Debug, Parser)]
#[command(name = "ilm-worker", version, about, after_help = AFTER_HELP)]
pub struct Cli {
    /// What to do; `train` if left out.
    #[command(subcommand)]
    pub command: Command,
}

const AFTER_HELP: &str = "\
Examples:
  ilm-worker --experiment star_easy_ilm model=rotary_mini trainer.max_steps=2000
  mpirun -n 8 ilm-worker --experiment owt_ilm data.train=DIR data.tokenizer=tokenizer.json
  ilm-worker evaluate --run-dir runs/star_easy_ilm
  ilm-worker generate --run-dir runs/lm1b_ilm --infill texts.txt

Exit codes: 0 done, 2 usage or configuration, 3 data, 4 checkpoint or run directory, 5 communication,
6 loss not finite, 7 not what the run recorded, 75 stopped by a signal after saving (start again to go on), 101 a bug.";

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Trains an experiment; a run directory that holds checkpoints is resumed.
    Train(TrainArgs),
    /// Measures a checkpoint: losses, and exact match where the task has answers.
    Evaluate(EvaluateArgs),
    /// Generates texts with a checkpoint: out of nothing, behind prompts, or in the gaps of given texts.
    Generate(GenerateArgs),
    /// Has generated texts judged by another language model: generative perplexity.
    Judge(JudgeArgs),
    /// Makes a run directory of weights in the reference's form, to generate with or to train on.
    Import(ImportArgs),
    /// Writes the weights of a checkpoint in the reference's form.
    Export(ExportArgs),
    /// Lists, verifies or removes the checkpoints of a run.
    #[command(subcommand)]
    Checkpoints(CheckpointsCommand),
    /// Lists the experiments.
    Experiments(ConfigDirArgs),
    /// Prints every resolved value of an experiment with its origin.
    Config(ExperimentArgs),
    /// Predicts time, memory and communication of a run on many GPUs, and what limits it.
    Plan(PlanArgs),
    /// Writes the data of an experiment as Parquet files of token ids: texts tokenised, graphs generated.
    Prepare(PrepareArgs),
    /// Trains a tokenizer on the texts of data.train.
    TrainTokenizer(TrainTokenizerArgs),
    /// Trains some steps again from a checkpoint, writes nothing, and says whether they are those that the run recorded.
    VerifyResume(VerifyResumeArgs),
    /// Shows the batch of a step as a person would read it; nothing is trained.
    Replay(ReplayArgs),
    /// Measures training and its parts on this machine's processors, whether or not it has GPUs (scripts/gpu-acceptance.sh measures
    /// those); prints JSON, a figure a line.
    Bench(BenchArgs),
}

/// Where group files are looked for.
#[derive(Debug, Args)]
pub struct ConfigDirArgs {
    /// A folder of own group files (`experiment/`, `model/`, `data/`), which win over the built-in ones.
    #[arg(long, value_name = "DIR")]
    pub config_dir: Option<PathBuf>,
}

/// An experiment and changes to it.
#[derive(Debug, Args)]
pub struct ExperimentArgs {
    /// Name of the experiment (see `ilm-worker experiments`).
    #[arg(long, value_name = "NAME")]
    pub experiment: String,
    /// Own group files.
    #[command(flatten)]
    pub config_dir: ConfigDirArgs,
    /// Changes: `key.path=value`, or `model=NAME` and `data=NAME` to choose another group file.
    #[arg(value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
}

/// `ilm-worker plan`.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// What would be trained.
    #[command(flatten)]
    pub experiment: ExperimentArgs,
    /// Numbers of GPUs.
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "8,64,512",
        value_parser = clap::value_parser!(u64).range(1..=MOST_GPUS))]
    pub gpus: Vec<u64>,
    /// What runs it: a file of the group `hardware`, or a path that ends in .toml.
    #[arg(long, value_name = "NAME|FILE", default_value = "h100")]
    pub hardware: String,
    /// Median tokens of a text, where the experiment names no data.
    #[arg(long, value_name = "N", default_value_t = ASSUMED_MEDIAN)]
    pub median_tokens: u32,
    /// Tokens of the vocabulary, where the experiment names no tokenizer; GPT-2's with special tokens by default.
    #[arg(long, value_name = "N", default_value_t = 50_263)]
    pub vocab_size: u32,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `ilm-worker train`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// What to train.
    #[command(flatten)]
    pub experiment: ExperimentArgs,
    /// Folder of the run [default: runs/EXPERIMENT].
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Weights that a new run starts with: a run directory or checkpoint of ours (its averaged weights, if it has any), or
    /// weights in the reference's form. A run that has checkpoints goes on from those.
    #[arg(long, value_name = "PATH")]
    pub init_from: Option<PathBuf>,
    /// Start anew; what the folder holds is moved to `previous-N` inside it.
    #[arg(long)]
    pub fresh: bool,
    /// Check the configuration, open the data, build the model, print what would run, and end.
    #[arg(long)]
    pub dry_run: bool,
}

/// A checkpoint of a run.
#[derive(Debug, Args)]
pub struct CheckpointArgs {
    /// Folder of the run; its configuration is taken from there.
    #[arg(long, value_name = "DIR", required_unless_present_any = ["experiment", "checkpoint"])]
    pub run_dir: Option<PathBuf>,
    /// Name of the experiment, for the default run directory runs/EXPERIMENT.
    #[arg(long, value_name = "NAME")]
    pub experiment: Option<String>,
    /// Step of the checkpoint [default: the newest valid one].
    #[arg(long, value_name = "N")]
    pub step: Option<u64>,
    /// Folder of one checkpoint, RUN/checkpoints/step-N, instead of --run-dir and --step.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["run_dir", "experiment", "step"])]
    pub checkpoint: Option<PathBuf>,
    /// Use the moving average of the weights, and fail if the checkpoint has none [default: the average if there is one].
    #[arg(long, conflicts_with = "raw_weights")]
    pub ema: bool,
    /// Use the weights as trained.
    #[arg(long)]
    pub raw_weights: bool,
    /// Changes to the run's configuration: `key.path=value`.
    #[arg(value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
}

/// `ilm-worker checkpoints`.
#[derive(Debug, Subcommand)]
pub enum CheckpointsCommand {
    /// Prints step, size, ranks, age, figures and state of every checkpoint; only file sizes are checked.
    List(RunDirArgs),
    /// As `list`, but reads every byte; ends with exit code 4 if a checkpoint is damaged, or if there is none.
    Verify(RunDirArgs),
    /// Removes what the run's settings do not keep, as every save does. The run may not be going on.
    Prune(PruneArgs),
}

/// A run.
#[derive(Debug, Args)]
pub struct RunDirArgs {
    /// Folder of the run.
    #[arg(long, value_name = "DIR")]
    pub run_dir: PathBuf,
}

/// `ilm-worker checkpoints prune`.
#[derive(Debug, Args)]
pub struct PruneArgs {
    /// Whose checkpoints; what is kept is taken from its configuration.
    #[command(flatten)]
    pub run_dir: RunDirArgs,
    /// Say what would be removed, and remove nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Changes to the run's configuration, such as `checkpoint.keep_last=5`.
    #[arg(value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
}

/// `ilm-worker evaluate`.
#[derive(Debug, Args)]
pub struct EvaluateArgs {
    /// What to measure.
    #[command(flatten)]
    pub checkpoint: CheckpointArgs,
    /// Rows to measure on.
    #[arg(long, value_enum, default_value = "test")]
    pub split: SplitArg,
}

/// `ilm-worker generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// What generates.
    #[command(flatten)]
    pub checkpoint: CheckpointArgs,
    /// Texts to generate out of nothing.
    #[arg(long, value_name = "N", default_value_t = 16, conflicts_with_all = ["prompts", "infill"])]
    pub num: usize,
    /// A file with a prompt a line; *.jsonl: {"prompt": TEXT or [ID, ..]} or {"pieces": [.., ..]}, and "max_length".
    #[arg(long, value_name = "FILE", conflicts_with = "infill")]
    pub prompts: Option<PathBuf>,
    /// A file with a text a line, whose gaps are marked by --blank; or *.jsonl as for --prompts.
    #[arg(long, value_name = "FILE")]
    pub infill: Option<PathBuf>,
    /// What marks a gap in a line of --infill.
    #[arg(long, value_name = "STRING", default_value = "<blank>")]
    pub blank: String,
    /// File to write, a JSON object a line [default: generations/step-N-KIND-HASH.jsonl in the run directory].
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// `ilm-worker judge`.
#[derive(Debug, Args)]
pub struct JudgeArgs {
    /// Folder of the judge: config.json, model.safetensors (or its parts) and tokenizer.json of a GPT-2 or Llama, as transformers
    /// saves them.
    #[arg(long, value_name = "DIR")]
    pub judge: PathBuf,
    /// File of the texts; *.jsonl: objects with "text", as `generate` writes them, otherwise a text a line.
    #[arg(long, value_name = "FILE")]
    pub texts: PathBuf,
    /// File to write, the lines of the texts with the judge's figures [default: TEXTS-JUDGE.jsonl beside the texts]; a summary is
    /// written beside it, as *.summary.json.
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Settings as in training, those of `ilm-worker judge` being trainer.device, .precision, .threads, .deterministic, .stop_signals,
    /// .collective_timeout_secs and .max_tokens_per_micro_batch (unset: 8192).
    #[arg(value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
}

/// `ilm-worker verify-resume`.
#[derive(Debug, Args)]
pub struct VerifyResumeArgs {
    /// Which run.
    #[command(flatten)]
    pub run_dir: RunDirArgs,
    /// Step of the checkpoint to go on from [default: the newest one with so many recorded steps after it].
    #[arg(long, value_name = "N")]
    pub step: Option<u64>,
    /// Steps to train.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    pub steps: u64,
    /// Changes to the run's configuration: `key.path=value`.
    #[arg(value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
}

/// `ilm-worker replay`.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// Which run.
    #[command(flatten)]
    pub run_dir: RunDirArgs,
    /// Number of the step, from 1.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub step: u64,
    /// Only this rank's part.
    #[arg(long, value_name = "K")]
    pub rank: Option<usize>,
    /// Only this micro-batch of every rank, from 0.
    #[arg(long, value_name = "K")]
    pub micro_batch: Option<usize>,
    /// Print JSON, a row a line.
    #[arg(long)]
    pub json: bool,
    /// Changes to the run's configuration: `key.path=value`.
    #[arg(value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
}

/// `ilm-worker import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// A folder with model.safetensors and config.json, or a safetensors file of a state dict.
    #[arg(long, value_name = "PATH")]
    pub from: PathBuf,
    /// The experiment whose data and settings go with the weights; its model section is taken from them.
    #[command(flatten)]
    pub experiment: ExperimentArgs,
    /// Folder of the new run [default: runs/EXPERIMENT].
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
}

/// `ilm-worker export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// What to export.
    #[command(flatten)]
    pub checkpoint: CheckpointArgs,
    /// Folder to write model.safetensors and config.json into.
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
    /// Under which layers the rotary frequencies are written, which loaders ask for differently.
    #[arg(long, value_enum, default_value = "first-layer")]
    pub buffers: BuffersArg,
}

/// Where rotary frequencies are written; GPT-2 models have none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BuffersArg {
    /// For `from_pretrained(strict=True)` and the reference's own loader.
    FirstLayer,
    /// For `load_state_dict(strict=True)`.
    EveryLayer,
}

/// A split of the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SplitArg {
    /// The validation split.
    Validation,
    /// The test split.
    Test,
}

/// `ilm-worker prepare`.
#[derive(Debug, Args)]
pub struct PrepareArgs {
    /// Whose data.
    #[command(flatten)]
    pub experiment: ExperimentArgs,
    /// Folder to write `train-*`, `validation-*` and `test-*` files into; what an earlier start finished there is kept.
    #[arg(long, value_name = "DIR")]
    pub output: PathBuf,
    /// The settings for texts.
    #[command(flatten)]
    pub text: PrepareTextArgs,
}

/// What `ilm-worker prepare` does with texts.
#[derive(Debug, Args)]
pub struct PrepareTextArgs {
    /// Only this split [default: all that are configured].
    #[arg(long, value_enum)]
    pub split: Option<PrepareSplitArg>,
    /// What becomes of texts that are too long for block_size [default: keep].
    #[arg(long, value_enum)]
    pub rule: Option<RuleArg>,
    /// Draws N documents of data.train by `seed`, which become the validation split instead: `validation-*` has them,
    /// `train-*` does not. --rule then cuts or leaves out documents of both; for exactly N after --rule split, hold
    /// out from the files that an earlier `prepare --rule split` wrote.
    #[arg(long, value_name = "N")]
    pub hold_out: Option<u64>,
    /// Rows of a row group [default: 1000].
    #[arg(long, value_name = "N")]
    pub row_group_rows: Option<usize>,
    /// Files that are worked on at the same time [default: the processors].
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

/// A split that is prepared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PrepareSplitArg {
    /// The training split.
    Train,
    /// The validation split.
    Validation,
    /// The test split.
    Test,
}

/// What becomes of long texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RuleArg {
    /// They are kept whole; training cuts off what is behind the block.
    Keep,
    /// Those of more than block_size tokens are left out.
    Split,
    /// They are cut into pieces of at most block_size - 2 tokens.
    Cut,
}

/// `ilm-worker train-tokenizer`.
#[derive(Debug, Args)]
pub struct TrainTokenizerArgs {
    /// Whose texts and special tokens.
    #[command(flatten)]
    pub experiment: ExperimentArgs,
    /// What tokens are.
    #[arg(long, value_enum, default_value = "bpe")]
    pub kind: TokenizerKindArg,
    /// Number of tokens, special ones included.
    #[arg(long, value_name = "N", default_value_t = 8000)]
    pub vocab_size: usize,
    /// File to write.
    #[arg(long, value_name = "FILE", default_value = "tokenizer.json")]
    pub output: PathBuf,
    /// Files that are read at the same time [default: the processors].
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

/// What the tokens of a trained tokenizer are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TokenizerKindArg {
    /// Byte pairs as GPT-2's; every text comes back exactly.
    Bpe,
    /// Lower-case word pieces as BERT's.
    Wordpiece,
}

/// Parses the arguments; `train` is put in where no command is named.
///
/// # Errors
/// Clap's error, which also carries the text of `--help` and `--version`.
pub fn parse(mut arguments: Vec<OsString>) -> Result<Cli, clap::Error> {
    let named = Cli::command();
    let is_named = |argument: &OsString| {
        ["help", "-h", "--help", "-V", "--version"].iter().any(|name| argument == name)
            || named.find_subcommand(argument).is_some()
    };
    if arguments.get(1).is_some_and(|first| !is_named(first)) {
        arguments.insert(1, "train".into());
    }
    Cli::try_parse_from(arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Command {
        let arguments = std::iter::once("ilm-worker").chain(arguments.iter().copied()).map(OsString::from);
        parse(arguments.collect()).unwrap().command
    }

    #[test]
    fn definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn train_is_the_default_and_order_is_free() {
        for arguments in [
            &["--experiment", "a", "x.y=1", "--fresh", "z=2"][..],
            &["x.y=1", "z=2", "--experiment", "a", "--fresh"],
            &["train", "x.y=1", "--fresh", "--experiment=a", "z=2"],
        ] {
            let Command::Train(train) = parsed(arguments) else { panic!("not train") };
            assert_eq!(train.experiment.experiment, "a");
            assert_eq!(train.experiment.overrides, ["x.y=1", "z=2"]);
            assert!(train.fresh);
        }
    }

    #[test]
    fn evaluate_wants_a_run_or_an_experiment() {
        assert!(parse(vec!["ilm-worker".into(), "evaluate".into()]).is_err());
        assert!(matches!(parsed(&["evaluate", "--run-dir", "r"]), Command::Evaluate(_)));
        assert!(matches!(parsed(&["evaluate", "--experiment", "e"]), Command::Evaluate(_)));
    }

    #[test]
    fn checkpoints_are_pruned_with_changed_settings() {
        let arguments = ["checkpoints", "prune", "checkpoint.keep_last=5", "--run-dir", "r", "--dry-run"];
        let Command::Checkpoints(CheckpointsCommand::Prune(prune)) = parsed(&arguments) else {
            panic!("not prune")
        };
        assert_eq!((prune.dry_run, &prune.overrides[..]), (true, &["checkpoint.keep_last=5".to_owned()][..]));
        assert!(parse(["ilm-worker", "checkpoints", "list"].map(Into::into).into()).is_err());
    }
}
